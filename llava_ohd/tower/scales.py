"""S2: the features of an image at several sizes, side by side in the channels, from a tower that knows one size.

Each size is cut into tiles of the smallest size, the tower sees every tile, the tiles' features are put together again
and averaged down to the patch grid of the smallest size.

Source: LLaVA model/multimodal_encoder/clip_encoder.py `CLIPVisionTowerS2` @ c121f04, which calls the package s2wrapper
(bfshi/scaling_on_scales core.py `forward` @ 9c008a3; scales that are no multiples of the first: @ 31688b1).
"""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import interpolate

from llava_ohd.errors import EncoderFormatError

__all__ = ["DEFAULT_SCALES", "multiscale", "read_scales"]

DEFAULT_SCALES = "336,672,1008"


def read_scales(text: str) -> list[int]:
    """Returns the sizes of `--s2_scales 336,672,1008` in pixels, smallest first.

    Raises:
        EncoderFormatError: not positive numbers with commas between them.
    """
    sizes = [size.strip() for size in str(text).split(",")]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise EncoderFormatError(f"s2_scales is {text!r}; sizes in pixels with commas are expected, {DEFAULT_SCALES}")
    return sorted(map(int, sizes))


def multiscale(
    features: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, scales: list[int]
) -> torch.Tensor:
    """Returns the features of images at every scale.

    Args:
        features: From tiles (M, 3, S, S) to patch tokens (M, N, D), N a square number.
        images: (B, 3, H, W), any floating type; resized in float32.
        scales: Sides in pixels; the first is S.

    Returns:
        (B, N, D * len(scales)), in the type that `features` returns.
    """
    tile = scales[0]
    maps = [_at_scale(features, images, scale, tile) for scale in scales]
    side = maps[0].shape[-1]
    merged = torch.cat([_resized(one, side, "area") for one in maps], dim=1)
    return merged.flatten(2).transpose(1, 2).contiguous()


def _at_scale(
    features: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, scale: int, tile: int
) -> torch.Tensor:
    """Returns (B, D, h, w): the map of features at one scale."""
    count = math.ceil(scale / tile)
    resized = _resized(_resized(images, scale, "bicubic"), count * tile, "bicubic")
    tokens = features(_cut(resized, count))
    side = math.isqrt(tokens.shape[1])
    whole = _join(tokens.transpose(1, 2).unflatten(2, (side, side)), count)
    return _resized(whole, math.ceil(scale / (count * tile) * count * side), "area")


def _resized(images: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    # The same size again is the identity in both modes, bit for bit.
    if images.shape[-2:] == (side, side):
        return images
    return interpolate(images.float(), size=(side, side), mode=mode).to(images.dtype)


def _cut(images: torch.Tensor, count: int) -> torch.Tensor:
    """Cuts (B, C, H, W) into count x count tiles: (count * count * B, C, h, w), all images' first tiles first."""
    rows = images.unflatten(3, (count, -1)).unflatten(2, (count, -1))  # (B, C, count, h, count, w)
    return rows.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def _join(tiles: torch.Tensor, count: int) -> torch.Tensor:
    """Undoes `_cut`."""
    return tiles.unflatten(0, (count, count, -1)).permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
