"""Tokenizer and preprocessor in the files that every version of transformers reads.

transformers 5 saves the tokenizer as tokenizer.json alone, and `CLIPProcessor.save_pretrained` puts the image processor
into processor_config.json. transformers 4.37, which the original LLaVA pins, reads neither: its CLIPTokenizer wants
vocab.json and merges.txt, its CLIPImageProcessor preprocessor_config.json. What they hold is the same.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_ohd.errors import EncoderFormatError
from llava_ohd.files import write_json, write_text
from llava_ohd.tower.record import COPIED, read_object

__all__ = ["add_vocabulary", "files_of", "has_files", "has_processor"]

_PROBLEM = "damaged tokenizer or preprocessor"


def has_files(folder: Path) -> bool:
    """Says whether a folder has tokenizer and image processor, in the files of any version."""
    words = (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()
    return words and has_processor(folder)


def has_processor(folder: Path) -> bool:
    """Says whether a folder has an image processor, in the files of any version."""
    return (folder / "preprocessor_config.json").is_file() or _inside(folder) is not None


@contextmanager
def files_of(folder: Path) -> Iterator[Path]:
    """Gives a folder with vocab.json, merges.txt and preprocessor_config.json: the same one, or a copy with them.

    Raises:
        EncoderFormatError: a file is damaged.
    """
    if all((folder / name).is_file() for name in ("vocab.json", "preprocessor_config.json")):
        yield folder
        return
    with TemporaryDirectory() as place:
        copy = Path(place)
        for name in COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, copy / name)
        add_vocabulary(copy)
        inside = _inside(folder)
        if inside is not None and not (copy / "preprocessor_config.json").is_file():
            write_json(copy / "preprocessor_config.json", inside)
        try:
            yield copy
        except EncoderFormatError as error:
            raise EncoderFormatError(str(error).replace(place, str(folder))) from None


def add_vocabulary(folder: Path) -> None:
    """Writes vocab.json and merges.txt beside a tokenizer.json that has neither beside it.

    Raises:
        EncoderFormatError: tokenizer.json is damaged, or not the byte-pair vocabulary of a CLIP.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() or (folder / "vocab.json").is_file():
        return
    record = read_object(file, _PROBLEM)
    try:
        model = record["model"]
        pieces = model["vocab"] | {row["content"]: row["id"] for row in record["added_tokens"]}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]  # lists since 0.20
    except (KeyError, TypeError) as error:
        raise EncoderFormatError(
            f"{file} is not the byte-pair vocabulary of a CLIP ({error!r}); copy it again"
        ) from None
    write_json(folder / "vocab.json", dict(sorted(pieces.items(), key=lambda row: row[1])))
    write_text(folder / "merges.txt", "".join(f"{line}\n" for line in ("#version: 0.2", *merges)))


def _inside(folder: Path) -> dict[str, Any] | None:
    file = folder / "processor_config.json"
    found = read_object(file, _PROBLEM).get("image_processor") if file.is_file() else None
    return found if isinstance(found, dict) else None
