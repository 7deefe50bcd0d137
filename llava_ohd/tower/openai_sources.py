"""Readers of OpenAI's and open_clip's checkpoints: a file, or a folder with open_clip_config.json.

Source: open_clip src/open_clip/model.py `CLIPVisionCfg`, `CLIPTextCfg` @ 3.3.0 (fields of `model_cfg`, their defaults).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.activation import decide_activation, of_program
from llava_ohd.tower.checkpoints import Checkpoint, read_file
from llava_ohd.tower.layouts import some, text_geometry, vision_geometry
from llava_ohd.tower.openai_clip import clip_config, is_openai, legacy_weights
from llava_ohd.tower.source_types import Base, Source, naming, read_record

__all__ = ["is_open_clip_folder", "read_open_clip_folder", "read_openai_file"]

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_KNOWN = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens"}
_KNOWN |= {"context_length", "vocab_size", "heads", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
_IDLE = {"attn_pooler_queries", "attn_pooler_heads", "pad_id", "timm_pool", "timm_proj", "timm_drop"}
_AS_OPENAI: tuple[Any, ...] = (None, False, {}, "tok", "argmax", "learnable", "linear", "default")
"""Values of any other field that leave the architecture OpenAI's."""


def is_open_clip_folder(place: Path) -> bool:
    """Says whether a folder is one that open_clip wrote."""
    return (place / "open_clip_config.json").is_file() and not (place / "config.json").is_file()


def read_openai_file(file: Path, base: Base | None, quick_gelu: bool | None) -> Source:
    """Reads one file, which says nothing about itself but by its program, if it has one."""
    found = read_file(file)
    return _source(file, found, base, quick_gelu, of_program(found.program), {}, {})


def read_open_clip_folder(place: Path, base: Base | None, quick_gelu: bool | None) -> Source:
    """Reads a folder, whose open_clip_config.json says heads, activation and preprocessing."""
    config = place / "open_clip_config.json"
    record = read_record(config)
    file = next((place / name for name in _WEIGHTS if (place / name).is_file()), None)
    if file is None:
        raise EncoderFormatError(f"{place} has none of {', '.join(_WEIGHTS)}; download the folder again")
    model, images = record.get("model_cfg") or {}, record.get("preprocess_cfg") or {}
    pixels = {f"image_{key}": images[key] for key in ("mean", "std") if key in images}
    said = model.get("quick_gelu")
    if said is not None and not isinstance(said, bool):
        raise EncoderFormatError(f"{config}: quick_gelu is {said!r}; true or false is expected")
    for tower in ("vision_cfg", "text_cfg"):
        _check_architecture(config, tower, model.get(tower))
    return _source(file, read_file(file), base, quick_gelu, said, model, pixels)


def _check_architecture(file: Path, tower: str, part: Any) -> None:
    """Refuses what would change the features without changing the name of a weight."""
    if not isinstance(part or {}, dict):
        raise EncoderFormatError(f"{file}: {tower} is {part!r}; an object is expected")
    other = [
        f"{key} {value!r}"
        for key, value in (part or {}).items()
        if key not in _KNOWN | _IDLE and value not in _AS_OPENAI and not (key == "eos_id" and value == 2)
    ]
    if other:
        raise EncoderFormatError(f"{file}: {tower} has {some(other)}; only the architecture of OpenAI can be imported")


def _source(
    file: Path,
    found: Checkpoint,
    base: Base | None,
    quick_gelu: bool | None,
    said: bool | None,
    model: Mapping[str, Any],
    pixels: dict[str, Any],
) -> Source:
    if not is_openai(found.weights):
        raise EncoderFormatError(
            f"{file} has not the names of OpenAI's or open_clip's CLIP (visual.conv1.weight ...); if it belongs to a "
            "folder with a config.json, give the folder"
        )
    with naming(file):
        weights = legacy_weights(found.weights)
        vision_geometry(weights)  # says what is missing before the activation is asked for
        config = clip_config(weights, "quick_gelu", base.config if base else None, _heads(model, weights))
        activation, grounds = decide_activation(weights, base, said, quick_gelu)
        for part in (config.vision_config, config.text_config):
            part.hidden_act = activation
    notes = grounds | {"hidden_act": activation}
    return Source("OpenAI or open_clip", config, weights, found.files, notes, pixels)


def _heads(model: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of heads of each tower that `model_cfg` describes."""
    heads = {}
    if (vision := model.get("vision_cfg")) is not None:
        width, channels = vision_geometry(weights)["hidden_size"], vision.get("head_width", 64)
        if not isinstance(channels, int) or channels < 1 or width % channels or vision.get("width", width) != width:
            raise EncoderFormatError(
                f"its vision_cfg says width {vision.get('width')} and head_width {channels}, its tensors have width "
                f"{width}; download the folder again"
            )
        heads["vision"] = width // channels
    if (text := model.get("text_cfg")) is not None:
        width, count = text_geometry(weights)["hidden_size"], text.get("heads", 8)
        if not isinstance(count, int) or count < 1 or width % count or text.get("width", width) != width:
            raise EncoderFormatError(
                f"its text_cfg says width {text.get('width')} and {count} heads, its tensors have width {width}; "
                "download the folder again"
            )
        heads["text"] = count
    return heads
