"""Embeddings of all processes, with gradients, so that n processes with b images each are one with n · b.

Each process computes the rows of its own images against the columns of everybody. Backward, the gradient of a column
is the sum of what all processes have for it; a trainer that averages gradients over processes (DDP, ZeRO) then has the
gradient of the mean over all rows, which is that of one process with the whole batch.

Source: the idea of `local_loss` and `gather_with_grad` in mlfoundations/open_clip src/open_clip/loss.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Everywhere", "gather", "gather_negatives", "ranks"]


@dataclass(frozen=True)
class Everywhere:
    """What all processes hold together, B images.

    Attributes:
        images_BD: Image embeddings.
        captions_BD: Embeddings of their captions.
        first: Which of the B is this process's first.
    """

    images_BD: Tensor
    captions_BD: Tensor
    first: int


def ranks() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(images_bD: Tensor, captions_bD: Tensor) -> Everywhere:
    """Gathers images and captions.

    Args:
        images_bD: This process's image embeddings; as many in every process.
        captions_bD: Embeddings of their captions.

    Raises:
        ValueError: the processes hold different numbers of images.
    """
    if ranks() == 1:
        return Everywhere(images_bD, captions_bD, 0)
    sizes = _everybodys(len(images_bD), images_bD.device)
    if len(set(sizes)) > 1:
        raise ValueError(f"processes hold {sizes} images each; their batches must have one size")
    first = dist.get_rank() * len(images_bD)
    return Everywhere(_gather(images_bD), _gather(captions_bD), first)


def gather_negatives(negatives_bKD: Tensor, valid_bK: Tensor) -> tuple[Tensor, Tensor]:
    """Gathers the negative captions of all images: embeddings (N, D) and which of them are valid, bool (N,)."""
    if ranks() > 1:
        slots = max(_everybodys(negatives_bKD.shape[1], negatives_bKD.device))
        more = slots - negatives_bKD.shape[1]
        negatives_bKD = _gather(F.pad(negatives_bKD, (0, 0, 0, more)))
        valid_bK = _gather(F.pad(valid_bK, (0, more)).float()) > 0
    return negatives_bKD.flatten(0, 1), valid_bK.flatten()


def _everybodys(number: int, device: torch.device) -> list[int]:
    """Returns a number of every process."""
    found = [torch.empty(1, dtype=torch.long, device=device) for _ in range(ranks())]
    dist.all_gather(found, torch.tensor([number], device=device))
    return [int(value) for value in found]


class _Gather(torch.autograd.Function):
    """Concatenates the tensors of all processes; torch's own with gradients is deprecated in one name or the other."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(ranks())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows :][: ctx.rows]


def _gather(tensor: Tensor) -> Tensor:
    """Returns the tensors of all processes, one after the other along the first dimension, with gradients."""
    gathered: Tensor = _Gather.apply(tensor)
    return gathered
