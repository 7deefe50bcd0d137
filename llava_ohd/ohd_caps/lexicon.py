"""Finds the objects that a caption names, with the article and the adjectives that belong to them.

A caption is read word by word against the object names (their plurals and a few synonyms), without a tagger: enough
to edit captions of the kind that people write below photographs, and silent where it is not sure. A mention is
*clean* when the word after it shows that the noun phrase ends there ("a dog on ...", but not "a dog house").
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from llava_ohd.ohd_caps.grammar import is_mass, is_plural, plural
from llava_ohd.ohd_caps.words import (
    ADJECTIVES,
    ANIMATE,
    COLLECTIVES,
    COLOURS,
    DETERMINERS,
    SYNONYMS,
    ends_phrase,
    is_participle,
)

__all__ = ["Lexicon", "Mention", "Word", "split_words"]


_KEPT = 10_000  # captions whose words are kept: each is read some fifty times while its negatives are written
_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Word:
    """A word or a punctuation mark of a caption, in lower case, with its place (character offsets)."""

    text: str
    start: int
    end: int

    @property
    def is_mark(self) -> bool:
        return not (self.text[0].isalnum() or self.text[0] == "_")


@dataclass(frozen=True)
class Mention:
    """A noun phrase that names an object.

    Attributes:
        name: The object, as in the vocabulary.
        start: Where the phrase begins (article or first adjective), as character offset.
        end: Where it ends.
        determiner: "a", "the", "two", "his", ... in lower case, or "".
        adjectives: What stands between, in lower case ("small", "red").
        noun: The noun as written, in lower case ("men").
        is_plural: Whether the noun is a plural.
        clean: Whether the phrase surely ends here.
    """

    name: str
    start: int
    end: int
    determiner: str
    adjectives: tuple[str, ...]
    noun: str
    is_plural: bool
    clean: bool


@lru_cache(maxsize=_KEPT)
def split_words(caption: str) -> tuple[Word, ...]:
    """Splits a caption into words and punctuation marks."""
    return tuple(Word(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(caption))


class Lexicon:
    """Object names with the words that stand for them.

    Args:
        names: The vocabulary; lower-case names of one or more words.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._forms: dict[tuple[str, ...], tuple[str, bool]] = {}
        for name in self.names:
            for word in SYNONYMS.get(name, "").split():
                self._forms.setdefault((word,), (name, is_plural(word)))
        for name in self.names:
            self._forms[tuple(plural(name).lower().split())] = (name, True)
            self._forms[tuple(name.lower().split())] = (name, is_plural(name))
        self._known: dict[str, tuple[Mention, ...]] = {}
        self._longest = max((len(form) for form in self._forms), default=0)

    def __reduce__(self) -> tuple[type["Lexicon"], tuple[tuple[str, ...]]]:
        return Lexicon, (self.names,)  # other processes need not what this one has read

    def mentions(self, caption: str) -> tuple[Mention, ...]:
        """Finds the objects that a caption names, from left to right, longest names first."""
        if caption not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[caption] = tuple(self._find(split_words(caption)))
        return self._known[caption]

    def named(self, caption: str) -> set[str]:
        """Returns the names of all objects that a caption may name, unclear mentions included."""
        return {mention.name for mention in self.mentions(caption)}

    def _find(self, words: Sequence[Word]) -> Iterator[Mention]:
        floor = position = 0  # words before `floor` belong to earlier mentions
        while position < len(words):
            size = self._match(words, position)
            if size:
                yield self._mention(words, position, size, floor)
                floor = position + size
            position += size or 1

    def _match(self, words: Sequence[Word], position: int) -> int:
        for size in range(min(self._longest, len(words) - position), 0, -1):
            form = tuple(word.text for word in words[position : position + size])
            if form in self._forms and not (form[0] in COLOURS and self._goes_on(words, position + size)):
                return size
        return 0

    @staticmethod
    def _goes_on(words: Sequence[Word], position: int) -> bool:
        return position < len(words) and not words[position].is_mark and not ends_phrase(words[position].text)

    def _mention(self, words: Sequence[Word], position: int, size: int, floor: int) -> Mention:
        begin, determiner = _phrase_start(words, position, floor)
        name, many = self._forms[tuple(word.text for word in words[position : position + size])]
        return Mention(
            name,
            words[begin].start,
            words[position + size - 1].end,
            determiner,
            tuple(word.text for word in words[begin + bool(determiner) : position]),
            " ".join(word.text for word in words[position : position + size]),
            many or (not determiner and _is_gathered(words, begin)),
            self._ends(words, position, size, name, determiner),
        )

    def _ends(self, words: Sequence[Word], position: int, size: int, name: str, determiner: str) -> bool:
        """Whether the phrase surely ends behind the noun."""
        if determiner in ("a", "an") and is_mass(words[position + size - 1].text):
            return False  # "a dirt hiking trail"
        if not self._goes_on(words, position + size):
            return True
        return name in ANIMATE and determiner in ("a", "an", "the") and self._is_verb(words, position + size)

    @staticmethod
    def _is_verb(words: Sequence[Word], position: int) -> bool:
        """An unknown word in -s behind "a dog" is a verb if the clause goes on behind it ("a dog retrieves a ...")."""
        following = words[position + 1] if position + 1 < len(words) else None
        ends = following is None or following.is_mark or ends_phrase(following.text)
        return ends and words[position].text.endswith("s") and not words[position].text.endswith("ss")


def _is_gathered(words: Sequence[Word], begin: int) -> bool:
    """A noun behind "a herd of" stands for several, also where it is written without s."""
    return begin >= 2 and words[begin - 1].text == "of" and words[begin - 2].text in COLLECTIVES


def _phrase_start(words: Sequence[Word], noun: int, floor: int) -> tuple[int, str]:
    """Walks left from the noun to its determiner; without one, only over words that are surely adjectives."""
    begin = noun
    while begin > max(floor, noun - 5):
        word = words[begin - 1]
        if word.text in DETERMINERS:
            return begin - 1, word.text
        if word.text in ("and", ",") and begin < noun and {words[begin].text, words[begin - 2].text} <= COLOURS:
            begin -= 1
            continue
        after_determiner = begin >= 2 and words[begin - 2].text in DETERMINERS
        if word.is_mark or (ends_phrase(word.text) and not (is_participle(word.text) and after_determiner)):
            break
        begin -= 1
    while begin < noun and words[begin].text not in ADJECTIVES:
        begin += 1
    if any(word.text not in ADJECTIVES and word.text not in ("and", ",") for word in words[begin:noun]):
        begin = noun
    return begin, ""
