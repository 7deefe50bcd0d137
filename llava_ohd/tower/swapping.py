"""Puts an encoder into a live LLaVA, and says whether the tower inside one is the encoder it should be.

    encoder = tower.swap(model, "ours")     # refuses another geometry, compares every weight afterwards
    tower.verify(model, "ours")             # raises where the tower was silently set back to another

Both know the original code's LlavaLlamaForCausalLM (the tower is a wrapper, `model.model.vision_tower`) and
transformers' LlavaForConditionalGeneration: 4.37 (`model.vision_tower`), 4.57 and 5.x (`model.model.vision_tower`, from
5.6 on without the `vision_model` level inside).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llava_ohd.errors import EncoderFormatError, ModelFormatError
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.encoder_dir import Encoder, check
from llava_ohd.tower.names import resolve
from llava_ohd.tower.vision_tower import OHDVisionTower, load_vision_model
from llava_ohd.tower.weights import TOWER_PREFIX, read_weights, same_weight, tower_digest, weights_file

__all__ = ["check_geometry", "swap", "verify"]

_SAME_FUNCTION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_channels")


def swap(model: nn.Module, encoder: str | Path | Encoder) -> Encoder:
    """Replaces the tower of a model, which stays on the old one's device and in its type.

    The config then names the new one: `mm_vision_tower` and `mm_hidden_size`, or `vision_config`. A tower of the
    original code that was still to be loaded is replaced by a loaded one, where the projector is.

    Args:
        model: LlavaLlamaForCausalLM of the original code or transformers' LlavaForConditionalGeneration, bare or inside
            a PeftModel. Swap before DeepSpeed takes it.
        encoder: Name, path, or what `check` returned.

    Raises:
        EncoderNotFound: the name leads nowhere.
        EncoderFormatError: the folder is damaged, or of another geometry than the old tower.
        ModelFormatError: the model has no tower, or a quantised one.
    """
    owner = _owner(model)
    old = _tower(owner)
    folder = encoder.path if isinstance(encoder, Encoder) else resolve(encoder)
    check_geometry(old.config, read_config(folder).vision_config, str(folder))
    place = _place(owner, old)
    new: Any
    if _is_wrapper(old):
        new = OHDVisionTower(folder, _settings(old))
        found = new.encoder
    else:
        found, new = load_vision_model(folder)
        _use_attention_of(old, new)
    if isinstance(encoder, Encoder) and encoder.digest != found.digest:
        raise EncoderFormatError(
            f"{folder} now holds digest {found.digest[:12]}, it had {encoder.digest[:12]} when it was checked"
        )
    new.to(device=place.device, dtype=place.dtype).train(old.training)
    new.requires_grad_(any(weight.requires_grad for weight in old.parameters()))
    owner.vision_tower = [new] if isinstance(vars(owner).get("vision_tower"), list) else new
    _update_configs(model, owner, new)
    return verify(model, found, exact=True)


def verify(model: nn.Module, encoder: str | Path | Encoder, *, exact: bool = False) -> Encoder:
    """Compares the tower inside a model, weight by weight, with an encoder folder.

    Args:
        model: As for `swap`; a tower of the original code must be loaded.
        encoder: Name, path, or what `check` returned.
        exact: Left out, a float32 tower that was rounded to half precision on its way is still that encoder.

    Returns:
        What the folder holds.

    Raises:
        EncoderFormatError: any weight differs, is missing or too much; or the same weights would be used differently.
        ModelFormatError: the model has no tower, or its weights are not loaded.
    """
    if not isinstance(encoder, Encoder):
        encoder = check(resolve(encoder))
    live = _vision_model(_tower(_owner(model)))
    stored = read_weights(weights_file(encoder.path))
    if tower_digest(stored) != encoder.digest:
        raise EncoderFormatError(f"{encoder.path} changed while it was being read; run the command again")
    wrong = _differences(live, {name: w for name, w in stored.items() if name.startswith(TOWER_PREFIX)}, exact)
    expected = read_config(encoder.path).vision_config
    wrong += [f"config.{key}" for key in _SAME_FUNCTION if getattr(live.config, key) != getattr(expected, key)]
    if wrong:
        raise EncoderFormatError(
            f"the tower inside the model is not {encoder.name} ({encoder.path}, digest {encoder.digest[:12]}): "
            f"{len(wrong)} weights differ, first {wrong[0]}. The model was loaded or built with another tower; put "
            "this one in by llava_ohd.tower.swap"
        )
    return encoder


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


def _owner(model: nn.Module) -> Any:
    for module in model.modules():
        if isinstance(vars(module).get("vision_tower"), list) or module._modules.get("vision_tower") is not None:
            return module
    raise ModelFormatError(f"{type(model).__name__} has no vision tower; give a LLaVA model that was built with one")


def _tower(owner: Any) -> Any:
    tower = owner.vision_tower
    return tower[0] if isinstance(tower, list) else tower


def _is_wrapper(tower: Any) -> bool:
    return hasattr(tower, "load_model") and hasattr(tower, "select_layer")


def _vision_model(tower: Any) -> Any:
    if not _is_wrapper(tower):
        return tower
    if not tower.is_loaded:
        raise ModelFormatError(f"the tower {tower.vision_tower_name} is not loaded yet; call its load_model() first")
    return tower.vision_tower


def _place(owner: Any, old: Any) -> torch.Tensor:
    """Returns a weight that has the device and type which the new tower shall have."""
    weights = list(old.parameters()) or list(owner.mm_projector.parameters())
    if not weights[0].is_floating_point():
        raise ModelFormatError(f"the model's tower is quantised ({weights[0].dtype}); swap first, then quantise")
    if weights[0].is_meta:
        raise ModelFormatError("the model has no weights yet (meta device); load it first")
    return weights[0]


def _settings(old: Any) -> SimpleNamespace:
    settings = {"mm_vision_select_layer": old.select_layer, "mm_vision_select_feature": old.select_feature}
    scales = getattr(old, "s2_scales", [])
    return SimpleNamespace(**settings, s2=bool(scales), s2_scales=",".join(map(str, scales)))


def _use_attention_of(old: Any, new: Any) -> None:
    wanted = getattr(old.config, "_attn_implementation", None)
    if wanted and wanted != new.config._attn_implementation and hasattr(new, "set_attn_implementation"):
        new.set_attn_implementation(wanted)


def _update_configs(model: nn.Module, owner: Any, new: Any) -> None:
    parts: tuple[Any, ...] = (model, owner)
    for config in {id(part.config): part.config for part in parts if hasattr(part, "config")}.values():
        if _is_wrapper(new):
            config.mm_vision_tower, config.mm_hidden_size = new.vision_tower_name, new.hidden_size
        else:
            config.vision_config = new.config


def _differences(live: Any, stored: dict[str, torch.Tensor], exact: bool) -> list[str]:
    core = getattr(live, "vision_model", live)
    weights = {name: w for name, w in core.state_dict().items() if not name.endswith(".position_ids")}
    expected = {name.removeprefix(TOWER_PREFIX): weight for name, weight in stored.items()}
    return sorted(expected.keys() ^ weights.keys()) or [
        name for name, weight in sorted(expected.items()) if not same_weight(weights[name], weight, exact)
    ]
