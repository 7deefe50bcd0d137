"""Compares a tower with what it should be: its sizes, and every weight."""

from typing import Any

import torch

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.encoder_dir import Encoder
from llava_ohd.tower.live_towers import ADAPTED, core_of
from llava_ohd.tower.weights import TOWER_PREFIX, same_weight

__all__ = ["check_geometry", "check_same"]

_SAME_FUNCTION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_channels")


def check_geometry(old: Any, new: Any, name: str) -> None:
    """Compares two `CLIPVisionConfig`s in what the projector and the prompt depend on.

    Raises:
        EncoderFormatError: any difference; the message gives the numbers.
    """
    rows = {
        "hidden size": (old.hidden_size, new.hidden_size),
        "patches": ((old.image_size // old.patch_size) ** 2, (new.image_size // new.patch_size) ** 2),
        "layers": (old.num_hidden_layers, new.num_hidden_layers),
        "image size": (old.image_size, new.image_size),
    }
    wrong = [
        f"{what} {theirs} (the model's tower) and {ours}" for what, (theirs, ours) in rows.items() if theirs != ours
    ]
    if wrong:
        raise EncoderFormatError(
            f"encoder {name} does not fit this model: {'; '.join(wrong)}. Take an encoder of the same geometry, or "
            "train a new projector from the language model on"
        )


def check_same(live: Any, encoder: Encoder, stored: dict[str, torch.Tensor], exact: bool) -> None:
    """Compares a CLIPVisionModel with what its folder holds.

    Raises:
        EncoderFormatError: any difference, or a number that its type cannot hold.
    """
    weights = {name: w for name, w in core_of(live).state_dict().items() if not name.endswith(".position_ids")}
    expected = {name.removeprefix(TOWER_PREFIX): w for name, w in stored.items() if name.startswith(TOWER_PREFIX)}
    config = read_config(encoder.path).vision_config
    differing = [name for name in _SAME_FUNCTION if getattr(live.config, name) != getattr(config, name)]
    said = [f"{name} is {getattr(live.config, name)}, not {getattr(config, name)}" for name in differing]
    if wrong := _differences(weights, expected, exact):
        said.append(f"{len(wrong)} weights differ, first {wrong[0]}")
    if adapted := [name for name in sorted(weights) if any(part in name for part in ADAPTED)]:
        said.append(f"adapters of peft are on it ({adapted[0]}; merge_and_unload gives a plain tower)")
    if said:
        raise EncoderFormatError(
            f"the tower inside the model is not {encoder.name} ({encoder.path}, digest {encoder.digest[:12]}): "
            f"{'; '.join(said)}. The model was loaded or built with another tower; put this one in by "
            "llava_ohd.tower.swap"
        )
    _check_range(weights, encoder)  # last: a number out of range is equal to the encoder's, rounded alike


def _check_range(weights: dict[str, torch.Tensor], encoder: Encoder) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all():
            raise EncoderFormatError(
                f"{name} of the tower holds Inf or NaN in {weight.dtype}, {encoder.path} does not: its numbers are "
                "beyond that type's range. Put the model's tower into bfloat16 or float32 and swap again"
            )


def _differences(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], exact: bool) -> list[str]:
    return sorted(expected.keys() ^ weights.keys()) or [
        name for name, weight in sorted(expected.items()) if not same_weight(weights[name], weight, exact)
    ]
