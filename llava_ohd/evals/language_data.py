"""NLTK with its data from a folder, and one clear error where either is missing."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_ohd.errors import MissingDependency

__all__ = ["data_needed", "load_nltk"]

_DATA = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")


def load_nltk(what: str, folder: Path | None = None) -> Any:
    """Imports NLTK and shows it its data: `folder` before its own places, or nltk_data/ of $LLAVA_OHD_DATA after them.

    Args:
        what: Needs NLTK, for the message.
        folder: Has `tokenizers/`, `taggers/`, `corpora/`.

    Raises:
        MissingDependency: NLTK is not installed, or `folder` does not exist.
    """
    try:
        import nltk
    except ImportError:
        raise MissingDependency(f'{what} needs NLTK; pip install "llava_ohd[eval]"') from None
    if folder is not None and not folder.is_dir():
        raise MissingDependency(f"{folder} is not a folder; give one with NLTK's {', '.join(_DATA)}")
    home = os.environ.get("LLAVA_OHD_DATA")
    place = str((folder or Path(home or ".") / "nltk_data").resolve())
    if folder is not None:
        nltk.data.path[:] = [place, *(other for other in nltk.data.path if other != place)]
    elif home and place not in nltk.data.path:
        nltk.data.path.append(place)
    return nltk


@contextmanager
def data_needed() -> Iterator[None]:
    """Says which data NLTK did not find, and how to get them.

    Raises:
        MissingDependency: NLTK's data are missing.
    """
    try:
        yield
    except LookupError as error:
        wanted = re.search(r"Resource\W+(?:\x1b\[93m)?(\w+)", str(error))
        if wanted is None:
            raise
        raise MissingDependency(
            f"NLTK has no {wanted[1]!r}; set NLTK_DATA to a folder that has {', '.join(_DATA)}, or run: "
            f"python -m nltk.downloader {' '.join(_DATA)}"
        ) from None
