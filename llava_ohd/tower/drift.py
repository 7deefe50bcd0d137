"""How far the features that LLaVA reads moved from one tower to another.

Everything is summed up batch by batch in float64, so that memory does not grow with the number of images (but for one
number per token).

Source: linear CKA is eq. 2-3 of Kornblith et al. 2019 (arXiv 1905.00414), over all tokens, each column centred.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PERCENTILES", "Drift", "Scatter", "measure"]

PERCENTILES = (1, 5, 50, 95)


@dataclass(frozen=True)
class Drift:
    """Features of the same patch tokens in two towers A and B.

    Attributes:
        images: Number of images.
        tokens: Number of patch tokens.
        cosine: Mean over the tokens of the cosine between A's and B's feature; 1 where they point the same way.
        percentiles: Percentile (`PERCENTILES`) to cosine; the first is that of the tokens that moved most.
        distance: ||B - A|| / ||A|| over all tokens (Frobenius); unlike the cosine it sees a change of length.
        cka: Linear CKA, 0 to 1; 1 where B is A turned, mirrored or scaled, which a new projector can undo.
    """

    images: int
    tokens: int
    cosine: float
    percentiles: dict[int, float]
    distance: float
    cka: float


class Scatter:
    """The centred products A'A, B'B and A'B of two streams of rows, merged batch by batch.

    `rows` is their number, `means` those of A and B, `products` the sums by pair: (0, 0), (1, 1), (0, 1).

    Source: Chan, Golub, LeVeque 1979, eq. 2.1 for two samples; nothing large is subtracted from something large.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.means: list[Tensor] = []
        self.products: dict[tuple[int, int], Tensor] = {}

    def add(self, a_ND: Tensor, b_ND: Tensor) -> None:
        """Takes in more rows, float64."""
        sides = (a_ND, b_ND)
        means = [side.mean(0) for side in sides]
        centred = [side - mean for side, mean in zip(sides, means, strict=True)]
        old = self.means or means
        shift = [mean - before for mean, before in zip(means, old, strict=True)]
        rows = self.rows + len(a_ND)
        weight = self.rows * len(a_ND) / rows
        for i, j in ((0, 0), (1, 1), (0, 1)):
            product = centred[i].T @ centred[j] + weight * torch.outer(shift[i], shift[j])
            self.products[i, j] = product + self.products.get((i, j), 0)
        self.means = [before + step * (len(a_ND) / rows) for before, step in zip(old, shift, strict=True)]
        self.rows = rows

    def cka(self) -> float:
        """Returns linear CKA of the rows so far."""
        own_a, own_b, both = (float(self.products[pair].square().sum()) for pair in ((0, 0), (1, 1), (0, 1)))
        if own_a == own_b == 0:
            return 1.0  # both constant
        return min(both / (own_a * own_b) ** 0.5, 1.0) if own_a and own_b else 0.0


def _cosines(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Returns the cosine of each pair of rows `(N,)`, exactly 1 where they are equal and accurate near 1."""
    unit_a, unit_b = (torch.nn.functional.normalize(x, dim=1, eps=1e-300) for x in (a_ND, b_ND))
    return 1 - (unit_a - unit_b).square().sum(1) / 2


def measure(pairs: Iterable[tuple[Tensor, Tensor]]) -> Drift:
    """Compares features token by token.

    Args:
        pairs: Batches of A's and B's features, both `(B, N, D)`.

    Raises:
        ValueError: there is no batch.
    """
    scatter, cosines, images, moved, length = Scatter(), [], 0, 0.0, 0.0
    for a_BND, b_BND in pairs:
        a_ND, b_ND = (x.flatten(0, 1).to("cpu", torch.float64) for x in (a_BND, b_BND))
        images += len(a_BND)
        scatter.add(a_ND, b_ND)
        cosines.append(_cosines(a_ND, b_ND))
        moved += float((b_ND - a_ND).square().sum())
        length += float(a_ND.square().sum())
    if not cosines:
        raise ValueError("no features were given")
    every = torch.cat(cosines)
    ordered = every.sort().values
    percentiles = {p: float(ordered[round(p / 100 * (len(ordered) - 1))]) for p in PERCENTILES}
    distance = (moved / (length or 1.0)) ** 0.5
    return Drift(images, len(every), float(every.mean()), percentiles, distance, scatter.cka())
