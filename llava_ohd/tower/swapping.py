"""Puts an encoder into a live LLaVA, and says whether the tower inside one is the encoder it should be.

    encoder = tower.swap(model, "ours")     # refuses another geometry, compares every weight before the old one goes
    tower.verify(model, "ours")             # raises where the tower was silently set back to another

Both know the original code's LlavaLlamaForCausalLM and transformers' LlavaForConditionalGeneration of 4.37 to 5.x
(`live_towers`).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.encoder_dir import Encoder, read
from llava_ohd.tower.images import load_processor
from llava_ohd.tower.live_towers import (
    check_replaceable,
    core_of,
    find_owner,
    is_wrapper,
    place_of,
    tower_of,
    vision_of,
)
from llava_ohd.tower.loading import load_vision_model
from llava_ohd.tower.names import resolve
from llava_ohd.tower.preprocessing import check_pixels, known_processors, update_processor
from llava_ohd.tower.same_tower import check_geometry, check_same
from llava_ohd.tower.vision_tower import OHDVisionTower
from llava_ohd.tower.weights import read_weights, tower_digest, weights_file

__all__ = ["swap", "verify"]


def swap(
    model: nn.Module,
    encoder: str | Path | Encoder,
    *,
    processor: Any | None = None,
    preprocessing: Literal["same", "changed"] = "same",
) -> Encoder:
    """Replaces the tower of a model; each new weight goes to the device of the old one, in its type, trained if it was.

    The config then names the new one: `mm_vision_tower` and `mm_hidden_size`, or `vision_config`. A tower of the
    original code that was still to be loaded is replaced by a loaded one, where the projector is. On any error the
    model is left as it was, with its old tower.

    Args:
        model: LlavaLlamaForCausalLM of the original code or transformers' LlavaForConditionalGeneration, bare or inside
            a PeftModel. Swap before DeepSpeed takes it.
        encoder: Name, path, or what `check` returned.
        processor: LlavaProcessor or image processor that the model is used with. Transformers' LLaVA holds none; left
            out, it is taken to be that of OpenAI's CLIP.
        preprocessing: `changed` allows an encoder with other pixel settings: `processor` then gets them, and the new
            tower of the original code has them as `image_processor`.

    Raises:
        EncoderNotFound: the name leads nowhere.
        EncoderFormatError: the folder is damaged, of another geometry or for other pixels than the old tower, or has
            weights beyond the range of the model's type.
        ModelFormatError: the model has no tower, or one with adapters, quantised, or not in memory.
    """
    if preprocessing not in ("same", "changed"):
        raise ValueError(f"preprocessing is {preprocessing!r}; 'same' or 'changed' is expected")
    owner = find_owner(model)
    old = tower_of(owner)
    folder = encoder.path if isinstance(encoder, Encoder) else resolve(encoder)
    check_geometry(old.config, read_config(folder).vision_config, str(folder))
    check_replaceable(old)
    new, found = _new_tower(old, folder, place_of(owner, old))
    if isinstance(encoder, Encoder) and encoder.digest != found.digest:
        raise EncoderFormatError(
            f"{folder} now holds digest {found.digest[:12]}, it had {encoder.digest[:12]} when it was checked"
        )
    pixels = new.image_processor if is_wrapper(new) else load_processor(folder)
    if preprocessing == "same":
        check_pixels(known_processors(old if is_wrapper(old) else None, processor), pixels, str(folder))
    check_same(vision_of(new), found, read_weights(weights_file(folder)), exact=True)
    owner.vision_tower = [new] if isinstance(vars(owner).get("vision_tower"), list) else new
    _update_configs(model, owner, new)
    if processor is not None:
        update_processor(processor, pixels)
    return found


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
    live = vision_of(tower_of(find_owner(model)))
    if isinstance(encoder, Encoder):
        stored = read_weights(weights_file(encoder.path))
        if tower_digest(stored) != encoder.digest:
            raise EncoderFormatError(f"{encoder.path} changed since it was checked; run the command again")
    else:
        encoder, _, stored = read(resolve(encoder))
    check_same(live, encoder, stored, exact)
    return encoder


def _new_tower(old: Any, folder: Path, place: torch.Tensor) -> tuple[Any, Encoder]:
    """Loads an encoder as a tower of the old one's kind, which follows it weight by weight."""
    found, new = load_vision_model(folder, place.dtype)
    if not is_wrapper(old) or old.is_loaded:
        _follow(core_of(new.to(place.device)), core_of(vision_of(old)))  # type: ignore[arg-type]
    else:
        new.to(place.device).requires_grad_(False)  # type: ignore[arg-type]
    if not is_wrapper(old):
        _use_attention_of(old, new)
        return new.train(old.training), found
    trained = {name for name, weight in new.named_parameters() if weight.requires_grad}
    wrapper = OHDVisionTower(folder, _settings(old), delay_load=True)
    wrapper.hold(found, new)
    for name, weight in new.named_parameters():
        weight.requires_grad_(name in trained)
    return wrapper.train(old.training), found


def _follow(new: nn.Module, old: nn.Module) -> None:
    like = dict(old.named_parameters())
    for name, weight in new.named_parameters():
        if name in like:
            weight.data = weight.data.to(device=like[name].device, dtype=like[name].dtype)
        weight.requires_grad_(name in like and like[name].requires_grad)


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
        if is_wrapper(new):
            config.mm_vision_tower, config.mm_hidden_size = new.vision_tower_name, new.hidden_size
        else:
            config.vision_config = new.config
