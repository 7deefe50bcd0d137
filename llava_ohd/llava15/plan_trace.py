"""The training step at its true sizes, run on tensors that have shapes but no memory.

    traced(Step(config, "lora", checkpointing=True), rows).peak

Nothing is estimated by formula: the step is that of packed_step.py on transformers' own classes, and every tensor that
it makes is counted from its first to its last moment, every operation with its FLOPs. Layers of the language model are
alike, so that it is run with three and with four of them; the rest is their difference, times the layers that are left.

Weights count for nothing here (plan_memory.py has them). Gradients of weights count while they are there: with
`keep_gradients` until the end, else, as under ZeRO, until the moment after they were made.
"""

import copy
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlavaForConditionalGeneration

from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN
from llava_ohd.llava15.mixture import Row
from llava_ohd.llava15.packed_step import packed, packed_loss, run_tower
from llava_ohd.llava15.packing import Packed
from llava_ohd.llava15.stages import trainable

__all__ = ["Step", "Traced", "traced"]

_DEPTHS = (3, 4)  # layers of the language model; the last is not like the others (packed_step.py)


@dataclass(frozen=True)
class Traced:
    """What a step takes beside weights and optimiser.

    Attributes:
        early: Peak in bytes until the first layer's turn in the backward; the activations of all layers are there.
        late: Peak in bytes from then on; where gradients are kept, they are all there.
        flops: Of forward, backward and recomputation; causal attention counts half of the square.
    """

    early: float
    late: float
    flops: float

    @property
    def peak(self) -> float:
        """Peak in bytes."""
        return max(self.early, self.late)


@dataclass(frozen=True)
class Step:
    """What is trained how.

    Attributes:
        config: The geometry: a `LlavaConfig`.
        stage: `projector`, `lora`, `qlora` or `full`. qlora is traced as lora.
        dtype: Of the model.
        checkpointing: Recompute layers in the backward.
        lora_r: Rank of the adapters.
        tower: The tower trains too.
        trained32: As the Trainer without DeepSpeed: what trains is float32 and operations convert to `dtype`.
        split: As ZeRO-3, under which the head is not used piece by piece.
        keep_gradients: Gradients stay until the step's end, as without DeepSpeed.
    """

    config: Any
    stage: str
    dtype: torch.dtype = torch.bfloat16
    checkpointing: bool = True
    lora_r: int = 128
    tower: bool = False
    trained32: bool = False
    split: bool = False
    keep_gradients: bool = False

    def model(self, layers: int | None = None) -> Any:
        """Returns the model on the meta device, ready to train but without numbers; with other layers if given."""
        config: Any = copy.deepcopy(self.config)
        config.text_config.num_hidden_layers = layers or config.text_config.num_hidden_layers
        with torch.device("meta"):
            bare: Any = LlavaForConditionalGeneration(config)
            model = packed(bare.to(self.dtype))
            lora = {"r": self.lora_r, "lora_alpha": 2 * self.lora_r, "lora_dropout": 0.05, "bias": "none"}
            model = trainable(model, self.stage, lora, tower=self.tower)
        return (model if self.trained32 else model.to(self.dtype)).train()


def traced(step: Step, rows: Sequence[Row]) -> Traced:
    """Traces forward and backward of a batch: rows of ids, `IMAGE_TOKEN` for each patch, and labels."""
    depth = step.config.text_config.num_hidden_layers
    few, more = (astuple(_trace(step, rows, layers)) for layers in _DEPTHS)
    return Traced(*(a + (b - a) * (depth - _DEPTHS[0]) for a, b in zip(few, more, strict=True)))


def _trace(step: Step, rows: Sequence[Row], layers: int) -> Traced:
    model = step.model(layers)
    if step.checkpointing:
        model.activation_checkpointing_enable()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with FakeTensorMode():
        weights = _fake_weights(model, step.split)
        batch, pixels = _batch(rows, step.config, step.dtype)
        live = _Live([*weights, *tree_leaves(vars(batch)), pixels])
        for weight in weights:
            if weight.requires_grad and not step.keep_gradients:
                weight.register_post_accumulate_grad_hook(_drop_gradient)
        base.model.language_model.layers[0].register_forward_hook(live.late_from_gradient)
        converts = step.trained32 and step.dtype != torch.float32
        casts: Any = torch.autocast("cpu", step.dtype) if converts else nullcontext()
        with live, casts:
            features = run_tower(base, pixels)[:, None] if len(pixels) else None
            loss = packed_loss(base, batch, features)
            del features
            loss.backward()
    return Traced(live.early, live.late, live.flops)


def _fake_weights(model: nn.Module, split: bool) -> list[nn.Parameter]:
    """Puts a tensor without memory, but with a device, in place of every weight and buffer."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
                module._parameters[name] = made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    weights = list(made.values())
    for weight in weights if split else ():
        weight.ds_id = 0
    return weights


def _batch(rows: Sequence[Row], config: Any, dtype: torch.dtype) -> tuple[Packed, Tensor]:
    """Returns rows as `pack` would, of the right shapes, and pixels of their images."""
    patches = sum(ids.count(IMAGE_TOKEN) for ids, _ in rows)
    images = patches // config.image_seq_length
    labelled = sum(label != IGNORE for _, labels in rows for label in labels[1:])
    size, total = config.vision_config.image_size, sum(len(ids) for ids, _ in rows)

    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long)

    batch = Packed(
        ids_1T=whole(1, total),
        positions_1T=whole(1, total),
        lengths=[len(ids) for ids, _ in rows],
        labelled_K=whole(labelled),
        targets_K=whole(labelled),
        patches_P=whole(patches),
        features_P=whole(patches),
        image_tokens=patches,
    )
    return batch, torch.zeros(images, 3, size, size, dtype=dtype)


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None


class _Live(TorchDispatchMode):
    """Counts bytes that are alive, and FLOPs; torch's `FlopCounterMode` would keep tensors of recomputed layers alive.

    Args:
        free: Tensors that count for nothing.
    """

    def __init__(self, free: Sequence[Any]) -> None:
        super().__init__()
        self.now, self.early, self.late, self.flops = 0, 0, 0, 0.0
        self._ends = False
        self._free = [tensor.untyped_storage() for tensor in free if isinstance(tensor, Tensor)]
        self._sizes = {id(storage): 0 for storage in self._free}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (count := _COUNTS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        self.now += self._sizes[key]
        if self._ends:
            self.late = max(self.late, self.now)
        else:
            self.early = max(self.early, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def late_from_gradient(self, module: nn.Module, given: Any, out: Any) -> None:
        """Forward hook of the first layer: what is behind its turn in the backward is late."""
        states = out[0] if isinstance(out, tuple) else out
        if states.requires_grad:
            states.register_hook(self._end)

    def _end(self, gradient: Tensor) -> None:
        self._ends, self.late = True, max(self.late, self.now)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, out_val: Any, **_: Any) -> float:
    causal = len(rest) > 1 and rest[1]
    return float(sdpa_flop_count(query.shape, key.shape, value.shape)) / (2 if causal else 1)


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> float:
    causal = rest[3]  # behind out, logsumexp and dropout
    flops = sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)
    return float(flops) / (2 if causal else 1)


_COUNTS: dict[Any, Any] = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
