"""How much of the class token's attention falls on each object: as a sum, and per area.

The last layer's attention, mean over heads, from the class token to the patches (the class token's look at itself left
out), made to sum to 1. A box gets the share of each patch that it covers. The published measure is that sum, which
grows with the box even where the encoder looks nowhere in particular; the density is the sum over the share of the
picture that the box covers, so that looking everywhere alike is a density of 1 for any box.

Boxes are in pixels of the file; they are taken through the resize and centre crop of the image processor. An object
that the crop cuts away is left out.

Source: clip-analysis/Clip-Analysis (attention notebooks; sums of an upsampled map, which this equals); arXiv
2502.19842.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from llava_ohd.clip.embedding import Images
from llava_ohd.clip.layers import heads
from llava_ohd.errors import DataFormatError
from llava_ohd.probes.estimates import Estimate, mean_of
from llava_ohd.probes.pictures import Box, Picture, Placed
from llava_ohd.progress import track

__all__ = ["ObjectAttention", "attention_maps", "crop_settings", "in_crop", "object_attention", "on_box"]


@dataclass(frozen=True)
class ObjectAttention:
    """Attention on objects.

    Attributes:
        positions: Slots, or sizes (`small` is the mean over the small objects of a picture).
        share: Of the attention on all patches, mean over pictures.
        density: The same over the share of the picture's area: 1 where the encoder looks at nothing in particular.
        area: Share of the picture that the box covers.
    """

    positions: tuple[str, ...]
    share: tuple[Estimate, ...]
    density: tuple[Estimate, ...]
    area: tuple[Estimate, ...]


@torch.inference_mode()
def attention_maps(model: Any, images: Images, count: int | None = None, batch: int = 64) -> Tensor:
    """Returns where the class token looks in the last layer.

    Args:
        model: CLIPModel in eval mode.
        images: The images.
        count: Of the first so many; None: of all.
        batch: Images at a time.

    Returns:
        float32 (B, G, G), rows from the top; each map sums to 1.
    """
    last = model.vision_model.encoder.layers[-1]
    parts = []
    total = len(images) if count is None else count
    for start in track(range(0, total, batch), "looking where it looks"):
        pixels = images.pixels(range(start, min(start + batch, total))).to(model.device)
        states_BNC = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        parts.append(_class_row(last, states_BNC).float().cpu())
    maps = torch.cat(parts)
    side = round(maps.shape[1] ** 0.5)
    return maps.view(len(maps), side, side)


def _class_row(layer: Any, states_BNC: Tensor) -> Tensor:
    """Returns (B, G * G): the class token's attention to the patches, mean over heads, summing to 1."""
    attention, normed_BNC = layer.self_attn, layer.layer_norm1(states_BNC)
    query = heads(attention.q_proj(normed_BNC[:, :1]), attention.head_dim)
    key = heads(attention.k_proj(normed_BNC), attention.head_dim)
    row = (query @ key.transpose(2, 3) * attention.head_dim**-0.5).softmax(-1).mean(1)[:, 0, 1:]
    return row / row.sum(1, keepdim=True)


def in_crop(box: Box, size: tuple[int, int], shortest: int, crop: int) -> Box | None:
    """Takes a box through resize and centre crop.

    Args:
        box: Left, top, width, height in pixels of the file.
        size: Width and height of the file.
        shortest: Pixels that the shorter side is resized to.
        crop: Side of the crop, pixels.

    Returns:
        The part inside the crop, as shares of its side; None where nothing is left.
    """
    scale = shortest / min(size)
    ends = []
    for start, length, whole in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        shift = (whole * scale - crop) / 2
        near, far = ((place * scale - shift) / crop for place in (start, start + length))
        ends.append((min(max(near, 0.0), 1.0), min(max(far, 0.0), 1.0)))
    (left, right), (top, bottom) = ends
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def on_box(attention: Tensor, box: Box) -> float:
    """Returns how much of a map (G, G) falls on a box in shares of the side: a patch counts as far as it is covered."""
    left, top, width, height = box
    columns, rows = _covered(left, width, attention.shape[1]), _covered(top, height, attention.shape[0])
    return float(rows @ attention.double() @ columns)


def _covered(start: float, length: float, cells: int) -> Tensor:
    """Returns what share of each of `cells` equal parts of 0 .. 1 lies in start .. start + length."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    near, far = start * cells, (start + length) * cells
    return (edges[1:].clamp(max=far) - edges[:-1].clamp(min=near)).clamp(min=0.0)


def object_attention(
    maps: Tensor, pictures: Sequence[Picture], shortest: int, crop: int, by_slot: bool = False
) -> ObjectAttention:
    """Sums attention over the boxes of the objects.

    Args:
        maps: (P, G, G), one per picture, each summing to 1.
        pictures: What they show, with boxes.
        shortest: Pixels that the image processor resizes the shorter side to.
        crop: Side of its crop, pixels.
        by_slot: By slot, of pictures with the same slots; otherwise by size.

    Raises:
        DataFormatError: the set does not say where the objects are.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for attention, picture in zip(maps, pictures, strict=True):
        of: dict[str, list[tuple[float, float]]] = {}
        for item in picture.by_size if not by_slot else picture.objects:
            measured = _measured(attention, picture, item, shortest, crop)
            if measured is not None:
                of.setdefault(item.slot if by_slot else "large" if item.large else "small", []).append(measured)
        for position, found in of.items():
            share, density, area = mean(s for s, _ in found), mean(s / a for s, a in found), mean(a for _, a in found)
            rows.setdefault(position, []).append((share, density, area))
    columns = [list(zip(*values, strict=True)) for values in rows.values()]
    return ObjectAttention(tuple(rows), *(tuple(mean_of(column[k]) for column in columns) for k in range(3)))


def _measured(
    attention: Tensor, picture: Picture, item: Placed, shortest: int, crop: int
) -> tuple[float, float] | None:
    """Returns the share of the attention and of the area; None where the crop leaves nothing of the object."""
    if item.box is None or picture.size is None:
        raise DataFormatError(f"{picture.image}: no box is known for {item.name}; attention needs objects.json")
    box = in_crop(item.box, picture.size, shortest, crop)
    return None if box is None else (on_box(attention, box), box[2] * box[3])


def crop_settings(processor: Any) -> tuple[int, int]:
    """Returns to how many pixels an image processor resizes the shorter side, and the side of its crop."""
    return int(processor.size["shortest_edge"]), int(processor.crop_size["height"])
