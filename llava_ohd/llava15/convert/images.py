"""The settings of the image processor, as each of the layouts writes them.

| written            | `do_pad`                | who reads it                                                        |
|--------------------|-------------------------|---------------------------------------------------------------------|
| CLIPImageProcessor | must not be there       | LLaVA, whose config.json says `image_aspect_ratio`                  |
| LlavaImageProcessor| whether LLaVA pads      | transformers >= 4.50; older ones ignore it and cut the middle out   |
"""

from pathlib import Path
from typing import Any

from llava_ohd.errors import ModelFormatError
from llava_ohd.files import read_json

__all__ = ["for_hf", "for_llava", "read_pixels", "says_pad"]

_KEYS: tuple[str, ...] = ("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size")
_KEYS += ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_NEEDED = {"size", "crop_size", "image_mean", "image_std"}


def _record(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return dict(read_json(file))
    whole = folder / "processor_config.json"  # where transformers 5 puts it
    inside = read_json(whole).get("image_processor") if whole.is_file() else None
    if not inside:
        raise ModelFormatError(f"{folder} has no preprocessor_config.json; copy it from where the model came from")
    return dict(inside)


def read_pixels(folder: Path) -> dict[str, Any]:
    """Reads what decides the pixels that the encoder sees.

    Raises:
        ModelFormatError: missing or incomplete.
    """
    record = _record(folder)
    if lost := sorted(_NEEDED - record.keys()):
        raise ModelFormatError(f"the image processor of {folder} does not say {', '.join(lost)}; restore the file")
    return {key: record[key] for key in _KEYS if record.get(key) is not None}


def says_pad(folder: Path) -> bool | None:
    """Says whether an HF folder pads images to a square; None where its image processor cannot."""
    record = _record(folder)
    able = "LlavaImageProcessor" in str(record.get("image_processor_type", ""))
    return bool(record.get("do_pad")) if able else None


def for_llava(pixels: dict[str, Any]) -> dict[str, Any]:
    """Returns preprocessor_config.json of an encoder folder."""
    return {"image_processor_type": "CLIPImageProcessor"} | pixels


def for_hf(pixels: dict[str, Any], aspect_ratio: str) -> dict[str, Any]:
    """Returns preprocessor_config.json of an HF folder."""
    head = {"image_processor_type": "LlavaImageProcessor", "processor_class": "LlavaProcessor"}
    return head | pixels | {"do_pad": aspect_ratio == "pad"}
