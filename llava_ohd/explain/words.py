"""Words of a caption, and which tokens each is made of.

Words are split as CLIP4DM does: at blanks; a full stop and a comma are words of their own; all else stays glued.
Source: naver-ai/clip4dm @ cb9e52d, src/utils.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_ohd.errors import DataFormatError

__all__ = ["TEMPLATE", "Text", "Word", "prepare", "sentences", "split_words"]

TEMPLATE = "A photo depicts "
_WORD = re.compile(r"[.,]|[^\s.,]+")
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|$)", re.DOTALL)


@dataclass(frozen=True)
class Word:
    """A word and its place in the caption, in characters: `caption[start:end] == text`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A caption ready to be read.

    Attributes:
        tokens: Ids with start and end of text, template included.
        words: Of the caption, without the template's.
        pieces: For each word, the places in `tokens` that it is made of; none where it was cut.
    """

    tokens: tuple[int, ...]
    words: tuple[Word, ...]
    pieces: tuple[tuple[int, ...], ...]

    @property
    def cut(self) -> tuple[Word, ...]:
        """The words beyond the last token that the encoder reads."""
        return tuple(word for word, pieces in zip(self.words, self.pieces, strict=True) if not pieces)


def split_words(caption: str) -> list[Word]:
    """Returns the words of a caption with their places."""
    return [Word(found.group(), *found.span()) for found in _WORD.finditer(caption)]


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, each with its full stop; captions of a LLaVA are longer than CLIP reads."""
    return [found.group().rstrip() for found in _SENTENCE.finditer(text)]


def prepare(tokenizer: Any, caption: str, length: int, template: str = TEMPLATE, cut: bool = False) -> Text:
    """Tokenises a caption behind the template.

    Args:
        tokenizer: Of the encoder, one that knows the places of its tokens (a fast one).
        caption: With at least one word.
        length: Tokens that the encoder reads.
        template: Stands before the caption, and is cut from the result; ends with a blank, or is empty.
        cut: Leave what is too long without score instead of refusing it.

    Raises:
        DataFormatError: the caption has no word, or has more tokens than the encoder reads.
    """
    words = split_words(caption)
    if not words:
        raise DataFormatError(f"caption {caption!r} has no word; give a caption")
    coded = tokenizer(template + caption, return_offsets_mapping=True, truncation=False, verbose=False)
    ids, places = coded["input_ids"], coded["offset_mapping"]
    if len(ids) > length and not cut:
        raise DataFormatError(
            f"caption {caption[:60]!r}… has {len(ids)} tokens with the template {template!r}, the encoder reads "
            f"{length}; score it by sentence (--captions FILE), what fits (--cut), or shorten it"
        )
    if len(ids) > length:
        ids = [*ids[: length - 1], ids[-1]]
    inside = range(1, len(ids) - 1)
    pieces = [tuple(i for i in inside if _overlap(places[i], word, len(template))) for word in words]
    return Text(tuple(ids), tuple(words), tuple(pieces))


def _overlap(place: Sequence[int], word: Word, shift: int) -> bool:
    return place[0] < word.end + shift and word.start + shift < place[1]
