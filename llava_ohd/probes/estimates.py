"""Shares and means with 95 % intervals that count independent items, not everything that was counted.

Trials about one picture, or orders of one set of objects, are not independent. An interval is therefore as wide as if
each picture (set) had been asked once: Wilson's, with the number of pictures in place of the number of trials. That is
right where the trials of a picture agree, and too wide, never too narrow, where they do not.

Source: Wilson 1927; Student 1908.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

__all__ = ["Estimate", "mean_of", "pooled", "share_of", "wilson"]

_Z = 1.959963984540054  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: None where it is a quotient over nothing.
        low: End of the interval; None where there is none.
        high: The other end.
        n: Number of trials.
        independent: Number of independent items (pictures, sets of objects) that these are of.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    independent: int


def wilson(share: float, n: int) -> tuple[float, float]:
    """Returns the ends of Wilson's 95 % interval of a share of n independent items, n at least 1."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_of(hits: Sequence[float], items: Sequence[Hashable] | None = None) -> Estimate:
    """Returns a share with Wilson's interval.

    Args:
        hits: 1 or 0 per trial; a fraction where a first place is shared.
        items: Which independent item each trial is of; None: each is one of its own.
    """
    independent = len(hits) if items is None else len(set(items))
    if not hits:
        return Estimate(None, None, None, 0, 0)
    value = min(1.0, max(0.0, sum(hits) / len(hits)))
    low, high = wilson(value, independent)
    return Estimate(value, low, high, len(hits), independent)


def mean_of(values: Sequence[float]) -> Estimate:
    """Returns a mean of independent values with Student's interval; one value has none."""
    if not values:
        return Estimate(None, None, None, 0, 0)
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, 1, 1)
    from scipy.stats import t

    middle = mean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Estimate(middle, middle - half, middle + half, len(values), len(values))


def pooled(parts: Sequence[Estimate], same_items: bool) -> Estimate:
    """Returns the share over all trials of several shares.

    Args:
        parts: Shares.
        same_items: Whether they are of the same pictures; otherwise of different ones.
    """
    known = [(part.value, part.n, part.independent) for part in parts if part.value is not None]
    if not known:
        return Estimate(None, None, None, 0, 0)
    n = sum(count for _, count, _ in known)
    value = sum(share * count for share, count, _ in known) / n
    independent = (max if same_items else sum)([count for _, _, count in known])
    low, high = wilson(min(1.0, max(0.0, value)), independent)
    return Estimate(value, low, high, n, independent)
