"""Two ways through CLIP's towers for a batch of OHD-Caps: ours, and that of the released code.

The released way pads all 28 captions of every image to 77 tokens, encodes each of them (the filler "###" as well) and
runs transformers' own towers to the end. Ours encodes every beginning of a caption once (`clip/captions.py`) and ends
both towers at the tokens that the loss looks at. Random weights of the true geometry, random pixels, real captions;
reading images is left out on both sides.

Source: Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/finetune_clip.py `tokenize_captions`, modeling_clip.py
`CLIPModel.forward`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from llava_ohd.clip.batching import OhdData
from llava_ohd.clip.captions import encode_captions
from llava_ohd.clip.embedding import encode_images
from llava_ohd.clip.loss import LossConfig, clip_loss
from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import OhdRow

__all__ = ["GEOMETRIES", "SLOTS", "WAYS", "Stage", "Way", "clip_config", "read_mixture"]

SLOTS = 28
"""Captions of an image in the released batch, filler included."""

MIXTURE = ("dev/coco_annotations.json", *(f"test/{name}_annotations.json" for name in ("coco", "flickr", "nocaps")))
"""The files whose rows are about hallucination, with 27 negatives each."""

GEOMETRIES: dict[str, tuple[dict[str, int], dict[str, int], int]] = {
    "vit-b-32": (
        {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
        {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12},
        512,
    ),
    "vit-l-14-336": (
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14},
        {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
        768,
    ),
    "tiny": (
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2},
        32,
    ),
}
"""Vision tower, text tower, width of the embeddings; as openai/clip-vit-base-patch32 and clip-vit-large-patch14-336."""


class Way(NamedTuple):
    """How the two towers are run.

    Attributes:
        name: `released` or `ours`.
        images: From model and batch to image features (B, D).
        texts: From model and batch to caption features (B, SLOTS, D), the right caption first.
    """

    name: str
    images: Callable[[Any, dict[str, Any]], Tensor]
    texts: Callable[[Any, dict[str, Any]], Tensor]


def _released_images(model: Any, batch: dict[str, Any]) -> Tensor:
    return model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output


def _released_texts(model: Any, batch: dict[str, Any]) -> Tensor:
    features = model.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    return features.unflatten(0, (-1, SLOTS))


def _our_images(model: Any, batch: dict[str, Any]) -> Tensor:
    return encode_images(model, batch["pixel_values"])


def _our_texts(model: Any, batch: dict[str, Any]) -> Tensor:
    places_BK = torch.cat([batch["caption"][:, None], batch["negative"]], 1)
    return F.embedding(F.pad(places_BK, (0, SLOTS - places_BK.shape[1])), encode_captions(model, batch["captions"]))


WAYS = (Way("released", _released_images, _released_texts), Way("ours", _our_images, _our_texts))


class _RandomPixels:
    """Stands in for `clip.embedding.Images`."""

    def __init__(self, count: int, size: int) -> None:
        self._pixels = torch.randn(count, 3, size, size)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        return self._pixels[list(indices)]


class Stage:
    """Model, optimiser and batches; both ways train the same model, so that they can be compared at the same weights.

    Args:
        geometry: One of `GEOMETRIES`.
        rows: OHD-Caps rows; batch n holds rows n * batch_size and the following.
        tokenizer: CLIP's; it decides the number of tokens.
        batch_size: Images a step.
        device: `cpu` or `cuda`.
        bf16: Towers in bfloat16 autocast.
        checkpointing: Recompute layers in the backward, in both ways.
    """

    def __init__(
        self,
        geometry: str,
        rows: Sequence[OhdRow],
        tokenizer: Any,
        batch_size: int,
        device: str = "cpu",
        bf16: bool = False,
        checkpointing: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.bf16, self.batch_size, self._rows = torch.device(device), bf16, batch_size, rows
        self._tokenizer = tokenizer
        self.model = CLIPModel(clip_config(geometry, tokenizer)).train().to(self.device)
        if checkpointing:
            self.model.activation_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.1, fused=True)
        pixels: Any = _RandomPixels(len({row.image for row in rows}), GEOMETRIES[geometry][0]["image_size"])
        self._data = OhdData(rows, pixels, tokenizer)

    def padded(self, number: int) -> dict[str, Any]:
        """Returns the token ids of batch `number` as the released data loader has them ready: (B * SLOTS, 77)."""
        rows = self._rows[number * self.batch_size : (number + 1) * self.batch_size]
        captions = [text for row in rows for text in [*row.captions, *["###"] * (SLOTS - len(row.captions))]]
        return dict(
            self._tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        )

    def tree(self, number: int) -> dict[str, Any]:
        """Returns batch `number` as our data loader makes it."""
        start = number * self.batch_size
        batch: dict[str, Any] = self._data.collate(range(start, start + self.batch_size))
        batch["valid"] = F.pad(batch["valid"], (0, SLOTS - 1 - batch["valid"].shape[1]))
        return batch

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch on the model's device."""
        return send_to_device(batch, self.device)

    def loss(self, images_BD: Tensor, texts_BKD: Tensor, valid_BK: Tensor) -> Tensor:
        """Returns the loss that the released code computes, of either way's features."""
        config = LossConfig(mode="released")
        return clip_loss(images_BD, texts_BKD[:, 0], texts_BKD[:, 1:], valid_BK, self.model.logit_scale, config).total


def clip_config(geometry: str, tokenizer: Any) -> CLIPConfig:
    """Returns the configuration of a geometry, with the vocabulary of a tokenizer."""
    vision, text, width = GEOMETRIES[geometry]
    vision, text = ({**part, "intermediate_size": 4 * part["hidden_size"]} for part in (vision, text))
    specials = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {"vocab_size": len(tokenizer), "projection_dim": width, **specials}
    return CLIPConfig(vision_config={**vision, "projection_dim": width}, text_config=text, projection_dim=width)


def read_mixture(folder: Path, file: str | None, count: int) -> list[OhdRow]:
    """Reads rows from one file in the folder, or from all of `MIXTURE` in turn.

    Raises:
        DataFormatError: a file is missing or has no such rows, or there are fewer than `count`.
    """
    files = [read_rows(folder / name) for name in ([file] if file else MIXTURE)]
    rows = [row for turn in zip(*files, strict=False) for row in turn][:count]
    if len(rows) < count:
        raise DataFormatError(f"{folder} has {len(rows)} rows, {count} are needed; give fewer repetitions or images")
    return rows
