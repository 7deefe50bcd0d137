"""Finds the tower inside a live LLaVA, and says whether it is one that can be replaced.

The original code's tower is a wrapper (`model.model.vision_tower`); that of transformers' LlavaForConditionalGeneration
is the CLIPVisionModel: `model.vision_tower` in 4.37, `model.model.vision_tower` later, from 5.6 on without the
`vision_model` level inside.
"""

from typing import Any

import torch
from torch import nn

from llava_ohd.errors import ModelFormatError

__all__ = ["ADAPTED", "check_replaceable", "core_of", "find_owner", "is_wrapper", "place_of", "tower_of", "vision_of"]

ADAPTED = ("lora_", "base_layer.", "modules_to_save.", "original_module.")
"""What peft puts into the names of weights."""


def find_owner(model: nn.Module) -> Any:
    """Returns the module that holds the tower.

    Raises:
        ModelFormatError: there is none.
    """
    for module in model.modules():
        if isinstance(vars(module).get("vision_tower"), list) or module._modules.get("vision_tower") is not None:
            return module
    raise ModelFormatError(f"{type(model).__name__} has no vision tower; give a LLaVA model that was built with one")


def tower_of(owner: Any) -> Any:
    """Returns the tower, also out of the list in which the original code hides it from FSDP."""
    tower = owner.vision_tower
    return tower[0] if isinstance(tower, list) else tower


def is_wrapper(tower: Any) -> bool:
    """Says whether a tower is one of the original code's, or ours."""
    return hasattr(tower, "load_model") and hasattr(tower, "select_layer")


def vision_of(tower: Any) -> Any:
    """Returns the CLIPVisionModel of a tower.

    Raises:
        ModelFormatError: it is not loaded.
    """
    if not is_wrapper(tower):
        return tower
    if not tower.is_loaded:
        raise ModelFormatError(f"the tower {tower.vision_tower_name} is not loaded yet; call its load_model() first")
    return tower.vision_tower


def core_of(vision: Any) -> Any:
    """Returns what has the weights, without the level that transformers 5.6 removed."""
    return getattr(vision, "vision_model", vision)


def check_replaceable(tower: Any) -> None:
    """Looks at every weight of a tower.

    Raises:
        ModelFormatError: adapters that would be lost, quantised weights, or some that are not in memory.
    """
    for name, weight in tower.named_parameters():
        if any(part in name for part in ADAPTED):
            raise ModelFormatError(
                f"the model's tower has adapters of peft ({name}), which a swap would throw away; merge them "
                "(merge_and_unload) or take them off (unload), swap, and adapt the new tower"
            )
        if weight.is_meta or weight.numel() == 0:
            raise ModelFormatError(
                f"{name} of the model's tower is not in memory (meta device, or split by DeepSpeed): load the model "
                "first, whole, without offloading by device_map, and swap before DeepSpeed takes it"
            )
        _check_plain(name, weight)
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            raise ModelFormatError(_QUANTISED.format(what=f"{name} is {type(module).__name__}"))


_QUANTISED = "the model's tower is quantised ({what}); load it with the tower left out (skip_modules), or swap first"


def _check_plain(name: str, weight: torch.Tensor) -> None:
    if not weight.is_floating_point() or type(weight) is not nn.Parameter:
        raise ModelFormatError(_QUANTISED.format(what=f"{name} is {type(weight).__name__} of {weight.dtype}"))


def place_of(owner: Any, tower: Any) -> torch.Tensor:
    """Returns a weight that has the device and type which a new tower shall have.

    Where the tower has several types it is in none of them, but in float32, which holds each.
    """
    weights = list(tower.parameters())
    if not weights:  # still to be loaded: where the projector is
        weights = list(owner.mm_projector.parameters())
        _check_plain("mm_projector", weights[0])
    types = {weight.dtype for weight in weights}
    return torch.empty(0, device=weights[0].device, dtype=types.pop() if len(types) == 1 else torch.float32)
