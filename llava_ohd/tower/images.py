"""From an image file to the pixels that an encoder sees, the same on every machine.

Source: LLaVA mm_utils.py `expand2square`, `process_images` @ c121f04.
"""

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from llava_ohd.errors import EncoderFormatError, ImageError

__all__ = ["load_processor", "mean_color", "open_image", "pad_to_square"]


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file completely.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: missing, truncated, or no image; the message gives the path.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist; check the image folder that was given") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that Pillow knows; download or make it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"image {path} is truncated or damaged ({error}); download or make it again") from error


def pad_to_square(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Centres the image on a square of its longer side (`image_aspect_ratio pad` of LLaVA-1.5).

    Args:
        image: RGB.
        background: Colour of the added borders, 0 to 255 per channel; LLaVA takes `mean_color` of the processor.

    Returns:
        The padded image; the same object where it is square already.

    Source: LLaVA mm_utils.py `expand2square` @ c121f04.
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def mean_color(processor: Any) -> tuple[int, int, int]:
    """Returns the mean colour that the image processor subtracts, 0 to 255 per channel, rounded down as in LLaVA."""
    red, green, blue = (int(255 * value) for value in processor.image_mean)
    return red, green, blue


def load_processor(path: str | Path) -> Any:
    """Loads the image processor of an encoder folder with the Pillow backend, whatever else is installed.

    Returns:
        transformers' `CLIPImageProcessor` (4.x) or `CLIPImageProcessorPil` (5.x), whose pixels are bit-identical.

    Raises:
        EncoderFormatError: the folder has no readable preprocessor_config.json.
    """
    import transformers

    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    if not (Path(path) / "preprocessor_config.json").is_file():
        raise EncoderFormatError(f"{path} has no preprocessor_config.json; copy it from the encoder it was made from")
    try:
        return processor.from_pretrained(path)
    except (OSError, ValueError, TypeError) as error:
        raise EncoderFormatError(f"{path}/preprocessor_config.json is not an image processor ({error})") from error
