"""The light core: one encoder folder that every LLaVA loads, and never the wrong weights.

    folder = tower.resolve("ours")        # a name or a path
    model = tower.load(folder)            # CLIPModel, every weight checked
    pixels = tower.load_processor(folder)(tower.open_image("photo.jpg"), return_tensors="pt")["pixel_values"]

Needs python >= 3.10, torch >= 2.1, transformers >= 4.37, and imports them at the first use of a name that needs them.
"""

from typing import TYPE_CHECKING, Any

from llava_ohd.tower.names import model_for, register, registered, resolve

if TYPE_CHECKING:
    from llava_ohd.tower.encoder_dir import Encoder, check, load, load_tokenizer, write
    from llava_ohd.tower.images import load_processor, mean_color, open_image, pad_to_square
    from llava_ohd.tower.importing import import_encoder

__all__ = [
    "Encoder",
    "check",
    "import_encoder",
    "load",
    "load_processor",
    "load_tokenizer",
    "mean_color",
    "model_for",
    "open_image",
    "pad_to_square",
    "register",
    "registered",
    "resolve",
    "write",
]

_PLACES = dict.fromkeys(("load_processor", "mean_color", "open_image", "pad_to_square"), "images")
_PLACES["import_encoder"] = "importing"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'encoder_dir')}"), name)
