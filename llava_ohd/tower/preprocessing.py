"""Compares the pixels that a model was given so far with those that an encoder was made for."""

from pathlib import Path
from typing import Any

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.images import load_processor, pixel_settings

__all__ = ["check_pixels", "known_processors", "update_processor"]


def known_processors(wrapper: Any | None, processor: Any | None) -> dict[str, Any]:
    """Returns the image processors that a model is known to be used with, by where they are.

    Args:
        wrapper: The tower of the original code, which has its own; None for transformers' LLaVA, which has none.
        processor: LlavaProcessor or image processor of the user.
    """
    found = {}
    if wrapper is not None and wrapper.is_loaded:
        found["the model's tower"] = wrapper.image_processor
    elif wrapper is not None and (Path(wrapper.vision_tower_name) / "preprocessor_config.json").is_file():
        found["the model's tower"] = load_processor(wrapper.vision_tower_name)
    if processor is not None:
        found["the processor"] = getattr(processor, "image_processor", processor)
    return found


def check_pixels(known: dict[str, Any], new: Any, encoder: str) -> None:
    """Compares processors with an encoder's; where none is known, those of OpenAI's CLIP are taken to be in use.

    Raises:
        EncoderFormatError: any setting differs.
    """
    wanted = pixel_settings(new)
    stock = pixel_settings(type(new)()) | {key: wanted[key] for key in ("size", "crop_size")}
    rows = {where: pixel_settings(processor) for where, processor in known.items()} or {"OpenAI's CLIP": stock}
    for where, found in rows.items():
        wrong = [f"{key} {found[key]} ({where}) and {wanted[key]}" for key in wanted if found[key] != wanted[key]]
        if wrong:
            asked = "" if known else "; what this model is used with is not known: give it by processor=..."
            raise EncoderFormatError(
                f"encoder {encoder} was made for other pixels: {'; '.join(wrong)}{asked}. To go on with the encoder's, "
                "say preprocessing='changed', and use its processor from then on"
            )


def update_processor(processor: Any, new: Any) -> None:
    """Gives a LlavaProcessor or image processor the settings of an encoder's."""
    target = getattr(processor, "image_processor", processor)
    for name in pixel_settings(new):
        setattr(target, name, getattr(new, name, None))
