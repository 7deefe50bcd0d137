"""What makes an encoder folder sound. Each function looks at one part of it and raises at the first fault."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.activations import ACT2FN

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.layouts import some
from llava_ohd.tower.record import read_object
from llava_ohd.tower.shadows import check_settings

__all__ = ["check_container", "check_finite", "check_keys", "check_preprocessor", "empty_model", "read_config"]

_SIZES = {"hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size"}
_SIZES |= {"max_position_embeddings", "num_channels", "projection_dim", "vocab_size"}
_DECIDES = (*sorted(_SIZES - {"projection_dim"}), "hidden_act", "layer_norm_eps")  # what a tower computes
_STEPS: dict[str, Any] = dict.fromkeys(
    ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"), True
)
_STEPS |= {"resample": 3, "rescale_factor": 1 / 255}  # 3: bicubic
_INCOMPLETE = "incomplete encoder folder"
_LARGEST, _MOST_LAYERS = 10_000_000, 1000  # far beyond any CLIP; larger ones would only fill the memory


def read_config(folder: Path) -> Any:
    """Reads config.json as a `CLIPConfig`.

    Raises:
        EncoderFormatError: not that of a full CLIPModel, with numbers that cannot be right, or one that loaders read
            differently.
    """
    file = folder / "config.json"
    record = read_object(file, _INCOMPLETE)
    if record.get("model_type") != "clip":
        raise EncoderFormatError(
            f"{file} has model_type {record.get('model_type')!r}; a full CLIPModel ('clip') is expected, with both "
            "towers"
        )
    for name in ("text_config", "vision_config"):
        _check_part(folder, name, record.get(name))
        if record.get(f"{name}_dict") is not None:  # as on the Hub; its values come before those of `name`
            _check_part(folder, f"{name}_dict", record[f"{name}_dict"])
    for part in (record, record["text_config"], record["vision_config"]):
        check_settings(str(file), part)
        for key in ("dtype", "torch_dtype"):  # the type of the file says it; a model is always built in float32
            part.pop(key, None)
    try:
        alone: dict[str, Any] = {
            "text_config": CLIPTextConfig.from_dict(record["text_config"]),
            "vision_config": CLIPVisionConfig.from_dict(record["vision_config"]),
        }
        config: Any = CLIPConfig.from_dict(record)  # last, as it writes into the parts
    except Exception as error:  # which type is raised depends on the transformers version
        raise EncoderFormatError(f"{file} is not a CLIP configuration: {error}") from error
    for name, part in alone.items():
        _check_tower(file, name, getattr(config, name), part)
    _check_geometry(file, config.vision_config, config.text_config)
    return config


def _check_tower(file: Path, name: str, full: Any, alone: Any) -> None:
    """Compares a tower as CLIPModel builds it with the same tower as LLaVA builds it."""
    for key in _DECIDES:
        if getattr(full, key, None) != getattr(alone, key, None):
            raise EncoderFormatError(
                f"{file}: {name}_dict makes {key} {getattr(full, key)!r} in a CLIPModel, {name} makes it "
                f"{getattr(alone, key)!r} in the tower that LLaVA loads; remove {name}_dict"
            )


def _check_geometry(file: Path, vision: Any, text: Any) -> None:
    if vision.image_size < vision.patch_size or vision.image_size % vision.patch_size:
        raise EncoderFormatError(
            f"{file}: image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}"
        )
    if not 0 <= text.eos_token_id < text.vocab_size:
        raise EncoderFormatError(
            f"{file}: text_config.eos_token_id {text.eos_token_id} is outside the vocabulary of "
            f"{text.vocab_size}; every caption would get the features of its first token. Set it to the tokenizer's"
        )


def _check_part(folder: Path, name: str, part: Any) -> None:
    """Looks at what decides how large a model is and how it computes, before one is made of it."""
    if not isinstance(part, dict):
        raise EncoderFormatError(f"{folder}/config.json: {name} is {part!r}; an object is expected")
    for key in _SIZES & part.keys():
        value = part[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise EncoderFormatError(
                f"{folder}/config.json: {name}.{key} is {value!r}; a number from 1 to {_LARGEST} is expected"
            )
    if part.get("hidden_size", 0) % part.get("num_attention_heads", 1):
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.hidden_size {part['hidden_size']} cannot be divided by num_attention_heads "
            f"{part['num_attention_heads']}; restore the file"
        )
    if part.get("num_hidden_layers", 1) > _MOST_LAYERS:
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.num_hidden_layers is {part['num_hidden_layers']}; up to {_MOST_LAYERS} are "
            "expected"
        )
    epsilon = part.get("layer_norm_eps", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.layer_norm_eps is {epsilon!r}; a number between 0 and 1 is expected, CLIP's "
            "is 1e-05"
        )
    if (activation := part.get("hidden_act", "quick_gelu")) not in list(ACT2FN):
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.hidden_act is {activation!r}, which transformers does not know; "
            "'quick_gelu' is that of OpenAI's weights, 'gelu' that of most of open_clip's"
        )


def empty_model(folder: Path, config: Any) -> CLIPModel:
    """Returns a model without storage (meta device).

    Raises:
        EncoderFormatError: transformers cannot build one.
    """
    try:
        with torch.device("meta"):
            return CLIPModel(config)
    except Exception as error:  # which type is raised depends on the transformers version
        raise EncoderFormatError(f"{folder}/config.json: no CLIPModel can be made of it: {error}") from error


def check_container(file: Path) -> None:
    """Looks for the mark without which transformers before 4.39 refuses a safetensors file.

    Raises:
        EncoderFormatError: it is missing, or says that the file is not for torch.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("format") != "pt":
            raise EncoderFormatError(
                f"{file}: metadata format is {metadata.get('format')!r}, 'pt' is expected: transformers 4.37, which "
                "LLaVA uses, refuses the file. Write it anew with `python -m llava_ohd.tower import`"
            )


def check_keys(file: Path, model: CLIPModel, weights: dict[str, torch.Tensor]) -> None:
    """Compares names, shapes and types of the weights in `file` with those of `model`.

    Raises:
        EncoderFormatError: any difference.
    """
    expected = {key: weight.shape for key, weight in model.state_dict().items() if not key.endswith(".position_ids")}
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        flat = any(key.startswith(("embeddings.", "encoder.layers.")) for key in unexpected)
        raise EncoderFormatError(
            f"{file} does not hold the tensors that its config.json asks for"
            + (f"; missing: {some(missing)}" if missing else "")
            + (f"; unexpected: {some(unexpected)}" if unexpected else "")
            + (". This is a CLIPVisionModel saved by transformers >= 5.6 (no 'vision_model.' level)" if flat else "")
            + ". Write the full CLIPModel with llava_ohd.tower.write"
        )
    for key, weight in weights.items():
        if weight.shape != expected[key]:
            raise EncoderFormatError(
                f"{file}: {key} has shape {list(weight.shape)}, its config.json asks for {list(expected[key])}"
            )
        if not weight.is_floating_point():
            raise EncoderFormatError(f"{file}: {key} is {weight.dtype}; floating point is expected (not quantised)")


def check_finite(file: Path, weights: dict[str, torch.Tensor]) -> None:
    """Looks for NaN and Inf.

    Raises:
        EncoderFormatError: there is one.
    """
    broken = [key for key, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise EncoderFormatError(f"{file} holds NaN or Inf in {some(broken)}; the training that made it diverged")


def check_preprocessor(folder: Path, image_size: int) -> None:
    """Checks that preprocessor_config.json makes images of `image_size` pixels by the steps of CLIP, and sane numbers.

    Raises:
        EncoderFormatError: missing, or anything else.
    """
    file = folder / "preprocessor_config.json"
    record = read_object(file, _INCOMPLETE)
    check_settings(str(file), record)
    for key, expected in _STEPS.items():  # a key that is absent has this value in every version
        if (value := record.get(key, expected)) != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise EncoderFormatError(f"{file}: {key} is {value!r}; CLIP's {expected!r} is expected. Restore the file")
    for key in ("do_pad", "image_processor"):  # read by some versions only
        if record.get(key):
            raise EncoderFormatError(f"{file}: {key} is {record[key]!r}; CLIP has none. Restore the file")
    for key, sides in (("crop_size", ("height", "width")), ("size", ("shortest_edge",))):
        value = record.get(key)
        found = {value} if isinstance(value, int) else {(value or {}).get(side) for side in sides}
        if found != {image_size}:
            raise EncoderFormatError(f"{file}: {key} is {value!r}, but config.json has image_size {image_size}")
    for key in ("image_mean", "image_std"):
        value = record.get(key)
        numbers = value if isinstance(value, list) and all(isinstance(x, int | float) for x in value) else []
        least = 1e-3 if key == "image_std" else 0
        if len(numbers) != 3 or not all(least <= x <= 1 for x in numbers):
            raise EncoderFormatError(f"{file}: {key} is {value!r}; three numbers between 0 and 1 are expected")
