"""What an encoder can be imported from. Each reader takes one kind and returns a full CLIP under the legacy names.

| kind                | recognised by                                    | text tower from |
|---------------------|--------------------------------------------------|-----------------|
| CLIPModel           | config.json, model_type `clip`                   | itself          |
| CLIPVisionModel     | config.json, model_type `clip_vision_model`      | `base`          |
| LLaVA               | config.json, `vision_tower.` in names            | `base`          |
| LoRA                | adapter_config.json                              | `base`          |
| OpenAI or open_clip | a file, or a folder with open_clip_config.json   | itself          |
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPVisionConfig

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.activation import NAMES, decide_activation
from llava_ohd.tower.checkpoints import read_folder
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.layouts import VISION, rename, tower_of_llava, vision_geometry
from llava_ohd.tower.lora import is_lora, merge_lora
from llava_ohd.tower.openai_sources import is_open_clip_folder, read_open_clip_folder, read_openai_file
from llava_ohd.tower.source_types import Base, Source, naming, read_record

__all__ = ["Base", "Source", "read_source"]

_VISION_FIELDS: tuple[str, ...] = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_VISION_FIELDS += ("num_attention_heads", "num_channels", "hidden_act", "layer_norm_eps")


def read_source(place: Path, base: Base | None, quick_gelu: bool | None) -> Source:
    """Recognises what lies at `place` and reads it.

    Raises:
        EncoderFormatError: unknown, damaged, incomplete, or it needs `base` or `quick_gelu`; or its activation is
            another than was said.
    """
    if place.is_file():
        return read_openai_file(place, base, quick_gelu)
    if not is_lora(place) and is_open_clip_folder(place):
        return read_open_clip_folder(place, base, quick_gelu)
    found = _lora(place, _needed(base, place, "is an adapter")) if is_lora(place) else _transformers_folder(place, base)
    said = found.config.vision_config.hidden_act
    if found.says_activation and quick_gelu is not None and said != NAMES[quick_gelu]:
        raise EncoderFormatError(
            f"--quick-gelu {str(quick_gelu).lower()} was given, but the configuration of {place} says {said}; leave "
            "the flag out, it is for files that do not say it"
        )
    # An adapter changes its base by so little that its activation is the base's, and gelu_new is neither of the two.
    return found if found.kind == "LoRA" or said not in NAMES.values() else _measured(place, found, base, quick_gelu)


def _measured(place: Path, found: Source, base: Base | None, quick_gelu: bool | None) -> Source:
    """Compares what the source says of its activation with its features, where there is a base to compare them to."""
    said = found.config.vision_config.hidden_act == NAMES[True] if found.says_activation else None
    with naming(place):
        activation, grounds = decide_activation(found.weights, base, said, quick_gelu)
    config: Any = CLIPConfig.from_dict(found.config.to_dict())  # a copy: it may be the base's
    config.vision_config.hidden_act = activation
    return replace(found, config=config, notes=found.notes | grounds | {"hidden_act": activation})


def _needed(base: Base | None, place: Path, why: str) -> Base:
    if base is None:
        raise EncoderFormatError(
            f"{place} {why}; the rest of the CLIP comes from a full encoder of the same geometry: give it with --base "
            "NAME_OR_PATH (base=...), e.g. --base openai"
        )
    return base


# --- layouts of transformers


def _transformers_folder(place: Path, base: Base | None) -> Source:
    record = read_record(place / "config.json")
    kind = str(record.get("model_type"))
    pixels = read_record(place / "preprocessor_config.json") if (place / "preprocessor_config.json").is_file() else {}
    if kind == "clip":
        found = read_folder(place)
        with naming(place):
            weights = rename(found.weights)
        if any(name.startswith("text_model.") for name in weights):
            return Source("CLIPModel", read_config(place), weights, found.files, pixels=pixels)
        return _tower("CLIPVisionModel", place, base, weights, found.files, record.get("vision_config") or {}, pixels)
    if kind == "clip_vision_model":
        found = read_folder(place)
        with naming(place):
            weights = rename(found.weights)
        return _tower("CLIPVisionModel", place, base, weights, found.files, record, pixels)
    found = read_folder(place, keep=tower_of_llava)
    if not found.weights:
        named = record.get("mm_vision_tower")
        raise EncoderFormatError(
            f"{place} (model_type {kind!r}) carries no weights of a CLIP: model_type 'clip' or 'clip_vision_model', or "
            "names with 'vision_tower.' were expected" + (f". Its config names {named!r}; import that" if named else "")
        )
    with naming(place):
        weights = rename(found.weights)
    return _tower("LLaVA", place, base, weights, found.files, record.get("vision_config"), pixels)


def _tower(
    kind: str,
    place: Path,
    base: Base | None,
    weights: dict[str, torch.Tensor],
    files: list[Path],
    config: dict[str, Any] | None,
    pixels: dict[str, Any],
) -> Source:
    """Puts a vision tower alone into its base, after comparing what configuration and tensors say about it."""
    base = _needed(base, place, "holds only a vision tower")
    with naming(place):
        if text := sorted(name for name in weights if name.startswith("text_model.")):
            raise EncoderFormatError(
                f"{text[0]} belongs to a text tower; a vision tower or a full CLIPModel is expected"
            )
        own: dict[str, Any] = dict(vision_geometry(weights))
        if config is not None:
            own = _stated(config) | own
        expected = {name: getattr(base.config.vision_config, name) for name in own}
        if wrong := {name: value for name, value in own.items() if value != expected[name]}:
            shown = ", ".join(f"{name} {value} (base: {expected[name]})" for name, value in wrong.items())
            raise EncoderFormatError(
                f"the tower differs from that of the base {base.encoder.path}: {shown}; give a base of its geometry"
            )
    kept = {name: weight for name, weight in base.weights.items() if not name.startswith(VISION)}
    return Source(kind, base.config, kept | weights, files, pixels=pixels, says_activation=config is not None)


def _stated(config: dict[str, Any]) -> dict[str, Any]:
    try:
        stated = CLIPVisionConfig.from_dict(config)
    except Exception as error:  # which type is raised depends on the transformers version
        raise EncoderFormatError(f"its configuration is not that of a CLIP vision tower: {error}") from error
    return {name: getattr(stated, name) for name in _VISION_FIELDS}


def _lora(place: Path, base: Base) -> Source:
    found = merge_lora(place, base.weights)
    return Source("LoRA", base.config, found.weights, found.files)
