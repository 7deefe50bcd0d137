"""Attention on boxes: a uniform map has density 1 everywhere; weights are transformers'; boxes go through the crop."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.errors import DataFormatError
from llava_ohd.probes.attention import attention_maps, crop_settings, in_crop, object_attention, on_box
from llava_ohd.probes.pictures import Picture, Placed
from llava_ohd.world.multi_object import SLOTS, places


def _pictures(count: int) -> list[Picture]:
    found = []
    for large in range(count):
        squares = places(count, large)
        objects = tuple(
            Placed(f"k{i}", slot, i == large, None, (left, top, size, size))
            for i, (slot, (left, top, size)) in enumerate(zip(SLOTS[count], squares, strict=True))
        )
        found.append(Picture(str(large), objects, (64, 64)))
    return found


@pytest.mark.parametrize("grid", [4, 7, 24])
def test_a_uniform_map_has_density_one_everywhere(grid: int) -> None:
    for count in SLOTS:
        pictures = _pictures(count)
        maps = torch.full((count, grid, grid), 1 / grid**2)
        for by_slot in (False, True):
            found = object_attention(maps, pictures, 64, 64, by_slot)
            assert [e.value for e in found.density] == pytest.approx([1.0] * len(found.positions))
            assert [e.value for e in found.share] == pytest.approx([e.value for e in found.area])
        by_size = object_attention(maps, pictures, 64, 64)
        assert by_size.positions == ("large", "small")
        assert by_size.area[0].value == pytest.approx((28 / 64) ** 2)


def test_the_sum_equals_that_of_the_upsampled_map() -> None:
    attention = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    large = attention.repeat_interleave(16, 0).repeat_interleave(16, 1) / 256  # per pixel
    assert on_box(attention, (10 / 64, 20 / 64, 30 / 64, 17 / 64)) == pytest.approx(float(large[20:37, 10:40].sum()))


def test_all_attention_on_one_object() -> None:
    (picture, *_) = _pictures(4)
    attention = torch.zeros(1, 4, 4)
    attention[0, 3, 3] = 1.0  # cell of the small object at BR, which covers 14 of 16 pixels a side
    found = object_attention(attention, [picture], 64, 64, by_slot=True)
    assert [e.value for e in found.share] == pytest.approx([0.0, 0.0, 0.0, (14 / 16) ** 2])
    assert found.density[3].value == pytest.approx(16.0)


def test_boxes_go_through_resize_and_centre_crop() -> None:
    # 200 x 100 to 64 x 32 shorter side 32, crop 32: the middle half of the width is left
    assert in_crop((50, 0, 100, 100), (200, 100), 32, 32) == pytest.approx((0, 0, 1, 1))
    assert in_crop((75, 25, 50, 25), (200, 100), 32, 32) == pytest.approx((0.25, 0.25, 0.5, 0.25))
    assert in_crop((0, 0, 75, 100), (200, 100), 32, 32) == pytest.approx((0, 0, 0.25, 1))
    assert in_crop((0, 0, 50, 100), (200, 100), 32, 32) is None


def test_a_set_without_boxes_is_refused() -> None:
    picture = Picture("p.png", (Placed("a", "L", True), Placed("b", "R", False)))
    with pytest.raises(DataFormatError, match=r"p\.png: no box is known for a"):
        object_attention(torch.full((1, 2, 2), 0.25), [picture], 32, 32)


def test_maps_are_those_of_transformers(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    names = []
    for number in range(3):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
        names.append(f"{number}.png")
    model, processor = tower.load(tiny_encoder_dir), tower.load_processor(tiny_encoder_dir)
    images = Images(tmp_path, names, processor)
    found = attention_maps(model, images, batch=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.vision_model(pixel_values=images.pixels(range(3)), output_attentions=True).attentions[-1]
    row = weights.mean(1)[:, 0, 1:]
    torch.testing.assert_close(found.flatten(1), row / row.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attention_maps(model, images, count=2), found[:2])
    assert crop_settings(processor) == (32, 32)
