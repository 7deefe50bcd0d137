"""Images are read whole or not at all, and become the pixels that LLaVA would make of them."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, ImageError


def picture(width: int, height: int) -> Image.Image:
    generator = numpy.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=numpy.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture(20, 10).convert(mode).save(file)
    image = tower.open_image(file)
    assert (image.mode, image.size) == ("RGB", (20, 10))


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_truncated_image(tmp_path: Path, name: str, share: float) -> None:
    file = tmp_path / name
    picture(64, 64).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=str(file)):
        tower.open_image(file)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        tower.open_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=str(tmp_path)):
        tower.open_image(tmp_path)
    for content in (b"", b"<html>404</html>"):
        (tmp_path / "page.jpg").write_bytes(content)
        with pytest.raises(ImageError, match="not an image"):
            tower.open_image(tmp_path / "page.jpg")


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 31), (16, 16)])
def test_pad_to_square(width: int, height: int) -> None:
    image, color = picture(width, height), (122, 116, 104)
    square = numpy.asarray(tower.pad_to_square(image, color))
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    assert square.shape == (side, side, 3)
    inside = numpy.zeros((side, side), bool)
    inside[top : top + height, left : left + width] = True
    assert (square[inside] == numpy.asarray(image).reshape(-1, 3)).all()
    assert (square[~inside] == color).all()


def test_processor_pixels(tiny_encoder_dir: Path) -> None:
    """Against the arithmetic written out: bicubic resize by Pillow, centre crop, scale, normalise."""
    processor = tower.load_processor(tiny_encoder_dir)
    assert tower.mean_color(processor) == (122, 116, 104)
    image = tower.pad_to_square(picture(50, 40), tower.mean_color(processor))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    small = torch.from_numpy(numpy.array(image.resize((32, 32), Image.Resampling.BICUBIC))).double() / 255
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = ((small - mean) / deviation).permute(2, 0, 1)[None].float()
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_missing_processor(tmp_path: Path) -> None:
    with pytest.raises(EncoderFormatError, match=r"no preprocessor_config\.json"):
        tower.load_processor(tmp_path)
