"""Reads files of weights, and refuses what is damaged; nothing in a file is ever executed."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llava_ohd.errors import ModelFormatError

__all__ = ["read_tensors"]


def read_tensors(file: Path, part: str = "") -> dict[str, torch.Tensor]:
    """Reads a safetensors file, or a pickle that holds tensors alone.

    Args:
        file: The file.
        part: Only weights with this in their names are read.

    Raises:
        ModelFormatError: truncated, damaged, or with something else in it.
    """
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            return {name: opened.get_tensor(name) for name in list(opened.keys()) if part in name}
        weights = torch.load(file, map_location="cpu", weights_only=True)
        return {name: weight for name, weight in weights.items() if part in name}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelFormatError(f"{file} is truncated or damaged ({error}); copy it again, or train it again") from error
