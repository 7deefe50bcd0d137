"""What a language model's caption must be before it is taken: one line, about the right objects, and a new one.

Objects are found as everywhere here, by whole words with their plurals and synonyms: "cart" names no car, "two men"
name a person.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from llava_ohd.ohd_caps.lexicon import Lexicon, split_words

__all__ = ["Intent", "clean", "fault", "same_words"]

_MOST_TOKENS = 77  # of CLIP's text tower
_LETTERS = 6  # of a word that CLIP's vocabulary mostly keeps whole
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_QUOTES = ('""', "''", "“”", "‘’", "``", "«»")
_MARKS = '"“”«»`'
_CHATTER = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here(?:'s|’s| is| are)|sorry|i'm|i (?:can|cannot|can't|will)|as an ai|"
    r"unfortunately|absolutely|the (?:edited|revised|rewritten|modified))\b"
    r"|^[^.:]{0,40}:\s|^(?:[-*•#>]|\d+[.)])\s|\*\*|```|</?\w+>"
    r"|\b(?:rewritten|rephrased|revised|original|edited|modified) (?:caption|sentence|version)\b|\bas requested\b"
    r"|\blet me know\b|\bthe caption\b|\blanguage model\b",
    re.IGNORECASE,
)
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Intent:
    """What is to be done to a caption.

    Attributes:
        kind: Add objects that the image does not show, remove objects, or alter something.
        strategy: As it will stand in the row.
        objects: The objects to add or remove; those to alter, if possible.
    """

    kind: Literal["add", "remove", "alter"]
    strategy: str
    objects: tuple[str, ...]


def clean(reply: str) -> str:
    """Returns a reply without the thoughts before it, blanks around it and quotation marks that enclose all of it."""
    text = _THOUGHTS.sub("", reply).strip()
    while len(text) > 1 and text[0] + text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text


def fault(text: str, intent: Intent, caption: str, siblings: Collection[str], lexicon: Lexicon) -> str | None:
    """Says what is wrong with a caption, as its writer is to be told; None where nothing is.

    Args:
        text: The cleaned reply.
        intent: What was asked for.
        caption: The caption that fits the image.
        siblings: The negatives of the same image so far.
        lexicon: Recognises the objects.
    """
    words = same_words(text)
    if not words:
        return "that is no caption"
    if "\n" in text:
        return "the caption must be on one line, without anything before or after it"
    if _talks(text) and not _talks(caption):
        return "only the caption is wanted, without any remark and without quotation marks"
    if _tokens(text) > _MOST_TOKENS:
        return f"it is too long; {_MOST_TOKENS - 20} words are the most"
    if words == same_words(caption):
        return "it says the same as the caption given"
    if words in map(same_words, siblings):
        return "it was given already; write it in another way"
    named, before = lexicon.named(text), lexicon.named(caption)
    return {"add": _added, "remove": _removed, "alter": _altered}[intent.kind](text, intent, caption, named, before)


def same_words(text: str) -> tuple[str, ...]:
    """Returns what two captions have in common that differ in marks, capitals or articles only."""
    return tuple(word.text for word in split_words(text) if not word.is_mark and word.text not in _ARTICLES)


def _talks(text: str) -> bool:
    return _CHATTER.search(text) is not None or text[0] in _MARKS or text[-1] in _MARKS


def _added(text: str, intent: Intent, caption: str, named: set[str], before: set[str]) -> str | None:
    missing = [name for name in intent.objects if name not in named]
    if missing:
        return f"it must name {', '.join(missing)} in these words"
    lost = sorted(before - named)
    return f"it must go on naming {', '.join(lost)}" if lost else None


def _removed(text: str, intent: Intent, caption: str, named: set[str], before: set[str]) -> str | None:
    left = [name for name in intent.objects if name in named]
    if left:
        return f"it must not name {', '.join(left)}, in whatever word"
    new = sorted(named - before)
    return f"it must not name anything new, such as {', '.join(new)}" if new else None


def _altered(text: str, intent: Intent, caption: str, named: set[str], before: set[str]) -> str | None:
    if set(same_words(text)) <= set(same_words(caption)):
        return "something must be turned into something else, not only left out or moved"
    return None


def _tokens(text: str) -> int:
    """Estimates the tokens of CLIP's vocabulary, start and end included; never far below the real number."""
    return 2 + sum(-(-len(word.text) // _LETTERS) for word in split_words(text))
