"""AMBER, generative part: of the things that a description names, which are in the image, which are imagined?

Paper: arXiv 2311.07397. Rule: junyangwang0410/AMBER inference.py @ 534babf. CHAIR, Hal, Cog: lower is better; Cover:
higher. Mentions are counted, not distinct objects, over all descriptions together.

Nouns are what NLTK's tagger calls NN* in the text as it stands, lemmatised, and known to relation.json. A noun that is
neither an object of the image nor associated with one is compared with those words by spaCy's en_core_web_lg
(`similarity="spacy"`), or only by its letters (`"exact"`, which needs no model of several hundred MB; on one public set
of LLaVA-1.5-7B's descriptions both print the same). Properties that are kept: a truth word is covered by the first
match, associations before the words themselves; words of safe_words.txt are never hallucinated, yet stay in the
denominator; every denominator begins at 0.001.

Needs NLTK (extra `eval`) with punkt_tab, averaged_perceptron_tagger_eng and wordnet in its data path ($NLTK_DATA, or
nltk_data/ of $LLAVA_OHD_DATA).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from llava_ohd.errors import DataFormatError, MissingDependency
from llava_ohd.evals.amber import GENERATIVE, AmberItem
from llava_ohd.evals.language_data import data_needed, load_nltk
from llava_ohd.files import read_json
from llava_ohd.progress import track
from llava_ohd.records import Metric

__all__ = ["SIMILARITIES", "Counts", "Words", "generative", "judged", "metrics_of", "read_words"]

_LEAST = 0.8  # similarity from which on two words are the same: inference.py's --similarity_score

Same = Callable[[str, str], bool]
Nouns = Callable[[str], list[str]]


@dataclass(frozen=True)
class Words:
    """AMBER's word lists.

    Attributes:
        associated: From an object to the words that speak of it as well (relation.json).
        safe: Words that are no hallucination anywhere (safe_words.txt).
    """

    associated: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @property
    def known(self) -> frozenset[str]:
        """All words that count as an object."""
        return frozenset(self.associated).union(*self.associated.values())


def read_words(folder: Path) -> Words:
    """Reads relation.json and safe_words.txt of AMBER's data folder.

    Raises:
        DataFormatError: missing or damaged.
    """
    associated = read_json(folder / "relation.json")
    if not isinstance(associated, dict) or not all(isinstance(words, list) for words in associated.values()):
        raise DataFormatError(f"{folder / 'relation.json'} must map words to lists of words; copy it from AMBER again")
    path = folder / "safe_words.txt"
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist; it belongs to AMBER's data folder")
    return Words(associated, frozenset(path.read_text(encoding="utf-8").splitlines()))


def generative(
    responses: Mapping[int, str],
    items: Mapping[int, AmberItem],
    words: Words,
    similarity: Literal["exact", "spacy"] = "exact",
    nouns: Nouns | None = None,
) -> list[Metric]:
    """Scores the descriptions; ids of questions are passed over.

    Args:
        responses: Texts by id.
        items: The annotations.
        words: The word lists.
        similarity: How words are compared that are not equal.
        nouns: From a text to its nouns; None for AMBER's own way, by NLTK.

    Returns:
        `chair`, `cover`, `hal`, `cog`: fractions, rounded to a thousandth as the official script prints them. Nothing
        if there is no description.

    Raises:
        MissingDependency: NLTK, its data, or spaCy's model.
        DataFormatError: an object of the annotations that relation.json does not have.
    """
    return metrics_of(judged(responses, items, words, similarity, nouns))


def metrics_of(found: Mapping[int, "Counts"]) -> list[Metric]:
    """Returns the metrics of `generative` from what `judged` returns."""
    return sum(found.values(), Counts()).metrics() if found else []


def judged(
    responses: Mapping[int, str],
    items: Mapping[int, AmberItem],
    words: Words,
    similarity: Literal["exact", "spacy"] = "exact",
    nouns: Nouns | None = None,
) -> dict[int, "Counts"]:
    """Returns the counts of each description, by id; arguments and errors as `generative`."""
    described = [(items[number], text) for number, text in responses.items() if items[number].type == GENERATIVE]
    if not described:
        return {}
    find, same, known = nouns or _nltk_nouns(), SIMILARITIES[similarity](), words.known
    return {
        item.id: _judge([noun for noun in find(text) if noun in known], item, words, same)
        for item, text in track(described, "Scoring AMBER's descriptions")
    }


@dataclass(frozen=True)
class Counts:
    """Sums over descriptions; the fields are what is counted, `clean` the descriptions without a hallucination."""

    mentions: int = 0
    hallucinated: int = 0
    truths: int = 0
    covered: int = 0
    imaginable: int = 0
    imagined: int = 0
    texts: int = 0
    clean: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def metrics(self) -> list[Metric]:
        """Returns the metrics of `generative`."""

        def share(part: int, whole: int) -> float:
            return round(round(part / (whole + 0.001) * 100, 1) / 100, 3)  # as printed: percent, one decimal

        return [
            Metric("chair", share(self.hallucinated, self.mentions), self.mentions, "lower"),
            Metric("cover", share(self.covered, self.truths), self.truths, "higher"),
            Metric("hal", round(1 - self.clean / (self.texts + 0.001), 3), self.texts, "lower"),
            Metric("cog", share(self.imagined, self.imaginable), self.imaginable, "lower"),
        ]


def _judge(nouns: Sequence[str], item: AmberItem, words: Words, same: Same) -> Counts:
    """Judges the nouns of one description, in their order."""
    shown, imaginable = (_Matcher(objects, words, same) for objects in (item.truth, item.hallu))
    hallucinated = 0
    for noun in nouns:
        if noun in words.safe or shown.equal(noun):
            continue
        imaginable.equal(noun)
        imaginable.alike(noun)
        hallucinated += not shown.alike(noun)
    return Counts(
        len(nouns),
        hallucinated,
        len(item.truth),
        len(shown.hit),
        len(item.hallu),
        len(imaginable.hit),
        1,
        not hallucinated,
    )


class _Matcher:
    """The objects of one list and the words that stand for them; remembers which objects were hit.

    Args:
        objects: Such as the truth of an image.
        words: Gives the associated words.
        same: Says whether two words that need not be equal are the same.
    """

    def __init__(self, objects: Sequence[str], words: Words, same: Same) -> None:
        if unknown := [name for name in objects if name not in words.associated]:
            raise DataFormatError(f"relation.json has no {unknown[0]!r}, which the annotations name; use one release")
        associated = [(word, place) for place, name in enumerate(objects) for word in words.associated[name]]
        self._words = [*associated, *((name, place) for place, name in enumerate(objects))]
        self._same = same
        self.hit: set[int] = set()

    def _first(self, matches: Callable[[str], bool]) -> bool:
        place = next((place for word, place in self._words if matches(word)), None)
        if place is not None:
            self.hit.add(place)
        return place is not None

    def equal(self, noun: str) -> bool:
        """Marks the first object that a word equal to the noun stands for."""
        return self._first(lambda word: word == noun)

    def alike(self, noun: str) -> bool:
        """Marks the first object that a word like the noun stands for."""
        return self._first(lambda word: self._same(noun, word))


def _nltk_nouns() -> Nouns:
    nltk = load_nltk("AMBER's descriptions")
    lemmatize = cache(nltk.stem.WordNetLemmatizer().lemmatize)

    def nouns(text: str) -> list[str]:
        with data_needed():
            return [lemmatize(word) for word, tag in nltk.pos_tag(nltk.word_tokenize(text)) if tag.startswith("NN")]

    return nouns


def _spacy() -> Same:
    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError):
        raise MissingDependency(
            "--similarity spacy needs spaCy and en_core_web_lg: pip install spacy, then python -m spacy download "
            "en_core_web_lg; or take --similarity exact, which the result names"
        ) from None
    parse = cache(model)

    @cache
    def same(one: str, other: str) -> bool:
        return bool(parse(one).similarity(parse(other)) > _LEAST)

    return same


SIMILARITIES: dict[str, Callable[[], Same]] = {"exact": lambda: lambda one, other: one == other, "spacy": _spacy}
"""How words are compared, by name."""
