"""The little English that captions need: articles, plurals, enumerations."""

from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["counted", "enumerate_phrases", "is_mass", "is_plural", "plural", "with_article"]

_MOST_COUNTED = 10
_PAIRS = {"scissors", "skis", "glasses", "sunglasses", "jeans", "pants", "trousers", "shorts"}
_MASS = {"broccoli", "grass", "sand", "snow", "water", "sky", "food", "hair", "furniture", "luggage", "clothing"}
_MASS |= {"cardboard", "dirt", "gravel", "paper"}
_UNIQUE = {"sky", "sea", "floor", "ceiling"}  # a picture has one: "near the sky"
_SINGULAR = {"canvas", "christmas", "lens"}


def _head(noun: str) -> str:
    return noun.rsplit(" ", 1)[-1].lower()


@cache
def _engine() -> Any:
    import inflect

    return inflect.engine()


def is_mass(noun: str) -> bool:
    """Says whether a noun has no plural ("snow"), or is named as the only one of its kind ("the sky")."""
    return _head(noun) in _MASS | _UNIQUE


@cache
def plural(noun: str) -> str:
    """Returns the plural of a noun or of a phrase that ends in one; names that are plurals already stay."""
    return noun if is_plural(noun) else str(_engine().plural_noun(noun))


@cache
def is_plural(noun: str) -> bool:
    """Says whether a name takes no "a" because it is a plural or a mass noun ("skis", "broccoli", "people")."""
    head = _head(noun)
    if head in _PAIRS or head in _MASS:
        return True
    if head in _SINGULAR or head.endswith(("ss", "us", "is")):
        return False
    return _engine().singular_noun(head) not in (False, head)  # "a fish", "a sheep"


@cache
def with_article(phrase: str) -> str:
    """Returns the phrase after "a" or "an", alone where it takes none, "the sky" where there is but one."""
    if phrase in _UNIQUE:
        return f"the {phrase}"
    return phrase if is_plural(phrase) else str(_engine().a(phrase))


def counted(noun: str, count: int, several: bool = False) -> str:
    """Returns "a dog", "two dogs", "many dogs" (over ten), or "several dogs" where the number is not known."""
    if several:
        return f"several {plural(noun)}"
    if count == 1 or _head(noun) in _MASS:
        return with_article(noun)
    number = _engine().number_to_words(count) if count <= _MOST_COUNTED else "many"
    return f"{number} {plural(noun)}"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    """Joins phrases as in "a, b and c"."""
    if len(phrases) <= 1:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
