"""From an image file to the pixels that an encoder sees, the same on every machine.

Source: LLaVA mm_utils.py `expand2square`, `process_images` @ c121f04.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from PIL import Image, UnidentifiedImageError

from llava_ohd.errors import EncoderFormatError, ImageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "find_images",
    "load_processor",
    "mean_color",
    "open_image",
    "pad_to_square",
    "pixel_settings",
    "process_images",
]

_SETTINGS: tuple[str, ...] = ("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size")
_SETTINGS += ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_TORCHVISION = {"BaseImageProcessorFast", "TorchvisionBackend"}
"""Base classes, in transformers 4.4x to 4.57 and 5.x, of the image processors that do not use Pillow."""


def open_image(path: str | Path, content: BinaryIO | None = None) -> Image.Image:
    """Reads an image file completely.

    Args:
        path: The file; only a name for messages where `content` is given.
        content: Its bytes, where they do not lie in a file of their own.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: missing, truncated, or no image; the message gives the path.
    """
    try:
        with Image.open(content or path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist; check the image folder that was given") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that Pillow knows; download or make it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"image {path} is truncated or damaged ({error}); download or make it again") from error


def find_images(places: Sequence[str | Path], limit: int) -> list[Path]:
    """Lists the image files in folders (at any depth) and among files, evenly thinned out to at most `limit`.

    Raises:
        ImageError: a place does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise ImageError(f"{place} does not exist; give image files or a folder of them")
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [file for file in inside if not place.is_dir() or file.suffix.lower() in _SUFFIXES]
    if not found or limit < 1:
        raise ImageError(f"no image to look at in {', '.join(map(str, places))} ({' '.join(_SUFFIXES)}, limit {limit})")
    count = min(limit, len(found))
    return [found[number * len(found) // count] for number in range(count)]


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


def process_images(
    images: Sequence[Image.Image], processor: Any, aspect_ratio: Literal["pad", "square"] = "pad"
) -> "torch.Tensor":
    """Turns images into the pixels that the tower sees, bit for bit those of LLaVA.

    Args:
        images: One or more; another mode than RGB is converted first, as LLaVA's evaluations do.
        processor: From `load_processor`.
        aspect_ratio: `pad` keeps the whole image, on a square of the mean colour (LLaVA-1.5). `square` takes the middle
            of the image (the processor alone; LLaVA's name for it, also the default of transformers' LLaVA).

    Returns:
        `(B, 3, H, W)`, float32, normalised by the processor's mean and deviation.

    Raises:
        EncoderFormatError: the processor resizes with torchvision, whose pixels differ.
        ImageError: no image was given, or one is a path or tensor.
        ValueError: another `aspect_ratio`.

    Source: LLaVA mm_utils.py `process_images` @ c121f04.
    """
    if aspect_ratio not in ("pad", "square"):
        raise ValueError(f"aspect_ratio is {aspect_ratio!r}; 'pad' or 'square' is expected")
    if not images or not all(isinstance(image, Image.Image) for image in images):
        found = ", ".join(sorted({type(image).__name__ for image in images})) or "nothing"
        raise ImageError(f"process_images was given {found}; a list of Pillow images is expected (tower.open_image)")
    if _TORCHVISION & {base.__name__ for base in type(processor).__mro__}:
        raise EncoderFormatError(
            f"{type(processor).__name__} resizes with torchvision, whose pixels differ from those that LLaVA was "
            "trained on; take tower.load_processor(FOLDER)"
        )
    ready = [image.convert("RGB") for image in images]
    if aspect_ratio == "pad":
        ready = [pad_to_square(image, mean_color(processor)) for image in ready]
    pixels: torch.Tensor = processor(ready, return_tensors="pt")["pixel_values"]
    return pixels


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


def pixel_settings(processor: Any) -> dict[str, Any]:
    """Returns what decides the pixels that an image processor of CLIP makes, comparable between versions."""
    record = processor.to_dict()
    return {name: _plain(record.get(name)) for name in _SETTINGS}


def _plain(value: Any) -> Any:
    """Makes the sizes of every transformers version comparable and JSON-able; switches and numbers stay."""
    if isinstance(value, Mapping):
        sides = {key: number for key, number in value.items() if number is not None}
        return " ".join(f"{key} {number}" for key, number in sorted(sides.items()))
    return [float(item) for item in value] if isinstance(value, list | tuple) else value
