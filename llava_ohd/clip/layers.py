"""Parts that both towers of CLIP share, as fine-tuning runs them: equal to transformers' own, with less memory traffic.

Every linear map and normalisation is called as the module that it is, so that LoRA, ZeRO's hooks and autocast see it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["after_attention", "feed_forward", "heads", "projected", "run_layer"]

_SLOPE = 1.702


class _QuickGelu(torch.autograd.Function):
    """x · sigmoid(1.702 x) = silu(1.702 x) / 1.702, whose derivative is silu'(1.702 x).

    One tensor is kept for the backward instead of the two of transformers' `QuickGELUActivation`, and six passes over
    memory become one: at 4 x the width of a layer, these passes are what a step spends most on beside products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * _SLOPE
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(_SLOPE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, scaled)


def feed_forward(mlp: Any, states: Tensor) -> Tensor:
    """Returns what `CLIPMLP.forward` returns; any other activation than quick GELU is left to it."""
    if mlp.config.hidden_act != "quick_gelu":
        return mlp(states)
    return mlp.fc2(_QuickGelu.apply(mlp.fc1(states)))


def heads(states: Tensor, head_dim: int) -> Tensor:
    """Splits (B, L, C) into heads: (B, C / head_dim, L, head_dim)."""
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def projected(layer: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a layer's queries, keys and values (B, H, N, C / H) of states (B, N, C)."""
    attention, normed = layer.self_attn, layer.layer_norm1(states)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (heads(projection(normed), attention.head_dim) for projection in projections)
    return query, key, value


def after_attention(layer: Any, states: Tensor, mixed: Tensor) -> Tensor:
    """Returns a layer's output (B, N, C), given what its attention has mixed (B, H, N, C / H)."""
    states = states + layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return states + feed_forward(layer.mlp, layer.layer_norm2(states))


def run_layer(run: Callable[..., Tensor], layer: Any, *inputs: Any) -> Tensor:
    """Returns run(layer, *inputs); does so again in the backward where the model has gradient checkpointing enabled."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(partial(run, layer), *inputs)
    return run(layer, *inputs)
