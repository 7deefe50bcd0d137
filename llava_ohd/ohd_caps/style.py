"""How the captions of a corpus are written, so that edited captions are not told apart by their style.

If a corpus enumerates and never says "with a", an inserted "with a" alone would give a negative caption away, and
a text-only shortcut would pass for understanding. The same holds for colours and sizes.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from llava_ohd.ohd_caps.grammar import is_mass, with_article
from llava_ohd.ohd_caps.lexicon import Lexicon, Mention
from llava_ohd.ohd_caps.words import COLOURS, OPPOSITES

__all__ = ["CONNECTIVES", "LIST", "Style", "runs", "study"]

LIST = "list"
CONNECTIVES = ("with", "next to", "near", "beside")
_SEPARATOR = re.compile(r"\s*(?:,|,?\s*\band\b)\s*")
_LINK = re.compile(rf"\b({'|'.join(CONNECTIVES)}) (?:an?|the|some|his|her|two)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Style:
    """What a corpus of captions uses, as counts.

    Attributes:
        ways: How often objects are enumerated (`LIST`) and how often linked by each of `CONNECTIVES`.
        colours: For each object the colours given to it.
        sizes: The sizes given to the first object of a caption (key True) and to later ones (False).
    """

    ways: Counter[str]
    colours: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: dict[bool, Counter[str]] = field(default_factory=dict)

    @property
    def palette(self) -> list[str]:
        """All colours of the corpus, in alphabetical order."""
        return sorted({colour for counts in self.colours.values() for colour in counts})

    def phrase(self, name: str, like: Mention | None, first: bool, article: bool, rng: random.Random) -> str:
        """Names an object in the manner of a mention beside it: with a colour or a size if that has one.

        Args:
            name: The object.
            like: The mention to take after, or None for a bare noun.
            first: Whether the phrase will be the first object of its caption.
            article: Whether to put "a" or "an" before it.
            rng: Source of randomness.
        """
        words = [name]
        if like and not COLOURS.isdisjoint(like.adjectives) and self.colours.get(name):
            words.insert(0, _draw(self.colours[name], rng))
        sizes = self.sizes.get(first)
        if (
            like
            and not OPPOSITES.keys().isdisjoint(like.adjectives)
            and sizes
            and name != "person"
            and not is_mass(name)
        ):
            words.insert(0, _draw(sizes, rng))
        return with_article(" ".join(words)) if article else " ".join(words)


def study(captions: Iterable[str], lexicon: Lexicon) -> Style:
    """Counts what the captions use."""
    ways: Counter[str] = Counter()
    colours: dict[str, Counter[str]] = {}
    sizes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for caption in captions:
        mentions = lexicon.mentions(caption)
        ways.update(match.lower() for match in _LINK.findall(caption))
        ways[LIST] += sum(len(run) > 1 for run in runs(caption, mentions))
        for index, mention in enumerate(mentions):
            if mention.name != "person":
                colours.setdefault(mention.name, Counter()).update(COLOURS.intersection(mention.adjectives))
            sizes[index == 0].update(OPPOSITES.keys() & set(mention.adjectives))
    return Style(ways if ways.total() else Counter({LIST: 1, "with": 1}), colours, sizes)


def runs(caption: str, mentions: Iterable[Mention]) -> list[list[Mention]]:
    """Groups clean mentions that stand in an enumeration ("a dog, a cat and a man"); a single one is a run of one."""
    groups: list[list[Mention]] = []
    for mention in mentions:
        if not mention.clean:
            continue
        if groups and _SEPARATOR.fullmatch(caption[groups[-1][-1].end : mention.start]):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def _draw(counts: Counter[str], rng: random.Random) -> str:
    names = sorted(counts)
    return rng.choices(names, [counts[name] for name in names])[0]
