"""One training step of LLaVA-1.5 in several ways on the same weights, so that they can be compared.

`transformers` is the plain step of LlavaForConditionalGeneration, `ours` that of packed_step.py. A benchmark may add
the original code as a third. All of them train the same modules: weights, adapters and gradients are shared.
Random weights of a given geometry, random pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_ohd.llava15.conversation import IMAGE_TOKEN
from llava_ohd.llava15.dataset import Batches
from llava_ohd.llava15.mixture import Row
from llava_ohd.llava15.packed_step import packed
from llava_ohd.llava15.stages import trainable
from llava_ohd.llava15.trainer import RowOrder

__all__ = ["GEOMETRIES", "OURS", "TRANSFORMERS", "Geometry", "Stage", "Way", "batches"]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a LLaVA.

    Attributes:
        width: Of the language model; `layers`, `heads`, `mlp` are its own too.
        tower: Width of the tower, with `tower_layers` and `tower_heads`.
        image: Side of an image in pixels, of square patches with side `patch`.
        words: Vocabulary.
        lora_r: Rank of the adapters.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    tower: int
    tower_layers: int
    tower_heads: int
    image: int
    patch: int
    words: int
    lora_r: int

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2

    def config(self) -> LlavaConfig:
        """Returns the configuration of transformers' model."""
        tower: dict[str, Any] = {"hidden_size": self.tower, "intermediate_size": 4 * self.tower}
        tower |= {"num_hidden_layers": self.tower_layers, "num_attention_heads": self.tower_heads}
        tower |= {"model_type": "clip_vision_model", "image_size": self.image, "patch_size": self.patch}
        text: dict[str, Any] = {"hidden_size": self.width, "intermediate_size": self.mlp, "vocab_size": self.words}
        text |= {"model_type": "llama", "num_hidden_layers": self.layers, "num_attention_heads": self.heads}
        text |= {"max_position_embeddings": 4096, "use_cache": False}
        return LlavaConfig(
            vision_config=tower, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=self.image_tokens
        )


GEOMETRIES = {
    "7b": Geometry(4096, 32, 32, 11008, 1024, 24, 16, 336, 14, 32000, 128),
    "13b": Geometry(5120, 40, 40, 13824, 1024, 24, 16, 336, 14, 32000, 128),
    "quarter": Geometry(1024, 8, 8, 2752, 256, 6, 4, 336, 14, 32000, 32),
    "eighth": Geometry(512, 4, 4, 1376, 128, 3, 2, 336, 14, 32000, 16),
    "tiny": Geometry(64, 3, 4, 172, 32, 3, 4, 32, 8, 512, 4),
}
"""LLaVA-1.5-7B and 13B; all widths, depths and ranks of the 7B divided by 4 and by 8; a toy. All but that have its 576
image tokens, its vocabulary of 32,000 and its 128 (64 in the tower) numbers per head."""


class Way(NamedTuple):
    """How the loss of a step is computed.

    Attributes:
        name: For tables.
        batch: From stage and padded batch to what the way's own data loader would have made.
        loss: From stage and that batch to the loss.
    """

    name: str
    batch: Callable[["Stage", dict[str, Any]], dict[str, Any]]
    loss: Callable[["Stage", dict[str, Any]], Tensor]


def _as_it_is(_: "Stage", batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _without_hidden_image(_: "Stage", batch: dict[str, Any]) -> dict[str, Any]:
    """Takes the image away again that `Batches` hides in a batch of text only: plain transformers needs none."""
    length = int(batch["attention_mask"].sum(1).max())
    if not ((batch["input_ids"] == IMAGE_TOKEN) & (batch["attention_mask"] == 0)).any():
        return batch
    return {name: batch[name][:, :length] for name in ("input_ids", "labels", "attention_mask")}


def _transformers_loss(stage: "Stage", batch: dict[str, Any]) -> Tensor:
    loss: Tensor = type(stage.model).forward(stage.model, **batch).loss
    return loss


def _our_loss(stage: "Stage", batch: dict[str, Any]) -> Tensor:
    loss: Tensor = stage.model(**batch).loss
    return loss


TRANSFORMERS = Way("transformers", _without_hidden_image, _transformers_loss)
OURS = Way("ours", _as_it_is, _our_loss)


class Stage:
    """Model, optimiser and batches of one stage.

    Args:
        geometry: One of `GEOMETRIES`.
        stage: `projector` or `lora`.
        rows: Per batch its rows.
        device: `cpu` or `cuda`.
        bf16: Weights in bfloat16.
        checkpointing: Recompute layers in the backward.
        lora_dropout: As a fraction; LLaVA-1.5: 0.05.
    """

    def __init__(
        self,
        geometry: str,
        stage: str,
        rows: list[list[Row]],
        device: str = "cpu",
        bf16: bool = False,
        checkpointing: bool = False,
        lora_dropout: float = 0.05,
    ) -> None:
        torch.manual_seed(0)
        self.geometry, self.stage, self.device = GEOMETRIES[geometry], stage, torch.device(device)
        with self.device:
            model: Any = LlavaForConditionalGeneration(self.geometry.config())
        self.model: Any = packed(model.to(torch.bfloat16 if bf16 else torch.float32))
        self.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: (given[0].clamp(min=0),))
        rank = self.geometry.lora_r
        lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": lora_dropout, "bias": "none"}
        trained = trainable(self.model, stage, lora, float32=False).train()  # in one type, as under DeepSpeed
        if checkpointing:
            trained.activation_checkpointing_enable()
            trained.enable_input_require_grads()
        self.weights = [weight for weight in trained.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6, fused=True)
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()  # allocates its moments
        self._rows = rows

    def batch(self, number: int, way: Way) -> dict[str, Any]:
        """Returns batch `number` as the way's data loader makes it, on the model's device; pixels are random."""
        pixels = torch.Generator().manual_seed(number)
        size = self.geometry.image
        examples = [
            {
                "number": place,
                "input_ids": ids,
                "labels": labels,
                "pixel_values": torch.randn(3, size, size, generator=pixels) if IMAGE_TOKEN in ids else None,
            }
            for place, (ids, labels) in enumerate(self._rows[number])
        ]
        made = Batches(self.geometry.image_tokens, size)(examples)
        made.pop("numbers")
        moved: dict[str, Any] = send_to_device(way.batch(self, made), self.device)
        return moved

    def tokens(self, number: int) -> int:
        """Returns the tokens of batch `number`, image tokens counted, padding not."""
        return sum(len(ids) for ids, _ in self._rows[number])

    def set_dropout(self, fraction: float) -> None:
        """Sets the dropout of the adapters; two ways agree only without."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = fraction


def batches(rows: list[Row], size: int, count: int) -> list[list[Row]]:
    """Puts rows together as LLaVA does in stage lora (`--group_by_modality_length`), on one device.

    Returns:
        `count` batches; where there are rows of text only, the last one is of those.
    """
    image = [IMAGE_TOKEN in ids for ids, _ in rows]
    lengths = [len(ids) if shown else -len(ids) for (ids, _), shown in zip(rows, image, strict=True)]
    order = list(RowOrder(lengths, size, 1, seed=0, pool=1))
    made = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    kinds = {kind: [group for group in made if {image[i] for i in group} == {kind}] for kind in (True, False)}
    chosen = kinds[True][: count - bool(kinds[False])] + kinds[False][:1]
    return [[rows[i] for i in group] for group in chosen]
