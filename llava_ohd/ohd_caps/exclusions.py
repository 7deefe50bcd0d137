"""Images that must not come into a training file, because some test asks about them.

A picture has several names: `COCO_val2014_000000310196.jpg`, `train2017/000000310196.jpg`, the bare id 310196;
`1000268201_693b08cb0e.jpg` in Flickr8k is `1000268201.jpg` in Flickr30k. `image_key` makes them one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl

__all__ = ["image_key", "read_exclusions", "read_lines"]

_NAMES = ("image", "file_path", "file_name", "filename", "image_id")
_COCO_DIGITS = 12
_FLICKR8K = re.compile(r"(\d+)_[0-9a-f]{10}")
_AFTER_NAME = re.compile(r"[\t,|#].*")  # "name.jpg#0<tab>caption", "name.jpg,caption"


def image_key(file_name: str) -> str:
    """Returns what identifies an image in every naming: COCO's twelve digits, Flickr's number, else the bare name."""
    stem = Path(file_name).stem
    digits = stem.rpartition("_")[2]
    if len(digits) == _COCO_DIGITS and digits.isdigit():
        return digits
    flickr = _FLICKR8K.fullmatch(stem)
    return flickr[1] if flickr else stem


def read_exclusions(path: Path) -> set[str]:
    """Reads the keys of images to leave out, in whatever form the test set has.

    Rows of POPE, OHD-Caps or CHAIR (JSON Lines or an array), a COCO file, an array of names or ids, or text with one
    name or id per line. A bare number counts as itself and as a COCO id.

    Raises:
        DataFormatError: missing or empty file, or rows without an image.
    """
    if not _begins_json(path):
        names = [_AFTER_NAME.sub("", line) for line in read_lines(path)]
    else:
        names = list(_names(path))
    return {key for name in names for key in _keys(name)}


def _keys(name: str) -> Iterator[str]:
    yield image_key(name)
    if name.isdigit():
        yield name.zfill(_COCO_DIGITS)


def _begins_json(path: Path) -> bool:
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist; give the path of an existing file")
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096).lstrip()[:1] in ("{", "[")


def _names(path: Path) -> Iterator[str]:
    rows = _whole(path) or read_jsonl(path)
    for row in rows:
        name = next((row[key] for key in _NAMES if key in row), None) if isinstance(row, dict) else row
        if not isinstance(name, (str, int)):
            raise DataFormatError(
                f"{path} has rows without {', '.join(_NAMES[:-1])} or {_NAMES[-1]}; give a .txt file with one image "
                "name per line"
            )
        yield str(name)


def _whole(path: Path) -> list[Any]:
    """Returns the items of an array, or `images` of a COCO file; nothing where it is JSON Lines."""
    try:
        record = read_json(path)
    except DataFormatError:
        return []
    return list(record.get("images", [record]) if isinstance(record, dict) else record)


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file that are not blank.

    Raises:
        DataFormatError: missing or empty file.
    """
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist; give the path of an existing text file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataFormatError(f"{path} is empty; one name per line is expected")
    return lines
