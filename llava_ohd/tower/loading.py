"""Loads the vision half of a checked encoder as transformers' own class, on any version."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.encoder_dir import Encoder, fill, read
from llava_ohd.tower.names import resolve
from llava_ohd.tower.weights import TOWER_PREFIX

__all__ = ["load_vision_model", "one_device", "vision_model"]


def vision_model(name_or_path: str | Path) -> CLIPVisionModel:
    """Loads the vision half of a checked encoder as transformers' own class, in float32, on any version.

    Raises:
        EncoderNotFound: the name leads nowhere.
        EncoderFormatError: as `check`.
    """
    return load_vision_model(resolve(name_or_path))[1]


def load_vision_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Encoder, CLIPVisionModel]:
    """As `vision_model`, in a given type, and says what the folder holds; its files are read once.

    Raises:
        EncoderNotFound: there is no such folder.
        EncoderFormatError: as `check`.
    """
    encoder, whole, stored = read(folder)
    fill(whole, {name: w.to(dtype, copy=True) for name, w in stored.items() if name.startswith(TOWER_PREFIX)})
    clip: Any = whole
    vision: Any = clip.vision_model
    if not isinstance(vision, CLIPVisionModel):  # transformers < 5.6: one level deeper
        with torch.device("meta"):
            model: Any = CLIPVisionModel(clip.config.vision_config)
        model.vision_model = vision
        vision = model.eval()
    for module in vision.modules():  # inside another model's from_pretrained: not to be drawn at random again
        module._is_hf_initialized = True
    return encoder, vision


def one_device(device_map: Any) -> torch.device:
    """Returns the device that a `device_map` puts the tower on.

    Raises:
        EncoderFormatError: several.
    """
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, dict):
        if len(set(device_map.values())) != 1:
            raise EncoderFormatError(f"device_map {device_map} splits the tower; give it one device, {{'': device}}")
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device_map)
