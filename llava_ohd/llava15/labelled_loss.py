"""The loss of the tokens that are trained, without keeping logits.

Logits of a 32,000-word vocabulary are the largest tensor of a training step: two bytes or four for every token and
word, several times over. Most tokens of LLaVA's rows (image, question, padding) have no label. Here the head runs for
labelled tokens only, and where it is frozen, some at a time: each chunk's gradient is computed at once from its
logits, which then go.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["labelled_loss"]

_CHUNK = 1024  # tokens: 131 MB of logits of 32,000 words in float32


def labelled_loss(head: nn.Module, states_KC: Tensor, targets_K: Tensor, count: Tensor | int | None) -> Tensor:
    """Returns the cross entropy of labelled tokens.

    Args:
        head: From states to logits, without bias.
        states_KC: What the head sees of the K tokens that predict a trained one.
        targets_K: The trained ones.
        count: What the sum is divided by: trained tokens of all accumulated batches; None: K.

    Returns:
        A scalar, float32.
    """
    weight: Any = getattr(head, "weight", None)
    kept_whole = type(head) is nn.Linear and head.bias is None and not hasattr(weight, "ds_id")  # not split by ZeRO-3
    if kept_whole and not weight.requires_grad and weight.dtype == states_KC.dtype:
        total: Tensor = _FrozenHead.apply(states_KC, weight, targets_K)  # type: ignore[no-untyped-call]
    else:
        total = F.cross_entropy(head(states_KC).float(), targets_K, reduction="sum")
    if count is None:
        return total / len(targets_K)
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


class _FrozenHead(torch.autograd.Function):
    """Sum of the cross entropy behind a linear head that does not train."""

    @staticmethod
    def forward(context: Any, states_KC: Tensor, weight_VC: Tensor, targets_K: Tensor) -> Tensor:
        total = torch.zeros((), device=states_KC.device)
        gradient_KC = torch.empty_like(states_KC)
        for start in range(0, len(states_KC), _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = F.linear(states_KC[rows], weight_VC).float()
            sums = logits.logsumexp(-1, keepdim=True)
            targets = targets_K[rows, None]
            total += (sums - logits.gather(1, targets)).sum()
            probabilities = logits.sub_(sums).exp_()
            probabilities.scatter_add_(1, targets, probabilities.new_full(targets.shape, -1.0))
            gradient_KC[rows] = probabilities.to(weight_VC.dtype) @ weight_VC
        context.save_for_backward(gradient_KC)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        [gradient_KC] = context.saved_tensors
        return gradient_KC * gradients[0], None, None
