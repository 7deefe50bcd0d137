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
from llava_ohd.tower.tokenizer import has_pieces, read_pieces

__all__ = ["copy_files", "files_of", "has_files", "has_processor"]

_PROBLEM = "damaged tokenizer or preprocessor"


def has_files(folder: Path) -> bool:
    """Says whether a folder has tokenizer and image processor, in the files of any version."""
    return has_pieces(folder) and has_processor(folder)


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
        try:
            copy_files(folder, Path(place))
            yield Path(place)
        except EncoderFormatError as error:
            raise EncoderFormatError(str(error).replace(place, str(folder))) from None


def copy_files(source: Path, destination: Path) -> None:
    """Copies tokenizer and preprocessor, with the files that some version lacks.

    Raises:
        EncoderFormatError: a file is damaged, or tokenizer.json is not the byte-pair vocabulary of a CLIP.
    """
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    inside = _inside(source)
    if inside is not None and not (destination / "preprocessor_config.json").is_file():
        write_json(destination / "preprocessor_config.json", inside)
    file = destination / "tokenizer.json"
    if file.is_file() and not (destination / "vocab.json").is_file():
        pieces = read_pieces(file)
        write_json(destination / "vocab.json", dict(sorted(pieces.items(), key=lambda row: row[1])))
        write_text(destination / "merges.txt", "".join(f"{line}\n" for line in ("#version: 0.2", *_merges(file))))


def _merges(file: Path) -> list[str]:
    try:
        merges = read_object(file, _PROBLEM)["model"]["merges"]
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]  # lists since tokenizers 0.20
    except (KeyError, TypeError) as error:
        raise EncoderFormatError(
            f"{file} is not the byte-pair vocabulary of a CLIP ({error!r}); copy it again"
        ) from None


def _inside(folder: Path) -> dict[str, Any] | None:
    file = folder / "processor_config.json"
    found = read_object(file, _PROBLEM).get("image_processor") if file.is_file() else None
    return found if isinstance(found, dict) else None
