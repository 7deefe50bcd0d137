"""The light core: one encoder folder that every LLaVA loads, and never the wrong weights.

    folder = tower.resolve("ours")        # a name or a path
    model = tower.load(folder)            # CLIPModel, every weight checked
    pixels = tower.process_images([tower.open_image("photo.jpg")], tower.load_processor(folder))
    verdict = tower.compare("openai", folder, images=["photo.jpg"]).verdict  # must the projector be trained again?

    eyes = tower.OHDVisionTower.of("ours")               # LLaVA's CLIPVisionTower, checked
    tokens = eyes.encode(tower.open_image("photo.jpg"))  # (1, N, D), what the projector gets
    tower.swap(llava_model, "ours")                      # into a live model; every weight compared afterwards

Needs python >= 3.10, torch >= 2.1, transformers >= 4.37, and imports them at the first use of a name that needs them.
"""

from typing import TYPE_CHECKING, Any

from llava_ohd.tower.names import resolve
from llava_ohd.tower.registry import model_for, register, registered

if TYPE_CHECKING:
    from llava_ohd.tower.comparing import Difference, compare
    from llava_ohd.tower.encoder_dir import Encoder, check, load, write
    from llava_ohd.tower.images import load_processor, mean_color, open_image, pad_to_square, process_images
    from llava_ohd.tower.importing import import_encoder
    from llava_ohd.tower.llava_checkpoints import check_llava_base, check_llava_checkpoint
    from llava_ohd.tower.loading import vision_model
    from llava_ohd.tower.registration import (
        register_with_llava,
        register_with_transformers,
        unregister_from_llava,
        unregister_from_transformers,
    )
    from llava_ohd.tower.swapping import swap, verify
    from llava_ohd.tower.tokenizer import load_tokenizer
    from llava_ohd.tower.vision_tower import OHDVisionTower

__all__ = [
    "Difference",
    "Encoder",
    "OHDVisionTower",
    "check",
    "check_llava_base",
    "check_llava_checkpoint",
    "compare",
    "import_encoder",
    "load",
    "load_processor",
    "load_tokenizer",
    "mean_color",
    "model_for",
    "open_image",
    "pad_to_square",
    "process_images",
    "register",
    "register_with_llava",
    "register_with_transformers",
    "registered",
    "resolve",
    "swap",
    "unregister_from_llava",
    "unregister_from_transformers",
    "verify",
    "vision_model",
    "write",
]

_MODULES = {
    "comparing": ("Difference", "compare"),
    "images": ("load_processor", "mean_color", "open_image", "pad_to_square", "process_images"),
    "importing": ("import_encoder",),
    "llava_checkpoints": ("check_llava_base", "check_llava_checkpoint"),
    "loading": ("vision_model",),
    "registration": (
        "register_with_llava",
        "register_with_transformers",
        "unregister_from_llava",
        "unregister_from_transformers",
    ),
    "swapping": ("swap", "verify"),
    "tokenizer": ("load_tokenizer",),
    "vision_tower": ("OHDVisionTower",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = next((module for module, names in _MODULES.items() if name in names), "encoder_dir")
    return getattr(import_module(f"{__name__}.{module}"), name)
