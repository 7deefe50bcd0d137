"""Controls that are fitted: one linear score per caption, which never sees the image, nor the other captions.

What they reach is what the wording of a caption alone gives away: how generated captions are written (`style`) and what
they talk about (`bag_of_ngrams`, `characters`). A softmax over the captions of a row makes the scores a probability of
being the right one; its log-loss with an L2 penalty is minimised by L-BFGS. Its vectors are short, so that threads of
the linear algebra library only wait for each other, and their number would change the last digits: there is one.

Source: the bag-of-words baselines of "annotation artifacts", Gururangan et al. 2018, arXiv 1803.02324.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from llava_ohd.ohd_caps.controls import first_places
from llava_ohd.ohd_caps.records import OhdRow

__all__ = [
    "KINDS",
    "STYLE",
    "Features",
    "LinearControl",
    "Split",
    "characters",
    "cross_fitted",
    "fit",
    "ngrams",
    "softmax_regression",
    "trigrams",
]

Array = NDArray[np.float64]
Split = Callable[[str], list[str]]

_TOKEN = re.compile(r"[^\W_]+|[^\w\s]")
_WORD = re.compile(r"[^\W_]+")
_BLANK_BEFORE = re.compile(r"\s[.,;:!?]")
_STEPS = 300  # of L-BFGS, at most


def ngrams(caption: str) -> list[str]:
    """Returns the words and punctuation marks of a caption, in lower case, and every two neighbours."""
    tokens = _TOKEN.findall(caption.lower())
    return tokens + [f"{a} {b}" for a, b in pairwise(tokens)]


def trigrams(caption: str) -> list[str]:
    """Returns the words and marks of a caption, case kept, with its beginning and end, and every two and three."""
    tokens = ["<", *_TOKEN.findall(caption), ">"]
    return [" ".join(tokens[i : i + n]) for n in (1, 2, 3) for i in range(len(tokens) - n + 1)]


def characters(caption: str) -> list[str]:
    """Returns every run of one to four characters, case and blanks kept."""
    text = f" {caption} "
    return [text[i : i + n] for n in (1, 2, 3, 4) for i in range(len(text) - n + 1)]


STYLE: Mapping[str, Callable[[str], float]] = MappingProxyType(
    {
        "begins with a quotation mark": lambda text: text.lstrip()[:1] in {'"', "'", "“", "‘"},
        "commas": lambda text: text.count(","),
        "words": lambda text: len(_WORD.findall(text)),
        "words, squared": lambda text: len(_WORD.findall(text)) ** 2,
        "ends with a full stop": lambda text: text.rstrip().endswith("."),
        "capitalised words after the first": lambda text: sum(word[:1].isupper() for word in text.split()[1:]),
        "begins in lower case": lambda text: text.strip()[:1].islower(),
        "double blanks": lambda text: "  " in text,
        "characters": len,
        "letters per word": lambda text: len(text) / max(len(text.split()), 1),
        "outer blanks": lambda text: text != text.strip(),
        "blank before punctuation": lambda text: bool(_BLANK_BEFORE.search(text)),
        "semicolons and hyphens": lambda text: text.count(";") + text.count("-"),
    }
)
"""How a caption is written: 13 numbers."""


@dataclass(frozen=True)
class Features:
    """Turns captions into rows of numbers.

    Attributes:
        split: Cuts a caption into the pieces that are counted; None: none are.
        style: Whether the numbers of `STYLE` are there too.
        vocabulary: Column of each piece; pieces that fitting did not meet are left out.
        mean: Of each number of `STYLE`, over the captions that were fitted.
        spread: Their standard deviation.
    """

    split: Split | None
    style: bool
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    mean: Array = field(default_factory=lambda: np.zeros(len(STYLE)))
    spread: Array = field(default_factory=lambda: np.ones(len(STYLE)))

    def of(self, captions: Sequence[str], least: int = 1) -> "Features":
        """Returns the same features with mean and spread of these captions, and what is `least` times in them."""
        pieces = Counter(piece for caption in captions for piece in (self.split(caption) if self.split else ()))
        style = _style(captions)
        common = (piece for piece, count in pieces.items() if count >= least)
        vocabulary = {piece: column for column, piece in enumerate(common)}
        return replace(self, vocabulary=vocabulary, mean=style.mean(0), spread=style.std(0) + 1e-9)

    def matrix(self, captions: Sequence[str]) -> Any:
        """Returns a sparse matrix, one row per caption: counts of pieces, then style in standard deviations."""
        parts = []
        if self.split:
            parts.append(_counts(captions, self.split, self.vocabulary))
        if self.style:
            parts.append(sparse.csr_array((_style(captions) - self.mean) / self.spread))
        return sparse.hstack(parts, format="csr")


def _style(captions: Sequence[str]) -> Array:
    return np.array([[measure(caption) for measure in STYLE.values()] for caption in captions], float)


def _counts(captions: Sequence[str], split: Split, vocabulary: Mapping[str, int]) -> Any:
    columns: list[int] = []
    counts: list[float] = []
    ends = [0]
    for caption in captions:
        for piece, count in Counter(split(caption)).items():
            if piece in vocabulary:
                columns.append(vocabulary[piece])
                counts.append(count)
        ends.append(len(columns))
    return sparse.csr_array((counts, columns, ends), shape=(len(captions), len(vocabulary)))


KINDS: Mapping[str, tuple[Features, float]] = MappingProxyType(
    {
        "style": (Features(None, style=True), 1e-4),
        "bag_of_ngrams": (Features(ngrams, style=False), 1e-3),
        "characters": (Features(characters, style=False), 1e-2),
        "trigrams": (Features(trigrams, style=True), 1e-2),
    }
)
"""Fitted controls: what they look at, and the weight of their L2 penalty."""


@dataclass(frozen=True)
class LinearControl:
    """A fitted control; called with captions it returns the indices that share the first place."""

    features: Features
    weights: Array

    def scores(self, captions: Sequence[str]) -> Array:
        """Returns how right each caption looks."""
        return self.features.matrix(captions) @ self.weights

    def __call__(self, captions: Sequence[str]) -> list[int]:
        return first_places(self.scores(captions).tolist())


def fit(rows: Sequence[OhdRow], features: Features, penalty: float) -> LinearControl:
    """Fits a control to rows, in a few seconds for a thousand of them.

    Args:
        rows: At least one.
        features: What it looks at; vocabulary and mean are taken from the rows.
        penalty: λ of λ/2·|w|², beside the mean log-loss of a row.
    """
    captions = [caption for row in rows for caption in row.captions]
    known = features.of(captions)
    sizes = np.array([len(row.captions) for row in rows])
    return LinearControl(known, softmax_regression(known.matrix(captions), sizes, penalty))


def softmax_regression(matrix: Any, sizes: NDArray[np.int64], penalty: float, steps: int = _STEPS) -> Array:
    """Returns the weights under which the first caption of each row is likeliest.

    Args:
        matrix: Sparse (N, F), the captions of all rows below each other.
        sizes: Captions of each row, (R,), summing to N.
        penalty: See `fit`.
        steps: Of L-BFGS, at most.
    """
    first = np.cumsum(sizes) - sizes
    row = np.repeat(np.arange(len(sizes)), sizes)

    def loss(weights: Array) -> tuple[float, Array]:
        scores = matrix @ weights
        scores -= np.maximum.reduceat(scores, first)[row]
        odds = np.exp(scores)
        totals = np.add.reduceat(odds, first)
        surplus = odds / totals[row]
        surplus[first] -= 1
        value = (np.log(totals) - scores[first]).mean() + penalty / 2 * weights @ weights
        return value, matrix.T @ surplus / len(sizes) + penalty * weights

    start = np.zeros(matrix.shape[1])
    with threadpool_limits(1):
        return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x


def cross_fitted(
    rows: Sequence[OhdRow], features: Features, penalty: float, folds: int = 5, seed: int = 0
) -> list[tuple[LinearControl, list[int]]]:
    """Fits a control to all rows but a part, for each of some parts: what one can do who knows the set's own answers.

    Returns:
        For each part the control that was not fitted on it, and the indices of its rows.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = [order[start::folds].tolist() for start in range(min(folds, len(rows)))]
    found = []
    for part in parts:
        others = [rows[index] for index in set(range(len(rows))).difference(part)]
        found.append((fit(others or rows, features, penalty), part))
    return found
