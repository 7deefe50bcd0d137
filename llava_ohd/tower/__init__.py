"""The light core: one encoder folder that every LLaVA loads, and never the wrong weights.

    folder = tower.resolve("ours")        # a name or a path
    model = tower.load(folder)            # CLIPModel, every weight checked
    pixels = tower.process_images([tower.open_image("photo.jpg")], tower.load_processor(folder))
    verdict = tower.compare("openai", folder, images=["photo.jpg"]).verdict  # must the projector be trained again?

Needs python >= 3.10, torch >= 2.1, transformers >= 4.37, and imports them at the first use of a name that needs them.
"""

from typing import TYPE_CHECKING, Any

from llava_ohd.tower.names import model_for, register, registered, resolve

if TYPE_CHECKING:
    from llava_ohd.tower.comparing import Difference, compare
    from llava_ohd.tower.encoder_dir import Encoder, check, load, load_tokenizer, write
    from llava_ohd.tower.images import load_processor, mean_color, open_image, pad_to_square, process_images

__all__ = [
    "Difference",
    "Encoder",
    "check",
    "compare",
    "load",
    "load_processor",
    "load_tokenizer",
    "mean_color",
    "model_for",
    "open_image",
    "pad_to_square",
    "process_images",
    "register",
    "registered",
    "resolve",
    "write",
]

_MODULES = dict.fromkeys(("load_processor", "mean_color", "open_image", "pad_to_square", "process_images"), "images")
_MODULES |= dict.fromkeys(("Difference", "compare"), "comparing")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'encoder_dir')}"), name)
