"""What lies in a checkpoint folder of the original LLaVA: full, LoRA beside a base, or projector alone."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.tower.encoder_dir import Encoder
from llava_ohd.tower.weights import TOWER_PREFIX, read_weights, same_weight, weights_file

__all__ = ["is_full", "read_llava_config", "tower_weights", "unlike"]

_INSIDE = "vision_tower."
_WHOLE = ("model*.safetensors", "pytorch_model*.bin")  # in the order in which transformers prefers them
_BESIDE_A_BASE = ("non_lora_trainables.bin", "mm_projector.bin", "adapter_model.safetensors", "adapter_model.bin")
_TENSORS_OF_A_LANGUAGE_MODEL = "embed_tokens.weight"


def read_llava_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a checkpoint and its config.json.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: its config.json is no object.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give a checkpoint of LLaVA")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelFormatError(f"{folder}/config.json holds {type(config).__name__}; an object is expected")
    return folder, config


def is_full(folder: Path) -> bool:
    """Says whether a checkpoint holds a language model, so that it needs no base."""
    names = (name for file in _files(folder, _WHOLE) for name in _open(file)[0])
    return any(name.endswith(_TENSORS_OF_A_LANGUAGE_MODEL) for name in names)


def tower_weights(folder: Path, everything: bool = False) -> dict[str, torch.Tensor]:
    """Returns the tower weights inside a checkpoint under an encoder's names.

    Args:
        folder: The checkpoint.
        everything: Also out of files that LLaVA would not open for a checkpoint of this kind.
    """
    whole = next((files for pattern in _WHOLE if (files := _files(folder, (pattern,)))), [])
    read = whole if is_full(folder) else _files(folder, _BESIDE_A_BASE)
    inside: dict[str, torch.Tensor] = {}
    for file in _files(folder, (*_WHOLE, *_BESIDE_A_BASE)) if everything else read:
        names, get = _open(file)
        for name in (name for name in names if _INSIDE in name and not name.endswith(".position_ids")):
            inside[TOWER_PREFIX + name.rpartition(_INSIDE)[2].removeprefix(TOWER_PREFIX)] = get(name)
    return inside


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _open(file: Path) -> tuple[list[str], Any]:
    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, framework="pt")
        return list(opened.keys()), opened.get_tensor
    weights = read_weights(file)
    return list(weights), weights.__getitem__


def unlike(inside: dict[str, torch.Tensor], encoder: Encoder) -> str:
    """Says in what tower weights differ from an encoder's; empty where they do not."""
    stored = read_weights(weights_file(encoder.path))
    for name, weight in sorted(inside.items()):
        if name not in stored or not same_weight(weight, stored[name]):
            return f"first difference in {name}"
    return ""
