"""How sure a difference between two models is.

Questions about one image are not independent, so images, not questions, are drawn anew: the paired bootstrap gives both
models the same images in each resample. With several training seeds the metric is averaged over seeds inside each
resample; the interval then says what another set of images would change, and the differences by seed say what another
training would. McNemar's exact test, per seed, stands beside it for metrics that are a share of right items.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 13.3 (percentile interval), 15.4 (level of an interval
as p-value); McNemar 1947, exact form; Holm 1979.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["RESAMPLES", "Difference", "Estimate", "McNemar", "PairedBootstrap", "Statistic", "holm", "mcnemar"]

RESAMPLES = 5_000
_CHUNK = 250  # resamples drawn at a time, bounds the memory

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Maps summed counts (..., K) to values (...)."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Two models on the same images.

    Attributes:
        ours: Value of the one.
        stock: Value of the other.
        difference: Ours minus stock.
        p: Two-sided bootstrap p-value of the difference; at least 2 / (resamples + 1).
        by_seed: Ours minus stock for each pair of seeds.
    """

    ours: Estimate
    stock: Estimate
    difference: Estimate
    p: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class McNemar:
    """Items that only one of two models gets right, and the exact two-sided p-value."""

    ours_only: int
    stock_only: int
    p: float


class PairedBootstrap:
    """Resamples images, the same ones for both models and all seeds.

    Args:
        ours: Counts per seed, image and kind of count, (S, I, K).
        stock: The same for the other model, rows about the same images, (S, I, K).
        resamples: How often the images are drawn anew.
        seed: Of the draw.
    """

    def __init__(
        self, ours: NDArray[np.integer], stock: NDArray[np.integer], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        if ours.shape != stock.shape:
            raise ValueError(f"counts of shape {ours.shape} and {stock.shape} cannot be paired")
        both = np.stack([ours, stock]).astype(np.float64)
        self._observed = both.sum(axis=2)  # (2, S, K)
        self._resampled = _resampled_totals(both, resamples, np.random.default_rng(seed))  # (R, 2, S, K)

    def difference(self, statistic: Statistic) -> Difference:
        """Estimates one metric of both models and their difference.

        Args:
            statistic: From summed counts (..., K) to values (...).
        """
        observed = statistic(self._observed)  # (2, S)
        draws = statistic(self._resampled).mean(axis=-1)  # (R, 2)
        ours, stock = observed.mean(axis=-1)
        gaps = draws[:, 0] - draws[:, 1]
        return Difference(
            _estimate(ours, draws[:, 0]),
            _estimate(stock, draws[:, 1]),
            _estimate(ours - stock, gaps),
            _two_sided_p(gaps),
            tuple((observed[0] - observed[1]).tolist()),
        )


def _resampled_totals(counts: Array, resamples: int, generator: np.random.Generator) -> Array:
    models, seeds, images, kinds = counts.shape
    by_image = np.moveaxis(counts, 2, 0).reshape(images, -1)
    parts = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = generator.multinomial(images, np.full(images, 1 / images), size=size)  # (R', I)
        parts.append(weights.astype(np.float64) @ by_image)
    return np.concatenate(parts).reshape(resamples, models, seeds, kinds)


def _estimate(value: float, draws: Array) -> Estimate:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def _two_sided_p(gaps: Array) -> float:
    # Sums of the same counts can differ in the last digit; such a gap is none.
    below, above = np.count_nonzero(gaps <= 1e-12), np.count_nonzero(gaps >= -1e-12)
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(gaps) + 1)))


def mcnemar(ours: NDArray[np.bool_], stock: NDArray[np.bool_]) -> McNemar:
    """Compares which items two models get right, item by item.

    Args:
        ours: Right or wrong per item, (N,).
        stock: The same items in the same order, (N,).

    Returns:
        The p-value is 1 when they never differ.
    """
    ours_only, stock_only = int((ours & ~stock).sum()), int((stock & ~ours).sum())
    total = ours_only + stock_only
    return McNemar(ours_only, stock_only, float(binomtest(ours_only, total, 0.5).pvalue) if total else 1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrects p-values of several comparisons so that the chance of any false claim stays at the level (Holm 1979)."""
    corrected: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}
