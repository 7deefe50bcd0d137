"""Numbers of `dense`: scores of a caption from cosines and words, average precision, correlations."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from llava_ohd.errors import OptionError

__all__ = ["average_precision", "clip_score", "f_clip_score", "mean", "pearson", "ref_clip_score", "spearman"]


def clip_score(cosine: float) -> float:
    """Returns 2.5 max(cosine, 0). Source: Hessel et al. 2021, arXiv 2104.08718, section 3."""
    return 2.5 * max(cosine, 0.0)


def ref_clip_score(cosine: float, references: Sequence[float]) -> float:
    """Returns the harmonic mean of `clip_score` and the caption's largest cosine with a reference, at least 0.

    Raises:
        OptionError: there is no reference.

    Source: Hessel et al. 2021, arXiv 2104.08718, section 3.
    """
    if not references:
        raise OptionError("RefCLIPScore of 0 references: give at least one, or take CLIPScore")
    one, other = clip_score(cosine), max(0.0, *references)
    return 2 * one * other / (one + other) if one and other else 0.0


def f_clip_score(cosine: float, words: Sequence[float], threshold: float | None) -> float:
    """Returns (1 - cosine) times the sum of the words below the threshold; 0 where there is none, else negative.

    Args:
        cosine: Of image and caption; below 0 it counts as 0.
        words: Attributions of the words.
        threshold: None: the lowest word stands for the sum, whatever its sign, as in the FOIL protocols.

    Source: Nam et al., arXiv 2412.18404; naver-ai/clip4dm @ cb9e52d, main.py.
    """
    wrong = min(words) if threshold is None else sum(word for word in words if word < threshold)
    return (1 - max(cosine, 0.0)) * wrong


def average_precision(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Returns the sum over thresholds of the gain in recall times precision; equal scores are one threshold.

    Source: scikit-learn, `average_precision_score`.
    """
    positives, area, seen, hits = sum(labels), 0.0, 0, 0
    if not positives:
        return 0.0
    rows = sorted(zip(scores, labels, strict=True), key=lambda row: -row[0])
    for _, run in groupby(rows, key=lambda row: row[0]):
        right = [label for _, label in run]
        seen, before, hits = seen + len(right), hits, hits + sum(right)
        area += (hits - before) / positives * hits / seen
    return area


def pearson(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the linear correlation; None where one side does not vary."""
    a, b = mean(one), mean(other)
    spread = math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in other))
    return sum((x - a) * (y - b) for x, y in zip(one, other, strict=True)) / spread if spread else None


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the correlation of ranks, equal values having the mean of their ranks."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = defaultdict(list)
    for rank, value in enumerate(sorted(values)):
        places[value].append(rank)
    return [mean(places[value]) for value in values]


def mean(values: Sequence[float]) -> float:
    """Returns the mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
