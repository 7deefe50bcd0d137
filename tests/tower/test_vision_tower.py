"""The tower gives what transformers' CLIPVisionModel and LLaVA's CLIPVisionTower give, to the bit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ImageError


def args(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"mm_vision_select_layer": -2} | more))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = numpy.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=numpy.uint8)).convert(mode)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hidden(tiny_encoder_dir: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Layer -2 of transformers' own class, loaded by transformers: (3, 17, 32)."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(tiny_encoder_dir).eval()
    with torch.no_grad():
        return model(pixels, output_hidden_states=True).hidden_states[-2]


def test_batch_equals_transformers(tiny_encoder_dir: Path, pixels: torch.Tensor, hidden: torch.Tensor) -> None:
    eyes = tower.OHDVisionTower(str(tiny_encoder_dir), args())
    assert torch.equal(eyes(pixels), hidden[:, 1:])
    assert not eyes(pixels).requires_grad
    assert not any(weight.requires_grad for weight in eyes.parameters())
    everything = tower.OHDVisionTower(tiny_encoder_dir, args(mm_vision_select_feature="cls_patch"))
    assert torch.equal(everything(pixels), hidden)


def test_list_is_seen_one_by_one(tiny_encoder_dir: Path, pixels: torch.Tensor) -> None:
    eyes = tower.OHDVisionTower.of(tiny_encoder_dir)
    found = eyes(list(pixels))
    assert [one.shape for one in found] == [(1, 16, 32)] * 3
    assert all(torch.equal(one, eyes(image[None])) for one, image in zip(found, pixels, strict=True))


def test_type_of_the_images_comes_back(tiny_encoder_dir: Path, pixels: torch.Tensor) -> None:
    eyes = tower.OHDVisionTower.of(tiny_encoder_dir).to(torch.bfloat16)
    assert (eyes.dtype, eyes.device) == (torch.bfloat16, torch.device("cpu"))
    assert eyes(pixels).dtype == torch.float32
    assert torch.equal(eyes(pixels), eyes(pixels.bfloat16()).float())
    assert eyes(list(pixels.half()))[0].dtype == torch.float16
    assert (eyes.dummy_feature.shape, eyes.dummy_feature.dtype) == ((1, 32), torch.bfloat16)


def test_sizes_are_known_before_loading(tiny_encoder_dir: Path) -> None:
    eyes = tower.OHDVisionTower(tiny_encoder_dir, args(), delay_load=True)
    for _ in range(2):
        assert (eyes.hidden_size, eyes.num_patches_per_side, eyes.num_patches) == (32, 4, 16)
        assert eyes.config.image_size == 32
        eyes.load_model()
        assert eyes.is_loaded
    first = eyes.vision_tower
    eyes.load_model()
    assert eyes.vision_tower is first
    assert (eyes.vision_tower_name, eyes.encoder) == (str(tiny_encoder_dir), tower.check(tiny_encoder_dir))


def test_checkpoint_weights_find_their_place(tiny_encoder_dir: Path) -> None:
    waiting = tower.OHDVisionTower(tiny_encoder_dir, args(), delay_load=True)
    ready = tower.OHDVisionTower(tiny_encoder_dir, args(unfreeze_mm_vision_tower=True), delay_load=True)
    assert (waiting.is_loaded, ready.is_loaded) == (False, True)
    assert list(waiting.parameters()) == []


def test_weights_are_real_inside_a_model_without_storage(tiny_encoder_dir: Path, pixels: torch.Tensor) -> None:
    expected = tower.OHDVisionTower.of(tiny_encoder_dir)(pixels)
    with torch.device("meta"):
        eyes = tower.OHDVisionTower.of(tiny_encoder_dir)
    assert torch.equal(eyes(pixels), expected)


@pytest.mark.parametrize("where", [None, "cpu", "auto", {"": "cpu"}, torch.device("cpu")])
def test_device_map(tiny_encoder_dir: Path, where: Any) -> None:
    eyes = tower.OHDVisionTower(tiny_encoder_dir, args(), delay_load=True)
    eyes.load_model(device_map=where)
    assert eyes.device.type == ("cuda" if where == "auto" and torch.cuda.is_available() else "cpu")


def test_split_device_map(tiny_encoder_dir: Path) -> None:
    eyes = tower.OHDVisionTower(tiny_encoder_dir, args(), delay_load=True)
    with pytest.raises(EncoderFormatError, match="splits the tower"):
        eyes.load_model(device_map={"a": 0, "b": 1})


def test_names_and_damaged_folders(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    tower.register("mine", tiny_encoder_dir)
    assert tower.OHDVisionTower.of("mine").vision_tower_name == str(tiny_encoder_dir)
    with pytest.raises(EncoderNotFound, match="unknown encoder 'yours'"):
        tower.OHDVisionTower("yours", args(), delay_load=True)
    spoilt = Path(shutil.copytree(tiny_encoder_dir, tmp_path / "spoilt"))
    content = bytearray((spoilt / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (spoilt / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderFormatError, match="altered"):
        tower.OHDVisionTower.of(spoilt)


def test_wrong_feature(tiny_encoder_dir: Path, pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="select_feature is 'cls'"):
        tower.OHDVisionTower.of(tiny_encoder_dir, select_feature="cls")(pixels)


def test_vision_model_is_transformers_own(tiny_encoder_dir: Path, pixels: torch.Tensor, hidden: torch.Tensor) -> None:
    from transformers import CLIPVisionModel

    model = tower.vision_model(tiny_encoder_dir)
    assert isinstance(model, CLIPVisionModel)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(pixels, output_hidden_states=True).hidden_states[-2], hidden)


# --- PIL images in


@pytest.mark.parametrize("pad", [True, False])
def test_encode_equals_the_exact_entry(tiny_encoder_dir: Path, pad: bool) -> None:
    eyes, processor = tower.OHDVisionTower.of(tiny_encoder_dir), tower.load_processor(tiny_encoder_dir)
    images = [picture(50, 40), picture(20, 60), picture(32, 32)]
    ready = [tower.pad_to_square(image, (122, 116, 104)) for image in images] if pad else images
    expected = eyes(processor(ready, return_tensors="pt")["pixel_values"])
    assert torch.equal(eyes.encode(images, pad=pad), expected)
    assert torch.equal(eyes.encode(images[0], pad=pad), eyes(processor(ready[:1], return_tensors="pt")["pixel_values"]))


def test_encode_any_mode_in_the_towers_type(tiny_encoder_dir: Path) -> None:
    eyes = tower.OHDVisionTower.of(tiny_encoder_dir).to(torch.bfloat16)
    for mode in ("L", "RGBA", "P"):
        assert eyes.encode(picture(9, 7, mode)).shape == (1, 16, 32)
    assert eyes.encode(picture(9, 7)).dtype == torch.bfloat16
    for nothing, found in (([], "nothing"), (["photo.jpg"], "str"), (torch.zeros(3, 32, 32), "Tensor")):
        with pytest.raises(ImageError, match=f"was given {found}; a list of Pillow images"):
            eyes.encode(nothing)
    eyes.image_processor = type("BaseImageProcessorFast", (), {"image_mean": [0.5] * 3})()
    with pytest.raises(EncoderFormatError, match="resizes with torchvision"):
        eyes.encode(picture(9, 7))


# --- S2: the formula of its paper written out, one tile at a time


def slow_s2(eyes: Any, images: torch.Tensor, scales: list[int]) -> torch.Tensor:
    merged = []
    for scale in scales:
        count = -(-scale // scales[0])
        resized = interpolate(images, size=(scale, scale), mode="bicubic")
        resized = interpolate(resized, size=(32 * count, 32 * count), mode="bicubic")
        whole = torch.zeros(len(images), 32, 4 * count, 4 * count)
        for row in range(count):
            for column in range(count):
                tile = resized[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                for line, tokens in enumerate(eyes(tile).split(4, dim=1)):
                    whole[:, :, 4 * row + line, 4 * column : 4 * column + 4] = tokens.transpose(1, 2)
        merged.append(adaptive_avg_pool2d(adaptive_avg_pool2d(whole, -(-scale * 4 // scales[0])), 4))
    return torch.cat(merged, dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("scales", ["32,64,96", "96,32,64", "32,48", "32"])
def test_s2(tiny_encoder_dir: Path, scales: str) -> None:
    eyes = tower.OHDVisionTower(tiny_encoder_dir, args(s2=True, s2_scales=scales))
    ordered = sorted(map(int, scales.split(",")))
    images = torch.randn(2, 3, ordered[-1], ordered[-1], generator=torch.Generator().manual_seed(0))
    found = eyes(images)
    assert found.shape == (2, 16, 32 * len(ordered))
    assert eyes.hidden_size == 32 * len(ordered)
    expected = slow_s2(tower.OHDVisionTower.of(tiny_encoder_dir), images, ordered)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.cat(eyes(list(images))), found, rtol=0, atol=2e-6)


def test_s2_images_come_in_the_largest_size(tiny_encoder_dir: Path) -> None:
    eyes = tower.OHDVisionTower(tiny_encoder_dir, args(s2=True, s2_scales="32,64"), delay_load=True)
    eyes.load_model()
    assert eyes.image_processor(picture(50, 40), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    assert eyes.encode(picture(50, 40)).shape == (1, 16, 64)
    assert tower.load_processor(tiny_encoder_dir).crop_size["height"] == 32


@pytest.mark.parametrize("scales", ["32;64", "32,", "", "32,0", "32,-64"])
def test_s2_scales_that_are_no_sizes(tiny_encoder_dir: Path, scales: str) -> None:
    with pytest.raises(EncoderFormatError, match=r"s2_scales is .*sizes in pixels with commas are expected, 336,672"):
        tower.OHDVisionTower(tiny_encoder_dir, args(s2=True, s2_scales=scales), delay_load=True)


def test_s2_of_another_size(tiny_encoder_dir: Path) -> None:
    with pytest.raises(EncoderFormatError, match=r"\[336, 672, 1008\] is 336 pixels, but the encoder .* takes 32"):
        tower.OHDVisionTower(tiny_encoder_dir, args(s2=True), delay_load=True)
