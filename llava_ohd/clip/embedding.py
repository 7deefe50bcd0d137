"""Image files to pixels, and both captions and images to embeddings, each computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava_ohd import tower
from llava_ohd.clip.captions import encode_captions, share_beginnings, to_device, tokenise
from llava_ohd.clip.layers import feed_forward, heads, run_layer
from llava_ohd.errors import ImageError
from llava_ohd.progress import track

__all__ = ["Images", "embed_captions", "embed_images", "encode_images"]


class Images:
    """Images by file name, ready for the encoder.

    Each is opened and resized once; where all fit into `memory`, this happens here, so that a truncated image shows
    before hours of training; a missing one always does. Kept as uint8, a 64-pixel image takes 12 KiB, a 336-pixel one
    331 KiB.

    Args:
        folder: Image folder that the names are relative to.
        names: File names, each once.
        processor: Image processor of the encoder (`tower.load_processor`).
        memory: Most bytes to keep; above it, images are opened again whenever they are needed.

    Raises:
        ImageError: an image is missing, truncated or no image; the message gives its path.
    """

    def __init__(self, folder: Path, names: Sequence[str], processor: Any, memory: int = 2**30) -> None:
        self._folder, self._names, self._processor = folder, names, processor
        self._mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self._std = torch.tensor(processor.image_std).view(3, 1, 1)
        self._kept: list[Tensor] | None = None
        if names and len(names) * self._open(0).numel() <= memory:
            self._kept = [self._open(i) for i in track(range(len(names)), "reading images")]
        elif missing := self._missing():
            raise ImageError(
                f"{len(missing)} of {len(names)} images are not in {folder}, such as {missing[0]}; give their folder "
                "as --images"
            )

    def __len__(self) -> int:
        return len(self._names)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Returns what the image processor makes of these images: float32 (B, 3, S, S), normalised."""
        images = [self._kept[i] if self._kept else self._open(i) for i in indices]
        return (torch.stack(images) * self._processor.rescale_factor - self._mean) / self._std

    def _open(self, index: int) -> Tensor:
        """Returns one image after resize and centre crop: uint8 (3, S, S)."""
        pixels = self._processor(self._image(index), do_rescale=False, do_normalize=False, return_tensors="pt")[
            "pixel_values"
        ]
        return pixels[0].to(torch.uint8)

    def _missing(self) -> list[str]:
        """Returns the images that are not there."""
        return [name for name in self._names if not (self._folder / name).is_file()]

    def _image(self, index: int) -> Image.Image:
        return tower.open_image(self._folder / self._names[index])


def encode_images(model: Any, pixel_values: Tensor) -> Tensor:
    """Computes the projected image features of CLIP; of the last layer, for the class token only.

    Args:
        model: CLIPModel.
        pixel_values: float (B, 3, S, S), normalised.

    Returns:
        (B, D), not normalised.

    Source: transformers `CLIPVisionTransformer.forward`.
    """
    vision = model.vision_model
    states_BNC = vision.pre_layrnorm(vision.embeddings(pixel_values))
    *before, last = vision.encoder.layers
    for layer in before:
        states_BNC = run_layer(_layer, layer, states_BNC, states_BNC.shape[1])
    states_B1C = run_layer(_layer, last, states_BNC, 1)
    return model.visual_projection(vision.post_layernorm(states_B1C.squeeze(1)))


def _layer(layer: Any, states_BNC: Tensor, keep: int) -> Tensor:
    """Runs one layer for the first `keep` tokens, which look at all of them: (B, keep, C)."""
    attention, normed_BNC = layer.self_attn, layer.layer_norm1(states_BNC)
    mixed_BHNC = F.scaled_dot_product_attention(
        heads(attention.q_proj(normed_BNC[:, :keep]), attention.head_dim),
        heads(attention.k_proj(normed_BNC), attention.head_dim),
        heads(attention.v_proj(normed_BNC), attention.head_dim),
    )
    states_BNC = states_BNC[:, :keep] + attention.out_proj(mixed_BHNC.transpose(1, 2).flatten(2))
    return states_BNC + feed_forward(layer.mlp, layer.layer_norm2(states_BNC))


@torch.inference_mode()
def embed_captions(model: Any, tokenizer: Any, captions: Sequence[str], batch: int = 512) -> tuple[Tensor, Tensor]:
    """Embeds captions, each different one once.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        captions: Any number; captions with the same tokens count as equal.
        batch: Captions at a time.

    Returns:
        Unit vectors (U, D) of the different captions, float32, and which of them each caption has: int64
        (len(captions),). Both on the CPU.
    """
    tokens = tokenise(tokenizer, captions)
    different = list(dict.fromkeys(tokens))  # in the order given: neighbours begin alike
    place = {row: index for index, row in enumerate(different)}
    parts = []
    for start in track(range(0, len(different), batch), "reading captions"):
        group = to_device(share_beginnings(different[start : start + batch]), model.device)
        parts.append(F.normalize(encode_captions(model, group).float(), dim=-1).cpu())
    return torch.cat(parts), torch.tensor([place[row] for row in tokens])


@torch.inference_mode()
def embed_images(model: Any, images: Images, batch: int = 64) -> Tensor:
    """Embeds images.

    Args:
        model: CLIPModel in eval mode.
        images: The images.
        batch: Images at a time.

    Returns:
        Unit vectors (len(images), D), float32, on the CPU.
    """
    parts = []
    for start in track(range(0, len(images), batch), "looking at images"):
        pixels = images.pixels(range(start, min(start + batch, len(images)))).to(model.device)
        parts.append(F.normalize(encode_images(model, pixels).float(), dim=-1).cpu())
    return torch.cat(parts)
