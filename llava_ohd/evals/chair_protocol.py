"""What published protocols do to captions before CHAIR reads them.

Image list: papers score 500 images of COCO val2014, few say which; numbers on different lists differ by several points.
Tokens: captions of at most 64 or 512 new tokens. Greedy captions of fewer tokens are the beginnings of longer ones, so
they can be cut here; tokens are those of the language model's SentencePiece file.
Unfinished sentence: the 64-token setting of OPERA drops what follows the last full stop (shikiw/OPERA chair.py
@ 61426ef, in comments, and its issue 30). A text without one is then empty.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import AnswersMismatch, DataFormatError, LlavaOhdError, MissingDependency
from llava_ohd.evals.answers import short
from llava_ohd.evals.chair_data import Caption, coco_id
from llava_ohd.files import read_json, sha256_json
from llava_ohd.home import data_folder

__all__ = ["Protocol", "on_list", "read_image_list", "without_unfinished"]

_TOKENIZER = "tokenizers/llama/tokenizer.model"


@dataclass(frozen=True)
class Protocol:
    """What is done, in this order.

    Attributes:
        image_list: File of the images that count; each must have a caption, captions of others are left out.
        max_tokens: Tokens that are kept of each caption.
        tokenizer: SentencePiece file, or a folder with tokenizer.model; None for Llama's under `$LLAVA_OHD_DATA`.
        drop_unfinished: Whether an unfinished last sentence is dropped.
    """

    image_list: Path | None = None
    max_tokens: int | None = None
    tokenizer: Path | None = None
    drop_unfinished: bool = False

    def apply(self, captions: Sequence[Caption]) -> tuple[list[Caption], dict[str, Any]]:
        """Returns the captions as they are scored, and what results state of it (nothing if nothing was asked for).

        Raises:
            AnswersMismatch: an image of the list without a caption.
            DataFormatError: the list or the tokenizer is not one.
            LlavaOhdError: tokens below 1.
            MissingDependency: SentencePiece is not installed.
        """
        found, stated = list(captions), dict[str, Any]()
        if self.image_list is not None:
            images = read_image_list(self.image_list)
            found = on_list(found, images)
            stated["image_list"] = {"images": len(images), "sha256": sha256_json(sorted(images))}
        if self.max_tokens is not None:
            found = [Caption(row.image, text) for row, text in zip(found, self._cut(found), strict=True)]
            stated["max_tokens"] = self.max_tokens
        if self.drop_unfinished:
            found = [Caption(row.image, without_unfinished(row.text)) for row in found]
            stated["drop_unfinished"] = True
        return found, stated

    def _cut(self, captions: Iterable[Caption]) -> list[str]:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise LlavaOhdError(f"{self.max_tokens} tokens of a caption; give 1 or more")
        try:
            import sentencepiece
        except ImportError:
            raise MissingDependency('counting tokens needs SentencePiece; pip install "llava_ohd[train]"') from None
        path = self.tokenizer or data_folder("Llama's tokenizer; give another with --tokenizer") / _TOKENIZER
        path = path / "tokenizer.model" if path.is_dir() else path
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise DataFormatError(f"{path} cannot be read as a SentencePiece model: {error}") from None
        return [str(pieces.decode(pieces.encode(row.text)[: self.max_tokens])) for row in captions]


def read_image_list(path: Path) -> list[str]:
    """Reads the ids of COCO images: one id or file name a line, or one JSON array.

    Raises:
        DataFormatError: missing, empty, an entry that is neither, or one that occurs twice.
    """
    if path.suffix == ".json":
        record = read_json(path)
        given = [str(entry) for entry in record] if isinstance(record, list) else []
    else:
        try:
            given = path.read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataFormatError(f"{path} cannot be read as text ({error}); give a list of images") from None
    images = [coco_id(entry) for entry in given]
    wrong = [image for image in images if not re.fullmatch("[0-9]{1,12}", image)]  # as many as names have
    twice = [image for image, count in Counter(images).items() if count > 1]
    if wrong or twice or not images:
        found = f"{short(wrong[0])} is no image" if wrong else f"{twice[0]!r} occurs twice" if twice else "it is empty"
        raise DataFormatError(f"{path}: {found}; one id or file name of a COCO image a line is expected, each once")
    return images


def on_list(captions: Iterable[Caption], images: Sequence[str]) -> list[Caption]:
    """Returns the captions of the images of a list.

    Raises:
        AnswersMismatch: an image without a caption.
    """
    wanted = set(images)
    found = [caption for caption in captions if coco_id(caption.image) in wanted]
    missing = wanted - {coco_id(caption.image) for caption in found}
    if missing:
        raise AnswersMismatch(
            f"{len(missing)} of {len(images)} images of the list have no caption, first: "
            f"{sorted(missing, key=int)[:3]}. Describe them, or give the list that was described. Nothing was scored."
        )
    return found


def without_unfinished(text: str) -> str:
    """Returns a text up to its last full stop; nothing if it has none."""
    return text[: text.rfind(".") + 1]
