"""An old projector for a new encoder without training: the affine map back to the old features, folded into it.

    A, b = argmin  sum over patch tokens of || A x + b - y ||²      x: new encoder's feature, y: the old one's
    W1 (A x + b) + c  =  (W1 A) x + (W1 b + c)                      W1, c: first layer of the projector

The fold is exact, so that the model has as many weights and takes as long as before. Sums of products are kept instead
of features, in float64; a tenth of the batches is held out, and tells how well the map does on what it was not made of.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_ohd.errors import DataFormatError
from llava_ohd.tower.drift import Scatter

__all__ = ["Affine", "fit", "fold"]

_HELD_OUT = 10  # of so many batches one
_FIRST = "mm_projector.0"


@dataclass(frozen=True)
class Affine:
    """A map from a new encoder's features to an old one's.

    Attributes:
        weight: A, (C, D), float64.
        bias: b, (C), float64.
        tokens: Patch tokens that it was fitted to.
        explained: Share of the old features' variance that it explains on these, at most 1.
        explained_held_out: The same on held-out tokens.
        explained_before: What the new features explain on the held-out tokens as they are; may be far below 0. None
            where the two have different widths.
    """

    weight: Tensor
    bias: Tensor
    tokens: int
    explained: float
    explained_held_out: float
    explained_before: float | None


def fit(pairs: Iterable[tuple[Tensor, Tensor]]) -> Affine:
    """Fits the map by least squares.

    Args:
        pairs: Batches of features of the same images, of the new encoder (B, N, D) and of the old one (B, N, C).

    Raises:
        DataFormatError: there are too few images.
    """
    used, held_out = Scatter(), Scatter()
    for place, (new, old) in enumerate(pairs):
        target = held_out if place % _HELD_OUT == 1 else used
        target.add(*(side.flatten(0, 1).to("cpu", torch.float64) for side in (new, old)))
    if not held_out.rows or used.rows <= len(used.means[0]) + 1:
        raise DataFormatError(
            f"{used.rows} patch tokens in {'two' if held_out.rows else 'one'} or more batches are too few to fit a map "
            f"of {len(used.means[0]) if used.means else 0} features; give more --images"
        )
    weight = (torch.linalg.pinv(used.products[0, 0], hermitian=True) @ used.products[0, 1]).T
    bias = used.means[1] - weight @ used.means[0]
    same = weight.shape[0] == weight.shape[1]
    identity = (torch.eye(len(weight), dtype=weight.dtype), torch.zeros_like(bias))
    before = _explained(held_out, *identity) if same else None
    return Affine(weight, bias, used.rows, _explained(used, weight, bias), _explained(held_out, weight, bias), before)


def _explained(sums: Scatter, weight: Tensor, bias: Tensor) -> float:
    """Returns 1 - sum ||A x + b - y||² / sum ||y - mean||² out of the sums alone."""
    inner, outer, mixed = sums.products[0, 0], sums.products[1, 1], sums.products[0, 1]
    shift = weight @ sums.means[0] + bias - sums.means[1]
    left = ((weight @ inner) * weight).sum() - 2 * (weight.T * mixed).sum() + outer.trace()
    left = left + sums.rows * shift.square().sum()
    return float(1 - left / outer.trace()) if outer.trace() > 0 else 1.0


def fold(projector: Mapping[str, Tensor], affine: Affine) -> dict[str, Tensor]:
    """Puts the map in front of a projector, by changing its first layer.

    Args:
        projector: As `model_dir.read_projector` names it.
        affine: The map.

    Returns:
        The projector for the new encoder's features, in the types of the old one.
    """
    first, bias = (projector[f"{_FIRST}.{part}"] for part in ("weight", "bias"))
    folded = {
        f"{_FIRST}.weight": (first.double() @ affine.weight).to(first.dtype),
        f"{_FIRST}.bias": (first.double() @ affine.bias + bias.double()).to(bias.dtype),
    }
    return dict(projector) | folded
