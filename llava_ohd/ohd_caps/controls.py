"""Scorers that never see the image: what a benchmark accuracy is worth shows only beside theirs.

On the authors' test files the medoid of the captions reaches 73-87 %, because the negatives are edits of the caption
and so all lie around it. Each control is given the captions of one image in any order and returns the indices that
share the first place. Those here need nothing but the captions; `ohd_caps/fitted.py` has those that are fitted.

Source: Dice (1945), "Measures of the amount of ecologic association between species", for the overlap 2·shared/(a + b).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from types import MappingProxyType

from llava_ohd.ohd_caps.records import OhdRow

__all__ = [
    "CONTROLS",
    "OPPOSITES",
    "Control",
    "accuracies",
    "accuracy",
    "chance",
    "first_places",
    "longest",
    "medoid",
    "outlier",
    "shortest",
]

Control = Callable[[Sequence[str]], list[int]]

_TOKEN = re.compile(r"[^\W_]+")


def chance(captions: Sequence[str]) -> list[int]:
    """Prefers nothing: every index shares the first place."""
    return list(range(len(captions)))


def shortest(captions: Sequence[str]) -> list[int]:
    """Prefers the caption with the fewest lower-cased alphanumeric tokens."""
    return first_places([-float(len(_tokens(caption))) for caption in captions])


def longest(captions: Sequence[str]) -> list[int]:
    """Prefers the caption with the most lower-cased alphanumeric tokens."""
    return first_places([float(len(_tokens(caption))) for caption in captions])


def medoid(captions: Sequence[str]) -> list[int]:
    """Prefers the caption with the largest summed Dice overlap of uni- and bi-gram counts with the others."""
    return first_places(_centralities(captions))


def outlier(captions: Sequence[str]) -> list[int]:
    """Prefers the caption with the smallest summed overlap: the opposite of `medoid`."""
    return first_places([-score for score in _centralities(captions)])


def _centralities(captions: Sequence[str]) -> list[float]:
    grams = [_grams(caption) for caption in captions]
    sizes = [sum(counts.values()) for counts in grams]
    scores = [0.0] * len(grams)
    for a, b in combinations(range(len(grams)), 2):
        shared = sum(min(count, grams[b][gram]) for gram, count in grams[a].items() if gram in grams[b])
        overlap = 2 * shared / max(sizes[a] + sizes[b], 1)
        scores[a] += overlap
        scores[b] += overlap
    return scores


CONTROLS: Mapping[str, Control] = MappingProxyType({"chance": chance, "shortest": shortest, "medoid": medoid})
OPPOSITES: Mapping[str, Control] = MappingProxyType({"longest": longest, "outlier": outlier})
"""Weak on the authors' files; on a split made against the controls they could be strong."""


def accuracy(rows: Sequence[OhdRow], control: Control) -> float:
    """Returns the fraction of rows in which the control prefers the right caption; a tie of k counts 1/k.

    Args:
        rows: At least one row.
        control: Such as one of `CONTROLS`.
    """
    total = 0.0
    for row in rows:
        best = control(row.captions)
        total += (0 in best) / len(best)
    return total / len(rows)


def accuracies(rows: Sequence[OhdRow], controls: Mapping[str, Control] = CONTROLS) -> dict[str, float]:
    """Returns the accuracy of every control, as a fraction, by its name."""
    return {name: accuracy(rows, control) for name, control in controls.items()}


def _tokens(caption: str) -> list[str]:
    return _TOKEN.findall(caption.lower())


def _grams(caption: str) -> Counter[tuple[str, ...]]:
    tokens = _tokens(caption)
    return Counter([(token,) for token in tokens] + list(pairwise(tokens)))


def first_places(scores: Sequence[float]) -> list[int]:
    """Returns the indices of the highest scores; those equal but for rounding share the place."""
    # Equal captions may differ in the last bit, since their sums run in another order.
    best = max(scores)
    return [index for index, score in enumerate(scores) if score > best - 1e-9]
