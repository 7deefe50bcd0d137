"""The statistics against slow or exact counterparts."""

import numpy as np
import pytest
from scipy.stats import binom

from llava_ohd.report.statistics import McNemar, PairedBootstrap, holm, mcnemar


def share(counts):
    return counts[..., 0] / counts[..., 1]


def per_image(right, images):
    """Right answers (S, I * Q) as counts (S, I, 2) of right and all."""
    grouped = right.reshape(len(right), images, -1)
    return np.stack([grouped.sum(2), np.full(grouped.shape[:2], grouped.shape[2])], axis=-1)


def test_values_and_seeds():
    ours = np.array([[[3, 4], [2, 4]], [[4, 4], [4, 4]]])
    stock = np.array([[[1, 4], [2, 4]], [[2, 4], [2, 4]]])
    found = PairedBootstrap(ours, stock, resamples=50).difference(share)
    assert found.ours.value == pytest.approx((5 / 8 + 1) / 2)
    assert found.stock.value == pytest.approx((3 / 8 + 4 / 8) / 2)
    assert found.difference.value == pytest.approx(found.ours.value - found.stock.value)
    assert found.by_seed == pytest.approx((2 / 8, 4 / 8))


def test_equals_a_bootstrap_written_out():
    generator = np.random.default_rng(3)
    ours, stock = (per_image(generator.random((1, 60)) < p, 20) for p in (0.8, 0.6))
    found = PairedBootstrap(ours, stock, resamples=400, seed=7).difference(share)
    draw = np.random.default_rng(7)
    gaps = []
    for size in (250, 150):
        for weights in draw.multinomial(20, np.full(20, 1 / 20), size=size):
            chosen = np.repeat(np.arange(20), weights)
            gaps.append(share(ours[0, chosen].sum(0)) - share(stock[0, chosen].sum(0)))
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))
    assert found.p == pytest.approx(2 * (min(sum(g <= 0 for g in gaps), sum(g >= 0 for g in gaps)) + 1) / 401)


def test_interval_of_independent_items_is_the_binomial_one():
    right = np.random.default_rng(0).random((1, 2000)) < 0.7
    counts = per_image(right, 2000)
    found = PairedBootstrap(counts, counts).difference(share).ours
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 2000)
    assert found.high - found.value == pytest.approx(half, rel=0.07)
    assert found.value - found.low == pytest.approx(half, rel=0.07)


def test_clustering_widens_the_interval():
    """Ten equal answers per image carry the information of one."""
    right = np.repeat(np.random.default_rng(1).random((1, 200)) < 0.6, 10, axis=1)
    none = np.zeros_like(right)
    by_image = PairedBootstrap(per_image(right, 200), per_image(none, 200)).difference(share).difference
    by_answer = PairedBootstrap(per_image(right, 2000), per_image(none, 2000)).difference(share).difference
    assert (by_image.high - by_image.low) / (by_answer.high - by_answer.low) == pytest.approx(10**0.5, rel=0.1)


def test_coverage_of_the_interval():
    """The truth lies inside in about 95 of 100 repetitions."""
    generator = np.random.default_rng(5)
    inside = 0
    for repetition in range(200):
        hard = generator.random((1, 100, 1))
        ours, stock = ((generator.random((1, 100, 6)) < hard * q).reshape(1, -1) for q in (0.9, 0.7))
        gap = PairedBootstrap(per_image(ours, 100), per_image(stock, 100), resamples=300, seed=repetition)
        found = gap.difference(share).difference
        inside += found.low <= 0.5 * 0.2 <= found.high
    assert 180 <= inside <= 198


def test_equal_models():
    counts = per_image(np.random.default_rng(0).random((2, 90)) < 0.5, 30)
    found = PairedBootstrap(counts, counts, resamples=200).difference(share)
    assert (found.difference.value, found.difference.low, found.difference.high, found.p) == (0, 0, 0, 1)


def test_counts_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        PairedBootstrap(np.zeros((1, 3, 2), int), np.zeros((1, 4, 2), int))


def test_mcnemar_is_the_exact_binomial_test():
    ours = np.array([True] * 9 + [False] * 2 + [True] * 50)
    stock = np.array([False] * 9 + [True] * 2 + [True] * 50)
    found = mcnemar(ours, stock)
    assert (found.ours_only, found.stock_only) == (9, 2)
    assert found.p == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar(stock, stock) == McNemar(0, 0, 1.0)


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
