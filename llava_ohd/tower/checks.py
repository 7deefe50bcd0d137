"""What makes an encoder folder sound. Each function looks at one part of it and raises at the first fault."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel
from transformers.activations import ACT2FN

from llava_ohd.errors import DataFormatError, EncoderFormatError
from llava_ohd.files import read_json, sha256_file

__all__ = ["FORMAT", "check_finite", "check_keys", "check_preprocessor", "check_record", "read_config"]

FORMAT = 1
"""Version of the layout that ohd.json states."""

_SIZES = {"hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size"}
_SIZES |= {"max_position_embeddings", "projection_dim", "vocab_size"}
_LARGEST, _MOST_LAYERS = 10_000_000, 1000  # far beyond any CLIP; larger ones would only fill the memory


def read_config(folder: Path) -> Any:
    """Reads config.json as a `CLIPConfig`.

    Raises:
        EncoderFormatError: not that of a full CLIPModel, or with numbers that cannot be right.
    """
    record = _read_part(folder / "config.json")
    if record.get("model_type") != "clip":
        raise EncoderFormatError(
            f"{folder}/config.json has model_type {record.get('model_type')!r}; a full CLIPModel ('clip') is expected, "
            "with both towers"
        )
    for name in ("text_config", "vision_config"):
        _check_part(folder, name, record.get(name))
        if record.get(f"{name}_dict") is not None:  # as on the Hub; its values come before those of `name`
            _check_part(folder, f"{name}_dict", record[f"{name}_dict"])
    for part in (record, record["text_config"], record["vision_config"]):
        for key in ("dtype", "torch_dtype"):  # the type of the file says it; a model is always built in float32
            part.pop(key, None)
    try:
        config: Any = CLIPConfig.from_dict(record)
    except Exception as error:  # which type is raised depends on the transformers version
        raise EncoderFormatError(f"{folder}/config.json is not a CLIP configuration: {error}") from error
    vision, text = config.vision_config, config.text_config
    if vision.image_size < vision.patch_size or vision.image_size % vision.patch_size:
        raise EncoderFormatError(
            f"{folder}/config.json: image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}"
        )
    if not 0 <= text.eos_token_id < text.vocab_size:
        raise EncoderFormatError(
            f"{folder}/config.json: text_config.eos_token_id {text.eos_token_id} is outside the vocabulary of "
            f"{text.vocab_size}; every caption would get the features of its first token. Set it to the tokenizer's"
        )
    return config


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
    if part.get("num_hidden_layers", 1) > _MOST_LAYERS:
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.num_hidden_layers is {part['num_hidden_layers']}; up to {_MOST_LAYERS} are "
            "expected"
        )
    if (activation := part.get("hidden_act", "quick_gelu")) not in list(ACT2FN):
        raise EncoderFormatError(
            f"{folder}/config.json: {name}.hidden_act is {activation!r}, which transformers does not know; "
            "'quick_gelu' is that of OpenAI's weights, 'gelu' that of most of open_clip's"
        )


def _read_part(file: Path) -> dict[str, Any]:
    try:
        record = read_json(file)
    except DataFormatError as error:
        raise EncoderFormatError(f"incomplete encoder folder: {error}") from None
    if not isinstance(record, dict):
        raise EncoderFormatError(f"{file} holds {type(record).__name__}; an object is expected")
    return record


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


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
            + (f"; missing: {_some(missing)}" if missing else "")
            + (f"; unexpected: {_some(unexpected)}" if unexpected else "")
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
        raise EncoderFormatError(f"{file} holds NaN or Inf in {_some(broken)}; the training that made it diverged")


def check_record(folder: Path, file: Path, digest: str) -> str:
    """Compares the weights with ohd.json.

    Returns:
        The encoder's name; the folder's name where there is no ohd.json.

    Raises:
        EncoderFormatError: another digest, or another file.
    """
    if not (folder / "ohd.json").is_file():
        return folder.resolve().name
    record = _read_part(folder / "ohd.json")
    if record.get("format") != FORMAT or record.get("kind") != "encoder":
        raise EncoderFormatError(
            f"{folder}/ohd.json is format {record.get('format')!r}, kind {record.get('kind')!r}; format {FORMAT}, kind "
            "'encoder' is expected. A newer version of llava_ohd may have written it"
        )
    if record.get("digest") != digest:
        raise EncoderFormatError(
            f"{file}: the vision tower has digest {digest[:12]}, ohd.json says {str(record.get('digest'))[:12]}; the "
            "weights were altered or belong to another encoder. Copy the folder again, or make it again"
        )
    if record.get("file_sha256") != sha256_file(file):
        raise EncoderFormatError(
            f"{file} was altered after it was written (outside the vision tower); copy or make the folder again"
        )
    return str(record.get("name") or folder.resolve().name)


def check_preprocessor(folder: Path, image_size: int) -> None:
    """Checks that preprocessor_config.json makes images of `image_size` pixels with a sane mean and deviation.

    Raises:
        EncoderFormatError: missing, or anything else.
    """
    file = folder / "preprocessor_config.json"
    record = _read_part(file)
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
