"""Pixels are bit for bit those of LLaVA's own `process_images`, under every transformers version.

golden_pixels.json holds the SHA-256 of the float32 bytes that LLaVA's function (mm_utils.py @ c121f04) made under
transformers 4.37.2, Pillow 13.0.0, numpy 2.4.6, with the preprocessing of CLIP-L/14-336. To make it again:

    LLAVA_REPO=CHECKOUT PYTHONPATH=. .venv-4.37/bin/python tests/tower/test_parity_llava.py
"""

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, ImageError
from llava_ohd.tower.images import mean_color

GOLDEN = Path(__file__).with_name("golden_pixels.json")
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
LLAVA = os.environ.get("LLAVA_REPO", "")
SIZES = [(500, 375), (333, 500), (336, 336), (20, 31), (1024, 7), (337, 336)]
RATIOS = ("pad", "square")
CLIP_L_336 = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
"""preprocessor_config.json of openai/clip-vit-large-patch14-336 @ ce19dc9."""


def picture(width: int, height: int) -> Image.Image:
    """Smooth waves with hard edges, from integers alone, so that every machine has the same one."""
    y, x = numpy.mgrid[:height, :width]
    channels = [(x * 7 + y * 3) % 256, (x * y // 16) % 256, 255 * ((x // 9 + y // 5) % 2)]
    return Image.fromarray(numpy.stack(channels, 2).astype(numpy.uint8))


def processor_in(folder: Path) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP_L_336))
    return tower.load_processor(folder)


def digest(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def llava_mm_utils() -> ModuleType:
    """Loads mm_utils.py of a checkout without the package around it, which imports the whole model."""
    modules = {}
    for name in ("constants", "mm_utils"):
        specification = importlib.util.spec_from_file_location(f"llava.{name}", Path(LLAVA) / "llava" / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        modules[name] = importlib.util.module_from_spec(specification)
        before = sys.modules.get("llava.constants")
        sys.modules["llava.constants"] = modules["constants"]
        try:
            specification.loader.exec_module(modules[name])
        finally:
            sys.modules.pop("llava.constants")
            if before is not None:
                sys.modules["llava.constants"] = before
    return modules["mm_utils"]


def of_llava(images: list[Image.Image], processor: Any, ratio: str) -> torch.Tensor:
    return llava_mm_utils().process_images(images, processor, SimpleNamespace(image_aspect_ratio=ratio))


needs_llava = pytest.mark.skipif(not LLAVA, reason="LLAVA_REPO names no checkout of haotian-liu/LLaVA")


@pytest.mark.parametrize("ratio", RATIOS)
def test_pixels_are_the_golden_ones(tmp_path: Path, ratio: Any) -> None:
    processor, golden = processor_in(tmp_path), json.loads(GOLDEN.read_text())
    for size in SIZES:
        pixels = tower.process_images([picture(*size)], processor, ratio)
        assert (pixels.shape, pixels.dtype) == ((1, 3, 336, 336), torch.float32)
        assert digest(pixels) == golden["x".join(map(str, size))][ratio]


@needs_llava
@pytest.mark.parametrize("ratio", RATIOS)
def test_pixels_are_those_of_the_real_function(tmp_path: Path, ratio: Any) -> None:
    processor, images = processor_in(tmp_path), [picture(*size) for size in SIZES]
    assert torch.equal(tower.process_images(images, processor, ratio), of_llava(images, processor, ratio))


@needs_llava
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no real photos at {PHOTOS}")
@pytest.mark.parametrize("ratio", RATIOS)
def test_pixels_of_real_photos(tmp_path: Path, ratio: Any) -> None:
    processor = processor_in(tmp_path)
    images = [tower.open_image(file) for file in sorted(PHOTOS.rglob("*.jpg"))[::60]]
    assert len(images) > 10
    assert torch.equal(tower.process_images(images, processor, ratio), of_llava(images, processor, ratio))


def test_a_batch_is_its_images_one_by_one(tmp_path: Path) -> None:
    processor, images = processor_in(tmp_path), [picture(*size) for size in SIZES]
    for ratio in RATIOS:
        single = [tower.process_images([image], processor, ratio) for image in images]  # type: ignore[arg-type]
        assert torch.equal(tower.process_images(images, processor, ratio), torch.cat(single))  # type: ignore[arg-type]


def test_other_modes_become_rgb_first(tmp_path: Path) -> None:
    processor = processor_in(tmp_path)
    for mode in ("L", "P", "RGBA", "CMYK"):
        image = picture(60, 40).convert(mode)
        expected = tower.process_images([image.convert("RGB")], processor)
        assert torch.equal(tower.process_images([image], processor), expected)


def test_what_process_images_refuses(tmp_path: Path) -> None:
    processor = processor_in(tmp_path)
    with pytest.raises(ValueError, match="'anyres'"):
        tower.process_images([picture(9, 9)], processor, "anyres")  # type: ignore[arg-type]
    for images in ([], ["photo.jpg"], [torch.zeros(3, 9, 9)]):
        with pytest.raises(ImageError, match="list of Pillow images"):
            tower.process_images(images, processor)  # type: ignore[arg-type]


def test_torchvision_is_refused(tmp_path: Path) -> None:
    """The base classes that the real ones have; torchvision itself is not installed here."""
    from transformers import image_processing_utils

    try:
        from transformers.image_processing_backends import TorchvisionBackend as Base
    except ImportError:
        Base = type("BaseImageProcessorFast", (image_processing_utils.BaseImageProcessor,), {})
    fast = type("CLIPImageProcessorFast", (Base,), {"__init__": lambda self: None})()
    with pytest.raises(EncoderFormatError, match="resizes with torchvision"):
        tower.process_images([picture(9, 9)], fast)


def test_mean_color_is_rounded_down(tmp_path: Path) -> None:
    assert mean_color(processor_in(tmp_path)) == (122, 116, 104)


def write_golden() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        processor = processor_in(Path(folder))
        rows = {
            "x".join(map(str, size)): {ratio: digest(of_llava([picture(*size)], processor, ratio)) for ratio in RATIOS}
            for size in SIZES
        }
    GOLDEN.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    write_golden()
