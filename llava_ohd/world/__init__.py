"""The embedded world: rendered multi-object scenes in COCO format, and two mini models that live in them."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent / "assets"
MINI_CLIP = ASSETS / "mini_clip"
MINI_LLAMA = ASSETS / "mini_llama"
