"""CHAIR's word rules: which objects does a text mention?

exact    lower-cased words as they stand; objects of several words before single ones; no singularisation, so that
         "dogs" counts only if the synonyms file has it. For captions in the singular, as in the embedded world.
pattern  LisaAnne/Hallucination utils/chair.py @ 6e4d33c: singulars of pattern.en, damage included ("bus" is never
         counted, "buses" is). nltk's tokens are those of a regular expression here, which needs no download.
wordnet  shikiw/OPERA chair.py @ 61426ef: nltk's tokens, tagger and WordNet lemmas, so that "bus" and "tie" count, "men"
         and "parking meter" do not. Needs NLTK and its data.

The last two join two neighbouring words by one list, take "seat" for no chair where "toilet" is said, and look words up
as the synonyms file has them between ", ": an entry in capitals or with a blank before it is never found.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llava_ohd.errors import DataFormatError, LlavaOhdError
from llava_ohd.evals.chair_wordnet import lemmatizer
from llava_ohd.evals.singular import singular

__all__ = ["RULES", "Find", "Found", "Vocabulary", "finder", "read_synonyms", "tokens"]

RULES = {
    "exact": "exact (words as they stand; LisaAnne/Hallucination@6e4d33c without singularisation)",
    "pattern": "pattern (LisaAnne/Hallucination@6e4d33c utils/chair.py)",
    "wordnet": "wordnet (shikiw/OPERA@61426ef chair.py)",
}
_WORD = re.compile(r"[^\W_]+(?:[-./'][^\W_]+)*|\S")
_APART = re.compile(
    r"""[][(){}<>;@#$%&?!*"`«»“”„‘’‒-―]|''|--|\.{2,}|[:,](?!\d)|\.(?=[])}>"'»”’]*(?:\s|$))|(?<!\w)'(?=[^\W\d_]\b)"""
)
_CLITIC = re.compile(r"(?<=[^' ])(n't|'(?:s|m|d|ll|re|ve)?)(?=\s|$)")

_TWO_WORDS = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign,
parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone,
mobile phone, teddy bear, hair drier, potted plant, laptop computer, home plate, train track
"""
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
_PAIRS = {" ".join(pair.split()): " ".join(pair.split()) for pair in _TWO_WORDS.split(",")}
_PAIRS |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS.split()}  # no person
_PAIRS |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
_PAIRS |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
_FIRST = {pair.split()[0] for pair in _PAIRS}


class Found(NamedTuple):
    """What a rule finds in a text.

    Attributes:
        objects: The node words of every mention, in order.
        length: The "Len" that papers print beside this rule, None where there is none: blank-separated pieces, empty
            ones included (pattern, the POPE paper); tokens after pairs are joined, punctuation included (wordnet,
            OPERA, which prints it as a percentage of a hundredth).
    """

    objects: Sequence[str]
    length: int | None = None


Find = Callable[[str], Found]


@dataclass(frozen=True)
class Vocabulary:
    """Words and word groups that name an object.

    Attributes:
        node: Maps each synonym, as a tuple of tokens, to its node word (the first word of its line).
        longest: Tokens of the longest synonym.
        as_written: Maps each synonym, as it stands between ", ", to its node word; a later line wins.
    """

    node: dict[tuple[str, ...], str]
    longest: int
    as_written: Mapping[str, str] = field(default_factory=dict)

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Finds all objects that a text mentions (rule "exact"): start and end in `text`, and the node word."""
        tokens = list(_WORD.finditer(text))
        words = tuple(token.group().lower() for token in tokens)
        found, position = [], 0
        while position < len(words):
            lengths = range(min(self.longest, len(words) - position), 0, -1)
            size = next((n for n in lengths if words[position : position + n] in self.node), 0)
            if size:
                first, last = tokens[position], tokens[position + size - 1]
                found.append((first.start(), last.end(), self.node[words[position : position + size]]))
            position += max(size, 1)
        return found

    def objects(self, text: str) -> list[str]:
        """Returns the node words of all objects that a text mentions, in order (rule "exact")."""
        return [name for _, _, name in self.find(text)]


def read_synonyms(path: Path) -> Vocabulary:
    """Reads a synonyms file of CHAIR: one object per line, its names separated by commas, the first is the node word.

    Raises:
        DataFormatError: missing, or no names in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as text ({error}); give a synonyms file of CHAIR") from None
    node, as_written = {}, {}
    for line in lines:
        names = [name.strip() for name in line.split(",") if name.strip()]
        for name in names:
            node[tuple(_WORD.findall(name.lower()))] = names[0]
        as_written.update({name: names[0] for name in line.strip().split(", ") if names})
    if not node:
        raise DataFormatError(f"{path} names no objects; one line per object, names separated by commas, is expected")
    return Vocabulary(node, max(map(len, node)), as_written)


def finder(rule: str, vocabulary: Vocabulary, nltk_data: Path | None = None) -> Find:
    """Returns the function that finds objects by a rule; it remembers words, so use one for many texts.

    Args:
        rule: One of `RULES`.
        vocabulary: From `read_synonyms`.
        nltk_data: Folder with NLTK's data, for the rule "wordnet".

    Raises:
        LlavaOhdError: no such rule.
        MissingDependency: NLTK or its data.
    """
    if rule == "exact":
        return lambda text: Found(vocabulary.objects(text))
    if rule == "pattern":
        return lambda text: Found(_objects(_joined(map(singular, tokens(text))), vocabulary), len(text.split(" ")))
    if rule == "wordnet":
        lemmas = lemmatizer(frozenset(vocabulary.as_written).union(*map(str.split, _PAIRS)), nltk_data)

        def find(text: str) -> Found:
            words = _joined(lemmas(text.lower()))
            return Found(_objects(words, vocabulary), len(words))

        return find
    raise LlavaOhdError(f"CHAIR rule {rule!r} is unknown; choose {', '.join(RULES)}")


def tokens(text: str) -> list[str]:
    """Splits a text, in lower case, where nltk.word_tokenize (3.8.1) does, as far as words of objects are concerned.

    So "dog's" is two tokens, "o'clock" and "man/woman" one; a quoted word keeps the quote before it and is not found.
    """
    return _CLITIC.sub(r" \1", _APART.sub(r" \g<0> ", text.lower())).split()


def _joined(words: Iterable[str]) -> list[str]:
    """Joins two neighbours that are one object, from left to right."""
    given, found, position = list(words), [], 0
    while position < len(given):
        word = given[position]
        pair = _PAIRS.get(" ".join(given[position : position + 2])) if word in _FIRST else None
        found.append(pair or word)
        position += 2 if pair else 1
    return found


def _objects(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    unseated = "toilet" in words and "seat" in words  # the seat of a toilet is no chair
    node = vocabulary.as_written
    return [node[word] for word in words if word in node and not (unseated and word == "seat")]
