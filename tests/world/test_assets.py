"""The shipped mini models come from the command that claims to make them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.world import ASSETS, MINI_CLIP
from llava_ohd.world.assets import build_assets, check_assets
from llava_ohd.world.mini_clip import MiniClipConfig
from llava_ohd.world.mini_llama import MiniLlamaConfig

SMALL_CLIP = replace(MiniClipConfig(), images=600, steps=2, batch=16, warmup=1)
SMALL_LLAMA = replace(MiniLlamaConfig(), steps=4, lesson_steps=2, lesson_batch=4, batch=2, warmup=2)


def test_shipped_files_are_those_of_the_manifest_and_of_the_code() -> None:
    check_assets()


def test_all_assets_stay_below_8_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 8e6


def test_the_shipped_encoder_passes_every_check() -> None:
    encoder = tower.check(MINI_CLIP)
    assert (encoder.image_size, encoder.patch_size) == (64, 16)


def test_a_rebuild_in_miniature_has_the_shipped_shapes_and_is_reproducible(tmp_path: Path) -> None:
    """Same code, same configuration but for its length: same files, same shapes, and the same weights twice."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    for name in ("a", "b"):
        build_assets(tmp_path / name, SMALL_CLIP, SMALL_LLAMA)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    shipped = json.loads((ASSETS / "manifest.json").read_text())
    assert manifest["files"].keys() == shipped["files"].keys()
    assert manifest["settings"]["world"] == shipped["settings"]["world"]
    for model in ("mini_clip", "mini_llama"):
        file = f"{model}/model.safetensors"
        first, second = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        for key, weight in first.items():  # threads may add in another order: equal but for rounding
            assert torch.allclose(weight.float(), second[key].float(), atol=2e-3), key
        with safe_open(ASSETS / file, "pt") as ours, safe_open(tmp_path / "a" / file, "pt") as new:
            keys = set(ours.keys())
            assert keys == set(new.keys())
            for key in keys:
                assert ours.get_slice(key).get_shape() == new.get_slice(key).get_shape(), key
    for name in ("mini_clip/tokenizer.json", "mini_clip/preprocessor_config.json", "mini_llama/tokenizer.model"):
        if "clip/tokenizer" not in name:  # trained on the captions of fewer pictures here
            assert (tmp_path / "a" / name).read_bytes() == (ASSETS / name).read_bytes(), name


@pytest.mark.parametrize("damage", ["byte", "settings"])
def test_altered_assets_are_noticed(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "assets"
    shutil.copytree(ASSETS, folder)
    if damage == "byte":
        file = folder / "mini_llama" / "tokenizer.model"
        file.write_bytes(file.read_bytes()[:-1])
        message = "missing or altered"
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["settings"]["mini_clip"]["steps"] += 1
        (folder / "manifest.json").write_text(json.dumps(manifest))
        message = "other settings"
    with pytest.raises(DataFormatError, match=message):
        check_assets(folder)
