"""A split on which no scorer without image is better than chance: one negative caption per image, chosen in balance.

A pair has no middle, so that a medoid has nothing to choose by. What is left to give the right caption away is its
wording. A linear scorer can learn from pairs only what differs between right and wrong captions *on average*: its
log-loss has no slope at zero weights exactly where the summed difference of features, right minus wrong, is zero. Of
each row's negatives the one is therefore taken with which these sums, over all rows, come nearest to zero: for every
word, every two neighbouring words and every number of style, each in standard deviations. What no sum of counts shows,
whether a scorer prefers the right caption, is balanced likewise, as a sign: shorter or longer, and, round after round,
the verdict of scorers fitted anew on the split as it stands (on dev, on the other sets, on the set itself by cross
fitting), as adversarial filtering does, which however throws rows away; here every row stays.

Both captions are first brought to one surface (no outer quotation marks, no end mark, one blank between words): there
is no negative in the authors' files to balance a full stop with, where captions have one and negatives have none.

Source: pairs balanced against text-only scorers, SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610, section 4.2);
adversarial filtering against refitted scorers, AFLite (Le Bras et al. 2020, arXiv 2002.04108).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.fitted import (
    KINDS,
    STYLE,
    Array,
    Features,
    LinearControl,
    characters,
    fit,
    ngrams,
    softmax_regression,
)
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.progress import track

__all__ = ["debias", "one_surface"]

Indices = NDArray[np.int64]

_KINDS = ("style", "bag_of_ngrams", "characters")  # `trigrams` is kept for the proof
_PENALTY = 1e-3
_ROUNDS = 5
_SWEEPS = 6  # over the rows, each round
_FOLDS = 5
_STEPS = 50  # of L-BFGS when a scorer is fitted to pairs: its verdict is wanted, not its last digit
_LEAST = 25  # negatives in which a feature must differ: what is rarer teaches a scorer nothing about other rows
_STRONG = 4.0  # weight of signs and numbers of style beside a count
_EDIT = 0.3  # weight of the size of a single difference: of equally balanced negatives the most alike is taken
_STYLE = slice(-len(STYLE), None)
_BEFORE_MARK = re.compile(r"\s+([.,;:!?])")
_OUTER = "\"'“”‘’ .!?;,"


def one_surface(caption: str) -> str:
    """Returns a caption with single blanks, a capital first, and no quotation or end marks around it."""
    text = _BEFORE_MARK.sub(r"\1", " ".join(caption.split())).strip(_OUTER)
    return text[:1].upper() + text[1:]


def debias(
    sets: Mapping[str, Sequence[OhdRow]], dev: str | None = None, rounds: int = _ROUNDS, seed: int = 0
) -> dict[str, list[OhdRow]]:
    """Chooses one negative of each row so that no wording gives the caption away.

    Args:
        sets: Rows by the name of their set, balanced each by itself. Rows of a hundred images are too few.
        dev: Which of the sets others fit their scorers on; it is balanced too.
        rounds: How often scorers are fitted anew.
        seed: Of the order in which rows are gone through, and of the parts of cross fitting.

    Returns:
        The same sets; each row with one negative, all captions in `one_surface`.

    Raises:
        DataFormatError: a row has no negative that differs from its caption.
    """
    rows = {name: [_candidates(row) for row in of_set] for name, of_set in sets.items()}
    captions = [text for of_set in rows.values() for row in of_set for text in row.captions]
    known = _Known(Features(ngrams, style=False).of(captions, _LEAST), Features(characters, True).of(captions, _LEAST))
    choices = {name: _Choice.among(of_set, known) for name, of_set in rows.items()}
    rng = np.random.default_rng(seed)
    controls = [fit(sets[dev], *KINDS[kind]) for kind in _KINDS] if dev is not None else []
    for name, choice in choices.items():
        choice.signs += _verdicts(controls, rows[name]) if name != dev else []
        choice.choose(rng)
    for _ in track(range(rounds), "balancing pairs"):
        verdicts = {name: list(_adversaries(choices, name, dev, rng)) for name in choices}
        for name, choice in choices.items():
            choice.signs += verdicts[name]
            choice.choose(rng)
    return {name: choices[name].pairs(of_set) for name, of_set in rows.items()}


def _candidates(row: OhdRow) -> OhdRow:
    """Returns a row with one surface, each different negative once."""
    caption = one_surface(row.caption)
    negatives: dict[str, Negative] = {}
    for negative in row.negatives:
        text = one_surface(negative.caption)
        if text and text.lower() != caption.lower():
            negatives.setdefault(text.lower(), replace(negative, caption=text))
    if not negatives:
        raise DataFormatError(f"no negative caption of {row.image} differs from {row.caption!r}; audit the file first")
    return replace(row, caption=caption, negatives=tuple(negatives.values()))


@dataclass(frozen=True)
class _Known:
    """What scorers look at: n-grams, runs of characters, style, in this order of columns."""

    words: Features
    letters: Features

    def matrix(self, captions: Sequence[str]) -> Any:
        """Returns the features of captions, sparse (N, F)."""
        return sparse.hstack([self.words.matrix(captions), self.letters.matrix(captions)], format="csr")

    @property
    def views(self) -> tuple[slice, ...]:
        """The columns that each of several scorers sees: n-grams, characters, style, all."""
        words = len(self.words.vocabulary)
        return slice(0, words), slice(words, -len(STYLE)), _STYLE, slice(None)


@dataclass
class _Choice:
    """Which negative each row of a set keeps. N negatives of R rows are to choose from, with F features.

    Attributes:
        difference: Sparse (N, F), features of the caption minus those of the negative.
        first: (R + 1,), where the negatives of each row begin, and N.
        chosen: (R,), the negative that each row has now.
        known: What the features are.
        signs: Each (N,): 1 where some scorer prefers the caption to the negative, -1 where not, 0 at a tie.
    """

    difference: Any
    first: Indices
    chosen: Indices
    known: _Known
    signs: list[Array] = field(default_factory=list)

    @classmethod
    def among(cls, rows: Sequence[OhdRow], known: _Known) -> "_Choice":
        matrix = known.matrix([caption for row in rows for caption in row.captions])
        own, negative = _places(rows)
        difference = (matrix[own] - matrix[negative]).tocsr()
        first = np.cumsum([0, *(len(row.negatives) for row in rows)])
        signs = list(np.sign(difference[:, _STYLE].toarray()).T)
        return cls(difference, first, first[:-1].copy(), known, signs)

    @property
    def row(self) -> Indices:
        """The row of each negative, (N,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def choose(self, rng: np.random.Generator) -> None:
        """Goes through the rows and gives each the negative that makes the squared sums smallest, given the others'."""
        terms = self._terms()
        total = terms[self.chosen].sum(0)
        size = _EDIT * terms.multiply(terms).sum(1)
        for _ in range(_SWEEPS):
            before = self.chosen.copy()
            for row in rng.permutation(len(self.chosen)):
                start, end = self.first[row], self.first[row + 1]
                _add(total, terms, self.chosen[row], -1)
                best = start + np.argmin(2 * (terms[start:end] @ total) + size[start:end])
                self.chosen[row] = best
                _add(total, terms, best, 1)
            if np.mean(before != self.chosen) < 0.01:
                break

    def _terms(self) -> Any:
        """Returns what is summed, sparse (N, F'): each feature so that its sum over R random rows has variance one."""
        words, _, style, _ = self.known.views
        counts = self.difference[:, words]
        common = counts[:, counts.astype(bool).sum(0) >= _LEAST]
        common = sparse.hstack([common, self.difference[:, style]], format="csr")
        scale = 1 / np.sqrt(common.multiply(common).mean(0) * len(self.chosen) + 1e-12)
        signs = sparse.csr_array(np.stack(self.signs, 1) * _STRONG / np.sqrt(len(self.chosen)))
        scale[_STYLE] *= _STRONG
        return sparse.hstack([common @ sparse.diags_array(scale), signs], format="csr")

    def pairs(self, rows: Sequence[OhdRow]) -> list[OhdRow]:
        """Returns the rows with the chosen negative alone."""
        places = (self.chosen - self.first[:-1]).tolist()
        return [replace(row, negatives=(row.negatives[place],)) for row, place in zip(rows, places, strict=True)]


def _add(total: Array, terms: Any, index: int, sign: int) -> None:
    start, end = terms.indptr[index], terms.indptr[index + 1]
    total[terms.indices[start:end]] += sign * terms.data[start:end]


def _adversaries(
    choices: Mapping[str, _Choice], name: str, dev: str | None, rng: np.random.Generator
) -> Iterator[Array]:
    """Yields the signs of scorers fitted on the pairs as they are: on the other sets, on dev, and in the set itself."""
    own = choices[name]
    others = [choice.difference[choice.chosen] for key, choice in choices.items() if key != name]
    sources = [sparse.vstack(others, format="csr")] if others else []
    if dev is not None and dev != name and len(others) > 1:
        sources.append(choices[dev].difference[choices[dev].chosen])
    part = rng.permutation(len(own.chosen)) % _FOLDS
    for view in own.known.views:
        seen = own.difference[:, view]
        for source in sources:
            yield np.sign(seen @ _fitted_on_pairs(source[:, view]))
        verdict = np.zeros(seen.shape[0])
        for fold in range(_FOLDS):
            held_out = part[own.row] == fold
            verdict[held_out] = np.sign(seen[held_out] @ _fitted_on_pairs(seen[own.chosen[part != fold]]))
        yield verdict


def _fitted_on_pairs(differences: Any) -> Array:
    """Fits a scorer to P pairs, given as differences (P, F): a caption is as good as the difference, its negative 0."""
    count = differences.shape[0]
    both = sparse.vstack([differences, sparse.csr_array(differences.shape)], format="csr")
    one_by_one = np.arange(2 * count).reshape(2, count).T.ravel()
    return softmax_regression(both[one_by_one], np.full(count, 2), _PENALTY, _STEPS)


def _verdicts(controls: Iterable[LinearControl], rows: Sequence[OhdRow]) -> list[Array]:
    """Returns for each control the sign of what it thinks of a caption against each of its negatives, (N,)."""
    captions = [caption for row in rows for caption in row.captions]
    own, negative = _places(rows)
    scores = [control.scores(captions) for control in controls]
    return [np.sign(score[own] - score[negative]) for score in scores]


def _places(rows: Sequence[OhdRow]) -> tuple[Indices, Indices]:
    """Returns for each of N negatives the place of its caption and its own among all captions of the rows."""
    sizes = np.array([len(row.negatives) for row in rows])
    caption = np.cumsum(sizes + 1) - sizes - 1
    return np.repeat(caption, sizes), np.setdiff1d(np.arange(sizes.sum() + len(sizes)), caption)
