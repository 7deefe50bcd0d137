"""Reads the captions of Flickr30k (and Flickr8k) in the forms in which they go round.

- `results_20130124.token`: `1000092795.jpg#0<tab>caption`, the original;
- `dataset_flickr30k.json` of Karpathy: `images` with `filename`, `split` and `sentences` (`raw`);
- a table with a header: `image,caption` or `image_name| comment_number| comment` (both from Kaggle).

None of them names objects: they come from a detector's file or from the captions.

Source: https://shannon.cs.illinois.edu/DenotationGraph/, https://cs.stanford.edu/people/karpathy/deepimagesent/
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.coco import CocoImage

__all__ = ["is_table", "is_token_file", "read_karpathy", "read_table", "read_token_file"]

_TOKEN = re.compile(r"(?P<image>[^\t#]+)#\d+\t(?P<caption>.*)")
_IMAGE, _CAPTION = ("image", "image_name", "filename"), ("caption", "comment")


def is_token_file(first_line: str) -> bool:
    """Says whether a file with this first line is a `.token` file."""
    return _TOKEN.fullmatch(first_line) is not None


def is_table(first_line: str) -> bool:
    """Says whether a file with this first line is a table of images and captions."""
    names = _header(first_line)
    return any(name in names for name in _IMAGE) and any(name in names for name in _CAPTION)


def read_token_file(path: Path) -> list[CocoImage]:
    """Reads `results_20130124.token`; images in the order of the file.

    Raises:
        DataFormatError: a line of another form; the message gives its number.
    """
    return _join(path, _token_rows(path))


def read_table(path: Path) -> list[CocoImage]:
    """Reads a table with a column of images and one of captions, separated by `,` or `|`.

    Raises:
        DataFormatError: a row without image or caption; the message gives its line.
    """
    return _join(path, _table_rows(path))


def read_karpathy(path: Path, record: Mapping[str, Any], part: str | None) -> list[CocoImage]:
    """Reads a `dataset_*.json` of Karpathy.

    Args:
        path: For messages.
        record: What the file holds.
        part: Only this split (`train`, `val`, `test`, ...); None for all.

    Raises:
        DataFormatError: another format, or no image of that split.
    """
    try:
        images = [
            (str(image["filename"]), [str(sentence["raw"]) for sentence in image["sentences"]])
            for image in record["images"]
            if part in (None, image["split"])
        ]
        known = sorted({str(image["split"]) for image in record["images"]})
    except (KeyError, TypeError) as error:
        raise DataFormatError(
            f"{path} is not a caption file of Karpathy's form: {error} is missing; images with filename, split and "
            "sentences (raw) are expected"
        ) from None
    if not images:
        raise DataFormatError(f"{path} has no image of the part {part!r}; its parts are {', '.join(known)}")
    return _join(path, ((name, caption) for name, captions in images for caption in captions))


def _join(path: Path, rows: Iterable[tuple[str, str]]) -> list[CocoImage]:
    captions: dict[str, list[str]] = {}
    for image, caption in rows:
        text = " ".join(caption.split())
        if text:
            captions.setdefault(image, []).append(text)
    if not captions:
        raise DataFormatError(f"{path} has no captions")
    return [CocoImage(image, (), tuple(texts)) for image, texts in captions.items()]


def _token_rows(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = _TOKEN.fullmatch(line)
        if match:
            yield match["image"], match["caption"]
        elif line.strip():
            raise DataFormatError(f"{path} line {number} is not `image#number<tab>caption`: {line[:60]!r}")


def _table_rows(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        header = file.readline()
        names = _header(header)
        image = next(names.index(name) for name in _IMAGE if name in names)
        caption = next(names.index(name) for name in _CAPTION if name in names)
        for number, cells in enumerate(csv.reader(file, delimiter=_separator(header)), 2):
            if len(cells) == caption and "|" in header:
                # the file at Kaggle lacks one separator: "2199200615.jpg| 4   A dog runs across the grass ."
                cells = [*cells[:-1], *cells[-1].split(maxsplit=1)]
            if not cells:
                continue
            if len(cells) <= max(image, caption) or not cells[image].strip():
                raise DataFormatError(f"{path} row {number} has no image or no caption: {' '.join(cells)[:60]!r}")
            yield cells[image].strip(), cells[caption]


def _separator(header: str) -> str:
    return "|" if "|" in header else ","


def _header(line: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in line.lstrip("\ufeff").split(_separator(line))]
