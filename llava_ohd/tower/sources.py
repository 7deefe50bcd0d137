"""What an encoder can be imported from. Each reader takes one kind and returns a full CLIP under the legacy names.

| kind                | recognised by                                    | text tower from |
|---------------------|--------------------------------------------------|-----------------|
| CLIPModel           | config.json, model_type `clip`                   | itself          |
| CLIPVisionModel     | config.json, model_type `clip_vision_model`      | `base`          |
| LLaVA               | config.json, `vision_tower.` in names            | `base`          |
| LoRA                | adapter_config.json                              | `base`          |
| OpenAI or open_clip | a file, or a folder with open_clip_config.json   | itself          |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.activation import decide_activation, of_program
from llava_ohd.tower.checkpoints import Checkpoint, read_file, read_folder
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.encoder_dir import Encoder
from llava_ohd.tower.layouts import VISION, rename, tower_of_llava, vision_geometry
from llava_ohd.tower.lora import is_lora, merge_lora
from llava_ohd.tower.openai_clip import clip_config, is_openai, legacy_weights
from llava_ohd.tower.record import read_object

__all__ = ["Base", "Source", "read_source"]

_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_VISION_FIELDS: tuple[str, ...] = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_VISION_FIELDS += ("num_attention_heads", "num_channels", "hidden_act", "layer_norm_eps")


@dataclass(frozen=True)
class Base:
    """A checked encoder that gives what a source lacks.

    Attributes:
        encoder: Its description.
        config: Its `CLIPConfig`.
        weights: All its weights as stored, legacy names.
    """

    encoder: Encoder
    config: Any
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A full CLIP that was read.

    Attributes:
        kind: What it was read from, as in the table above.
        config: `CLIPConfig`.
        weights: All weights, legacy names, stored types.
        files: The files that gave weights.
        notes: What else ohd.json should say, JSON-able.
        pixels: What the source says about its preprocessing, in the terms of preprocessor_config.json.
    """

    kind: str
    config: Any
    weights: dict[str, torch.Tensor]
    files: list[Path]
    notes: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)


def read_source(place: Path, base: Base | None, quick_gelu: bool | None) -> Source:
    """Recognises what lies at `place` and reads it.

    Raises:
        EncoderFormatError: unknown, damaged, incomplete, or it needs `base` or `quick_gelu`.
    """
    if place.is_file():
        return _openai(place, read_file(place), base, quick_gelu, None)
    if is_lora(place):
        found = _lora(place, _needed(base, place, "is an adapter"))
    elif (place / "open_clip_config.json").is_file() and not (place / "config.json").is_file():
        return _open_clip_folder(place, base, quick_gelu)
    else:
        found = _transformers_folder(place, base)
    said = found.config.vision_config.hidden_act
    if quick_gelu is not None and said != ("quick_gelu" if quick_gelu else "gelu"):
        raise EncoderFormatError(
            f"--quick-gelu {str(quick_gelu).lower()} was given, but the configuration of {place} says {said}; leave "
            "the flag out, it is for the files of OpenAI and open_clip"
        )
    return found


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Puts the place in front of an error about names or tensors."""
    try:
        yield
    except EncoderFormatError as error:
        text = str(error)
        raise EncoderFormatError(text if str(place) in text else f"{place}: {text}") from None


def _record(file: Path) -> dict[str, Any]:
    return read_object(file, f"cannot tell what {file.parent} is")


def _needed(base: Base | None, place: Path, why: str) -> Base:
    if base is None:
        raise EncoderFormatError(
            f"{place} {why}; the rest of the CLIP comes from a full encoder of the same geometry: give it with --base "
            "NAME_OR_PATH (base=...), e.g. --base openai"
        )
    return base


# --- layouts of transformers


def _transformers_folder(place: Path, base: Base | None) -> Source:
    record = _record(place / "config.json")
    kind = str(record.get("model_type"))
    pixels = _record(place / "preprocessor_config.json") if (place / "preprocessor_config.json").is_file() else {}
    if kind == "clip":
        found = read_folder(place)
        with _naming(place):
            weights = rename(found.weights)
        if any(name.startswith("text_model.") for name in weights):
            return Source("CLIPModel", read_config(place), weights, found.files, pixels=pixels)
        return _tower("CLIPVisionModel", place, base, weights, found.files, record.get("vision_config") or {}, pixels)
    if kind == "clip_vision_model":
        found = read_folder(place)
        with _naming(place):
            weights = rename(found.weights)
        return _tower("CLIPVisionModel", place, base, weights, found.files, record, pixels)
    found = read_folder(place, keep=tower_of_llava)
    if not found.weights:
        named = record.get("mm_vision_tower")
        raise EncoderFormatError(
            f"{place} (model_type {kind!r}) carries no weights of a CLIP: model_type 'clip' or 'clip_vision_model', or "
            "names with 'vision_tower.' were expected" + (f". Its config names {named!r}; import that" if named else "")
        )
    with _naming(place):
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
    with _naming(place):
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
    return Source(kind, base.config, kept | weights, files, pixels=pixels)


def _stated(config: dict[str, Any]) -> dict[str, Any]:
    try:
        stated = CLIPVisionConfig.from_dict(config)
    except Exception as error:  # which type is raised depends on the transformers version
        raise EncoderFormatError(f"its configuration is not that of a CLIP vision tower: {error}") from error
    return {name: getattr(stated, name) for name in _VISION_FIELDS}


def _lora(place: Path, base: Base) -> Source:
    found = merge_lora(place, base.weights)
    return Source("LoRA", base.config, found.weights, found.files)


# --- layouts of OpenAI and open_clip


def _open_clip_folder(place: Path, base: Base | None, quick_gelu: bool | None) -> Source:
    record = _record(place / "open_clip_config.json")
    file = next((place / name for name in _OPEN_CLIP if (place / name).is_file()), None)
    if file is None:
        raise EncoderFormatError(f"{place} has none of {', '.join(_OPEN_CLIP)}; download the folder again")
    model, images = record.get("model_cfg") or {}, record.get("preprocess_cfg") or {}
    pixels = {f"image_{key}": images[key] for key in ("mean", "std") if key in images}
    return _openai(file, read_file(file), base, quick_gelu, bool(model.get("quick_gelu")), pixels)


def _openai(
    file: Path,
    found: Checkpoint,
    base: Base | None,
    quick_gelu: bool | None,
    said: bool | None,
    pixels: dict[str, Any] | None = None,
) -> Source:
    if not is_openai(found.weights):
        raise EncoderFormatError(
            f"{file} has not the names of OpenAI's or open_clip's CLIP (visual.conv1.weight ...); if it belongs to a "
            "folder with a config.json, give the folder"
        )
    with _naming(file):
        weights = legacy_weights(found.weights)
        vision_geometry(weights)  # says what is missing before the activation is asked for
        said = of_program(found.program) if said is None else said
        config = clip_config(weights, "quick_gelu", base.config if base else None)
        activation, grounds = decide_activation(weights, base, said, quick_gelu)
        for part in (config.vision_config, config.text_config):
            part.hidden_act = activation
    notes = grounds | {"hidden_act": activation}
    return Source("OpenAI or open_clip", config, weights, found.files, notes, pixels or {})
