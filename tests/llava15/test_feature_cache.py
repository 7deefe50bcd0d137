"""Features on disk: the same losses, resumed, shared by ranks, and never those of another tower."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_ohd.errors import ModelFormatError, StorageError
from llava_ohd.llava15 import feature_cache
from llava_ohd.llava15.feature_cache import CachedBatches, CachedPixels, FeatureCache, fill
from llava_ohd.llava15.packing import pack

SETTINGS: dict[str, Any] = {"encoder": "a" * 64, "layer": -2, "aspect_ratio": "pad", "processor": "b" * 64}
SETTINGS |= {"tokens": 4, "width": 3, "dtype": "float32"}
SIZES = {f"{number:03d}.png": 100 + number for number in range(300)}


def features_of(name: str) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(int(name[:3])))


class Computing:
    """Computes features, counts them, and dies after so many shards where that is asked for."""

    def __init__(self, shards: int = 100) -> None:
        self.names: list[str] = []
        self._left = shards

    def __call__(self, names: list[str]) -> Iterator[torch.Tensor]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.names += names
        for start in range(0, len(names), 16):
            yield torch.stack([features_of(name) for name in names[start : start + 16]])


def assert_whole(cache: FeatureCache) -> None:
    cache.scan()
    for name, size in SIZES.items():
        assert torch.equal(cache.read(name, size), features_of(name))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    cache, said = FeatureCache(tmp_path / "cache", SETTINGS), []
    fill(cache, SIZES, Computing(), said.append)
    assert "0 of 300 images are there; 300 of 4 x 3 float32 take 0.00 GiB" in said[0]
    assert_whole(FeatureCache(tmp_path / "cache", SETTINGS))
    again = Computing()
    fill(cache, SIZES, again, said.append)
    assert again.names == []


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        fill(cache, SIZES, Computing(shards=1), print)
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 1
    rest = Computing()
    fill(cache, SIZES, rest, print)
    assert rest.names == list(SIZES)[128:]
    assert_whole(cache)


def test_a_half_written_file_is_computed_again(tmp_path: Path) -> None:
    cache, said = FeatureCache(tmp_path / "cache", SETTINGS), []
    fill(cache, SIZES, Computing(), print)
    torn = sorted((tmp_path / "cache").glob("*.safetensors"))[0]
    torn.write_bytes(torn.read_bytes()[:-50])
    again = Computing()
    fill(cache, SIZES, again, said.append)
    assert said[0] == f"{torn} is half-written: its images are computed again"
    assert 0 < len(again.names) < 300
    assert_whole(cache)


def test_new_and_changed_images_are_added(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", SETTINGS)
    fill(cache, {name: size for name, size in SIZES.items() if name < "100"}, Computing(), print)
    added = Computing()
    fill(cache, SIZES | {"007.png": 1}, added, print)
    assert sorted(added.names) == ["007.png", *(name for name in SIZES if name >= "100")]


def test_ranks_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [Computing(), Computing()]
    caches = [FeatureCache(tmp_path / "cache", SETTINGS) for _ in ranks]
    turns = [0]

    def other_rank() -> None:  # all that rank 1 does happens while rank 0 waits the second time
        turns[0] += 1
        if turns[0] == 2:
            fill(caches[1], SIZES, ranks[1], print, rank=1, ranks=2)

    missing = FeatureCache.missing

    def as_before(cache: FeatureCache, sizes: dict[str, int]) -> list[str]:
        return list(sizes) if cache is caches[1] and turns[0] == 2 else missing(cache, sizes)

    monkeypatch.setattr(feature_cache, "_wait", other_rank)
    monkeypatch.setattr(FeatureCache, "missing", as_before)
    fill(caches[0], SIZES, ranks[0], print, rank=0, ranks=2)
    assert sorted(ranks[0].names + ranks[1].names) == list(SIZES)
    assert len(ranks[1].names) == 128
    assert_whole(caches[1])


@pytest.mark.parametrize(
    ("setting", "value"), [("encoder", "c" * 64), ("layer", -1), ("aspect_ratio", "square"), ("dtype", "bfloat16")]
)
def test_another_cache_is_refused(setting: str, value: Any, tmp_path: Path) -> None:
    FeatureCache(tmp_path / "cache", SETTINGS)
    with pytest.raises(ModelFormatError, match=f"another tower or preprocessing: .*{setting}"):
        FeatureCache(tmp_path / "cache", SETTINGS | {setting: value})


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="holds something else"):
        FeatureCache(tmp_path, SETTINGS)


def test_a_small_disk_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, computing = FeatureCache(tmp_path / "cache", SETTINGS), Computing()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 * 4 * 3 * 4 - 1))
    with pytest.raises(StorageError, match=r"needs 0\.00 GiB more .* another disk"):
        fill(cache, SIZES, computing, print)
    assert computing.names == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 * 4 * 3 * 4))
    fill(cache, SIZES, computing, print)


def test_the_hidden_image_of_a_text_batch_is_of_features(tmp_path: Path) -> None:
    from llava_ohd.llava15.dataset import Batches

    example = {"number": 1, "input_ids": [1, 5, 6], "labels": [-100, -100, 6], "pixel_values": None}
    stored = FeatureCache(tmp_path / "cache", SETTINGS)
    stand_in = pickle.loads(pickle.dumps(CachedPixels(SimpleNamespace(folder=tmp_path), stored, {})))
    assert stand_in.folder == tmp_path  # also in the worker of a data loader
    batch = CachedBatches(Batches(4, 32), (4, 3))([example])
    assert batch["pixel_values"].shape == (1, 1, 4, 3)
    assert pack(*(batch[name] for name in ("input_ids", "labels", "attention_mask"))).lengths == [3]
