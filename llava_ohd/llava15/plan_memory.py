"""What a GPU holds in training, for each way to split it over the ranks: from counted weights and a traced step.

W weights of 2 bytes, T of them train, N ranks. Under DeepSpeed with bf16 (in bytes, per GPU):

    ZeRO        weights   gradients      optimiser (float32 weights, Adam's m and v)   while it steps
    2           2 W       2 T/N + B      12 T/N                                        8 T/N
    2, offload  2 W       B              0; host: 16 T/N                               0
    3           2 W/N + G 2 T/N + B      12 T/N                                        8 T/N + 2 T/N
    3, offload  G         B              0; host: 16 T/N + 2 W/N                       0

B: two buckets of gradients on their way. G: weights gathered at one moment, at most `stage3_max_live_parameters`.
While the optimiser steps there are no activations: gradients in float32, and a temporary of torch's AdamW, take their
place. Without DeepSpeed, what trains is float32, with gradients and moments of its type; several ranks (DDP) add a
second set of gradients. The larger of the two moments counts.

Source: arXiv 1910.02054 section 3; deepspeed 0.19 runtime/zero/stage_1_and_2.py, stage3.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from llava_ohd.files import read_json
from llava_ohd.llava15.plan_trace import Traced

__all__ = ["RESERVE", "Memory", "Weights", "Zero", "memory", "quantized_bytes"]

RESERVE = 2 * 2**30
"""Bytes for what is not counted: the CUDA context, workspaces of libraries, NCCL, fragmentation. An assumption."""
_LIVE = 1_000_000_000  # DeepSpeed's default of stage3_max_live_parameters


@dataclass(frozen=True)
class Zero:
    """How a DeepSpeed file splits a model.

    Attributes:
        name: Of the file; `none` without DeepSpeed.
        stage: 0 (without DeepSpeed), 2 or 3.
        offload_optimizer: Optimiser states lie in host memory.
        offload_weights: So do weights.
        live: Weights that ZeRO-3 may gather at one moment.
    """

    name: str = "none"
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    live: int = _LIVE

    @classmethod
    def of(cls, file: Path) -> "Zero":
        """Reads a DeepSpeed file."""
        given = read_json(file).get("zero_optimization", {})

        def on_host(part: str) -> bool:
            return bool(given.get(part, {}).get("device", "none") != "none")

        live = int(given.get("stage3_max_live_parameters", _LIVE))
        return cls(file.stem, given.get("stage", 0), on_host("offload_optimizer"), on_host("offload_param"), live)


@dataclass(frozen=True)
class Weights:
    """Counted weights.

    Attributes:
        count: All of them.
        size: Their bytes.
        trained: Those that train.
        trained_size: Their bytes.
        unpacked: Bytes of the largest quantised layer when it is computed with.
    """

    count: int
    size: float
    trained: int
    trained_size: int
    unpacked: int = 0

    @classmethod
    def of(cls, model: nn.Module, bits: int = 16) -> "Weights":
        """Counts those of a model; with 4 or 8 bits as if the language model's adapted layers were quantised."""
        size, unpacked = 0.0, 0
        weights = dict(model.named_parameters())
        for name, weight in weights.items():
            if bits != 16 and re.search(r"language_model\..*\.base_layer\.weight$", name):
                size += quantized_bytes(weight.shape[0], weight.shape[1], bits)
                unpacked = max(unpacked, weight.nbytes)
            else:
                size += weight.nbytes
        trained = [weight for weight in weights.values() if weight.requires_grad]
        count = sum(weight.numel() for weight in weights.values())
        return cls(count, size, sum(w.numel() for w in trained), sum(w.nbytes for w in trained), unpacked)


def quantized_bytes(rows: int, columns: int, bits: int) -> float:
    """Returns the bytes of a linear layer under bitsandbytes: 8 bits with a scale a row, or 4 with double quantisation.

    In 4 bits, 64 weights share a scale of one byte, 256 scales one of four.
    """
    count = rows * columns
    return count + 4 * rows if bits == 8 else count / 2 + count / 64 + 4 * count / 64 / 256


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: Weights, or this rank's part of them.
        gathered: Weights that ZeRO-3 has gathered for the layers at work.
        gradients: Of weights.
        optimizer: Its states.
        activations: At the worst moment of forward and backward, with logits and loss.
        update: While the optimiser steps, in place of gradients and activations.
        host: Outside of the GPU.
    """

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float
    update: float
    host: float

    @property
    def total(self) -> float:
        """Bytes that the GPU must have."""
        step = max(self.gradients + self.activations, self.update)
        return self.weights + self.gathered + self.optimizer + step + RESERVE


def memory(weights: Weights, zero: Zero, ranks: int, step: Traced, width: int, fused: bool = False) -> Memory:
    """Adds up what a rank holds.

    Args:
        weights: Of the model; for `Zero()` in the types that they have without DeepSpeed.
        zero: How it is split.
        ranks: GPUs.
        step: Traced as for this `zero`; without DeepSpeed it holds the gradients.
        width: Of the language model: its square is the size of a bucket that is `"auto"`.
        fused: torch's fused AdamW, which needs no temporary.
    """
    activations = step.peak + weights.unpacked
    if zero.stage == 0:
        again = weights.trained_size if ranks > 1 else 0
        gradients = weights.trained_size + again
        update = gradients + (0 if fused else weights.trained_size)
        moments = 2 * weights.trained_size
        return Memory(weights.size, 0, gradients, moments, activations - weights.trained_size, update, 0)
    share = weights.trained / ranks
    buckets, on_gpu = 2 * 2 * width**2, not zero.offload_optimizer
    split = zero.stage == 3
    kept = weights.size / ranks if split else weights.size
    gathered = 2 * min(weights.count, zero.live) if split else 0
    host = (16 * share if zero.offload_optimizer else 0) + (kept if zero.offload_weights else 0)
    return Memory(
        weights=0 if zero.offload_weights else kept,
        gathered=gathered,
        gradients=(2 * share if on_gpu else 0) + buckets,
        optimizer=12 * share if on_gpu else 0,
        activations=activations,
        update=((4 if fused else 8) + (2 if split else 0)) * share if on_gpu else 0,
        host=host,
    )
