"""What a frozen tower makes of every image, kept on disk: computed once for all epochs, runs and ranks.

    DIR/cache.json              which tower, layer, preprocessing and type; anything else is refused
    DIR/<hash>.safetensors      features (up to 128, N, C), with the names and sizes of their images

Opt-in (`--feature_cache DIR`): an image of LLaVA-1.5 takes 1.2 MB in bfloat16, the 558,128 of its first stage 613 GiB.
The size is printed before anything is computed. Every file is written whole or not at all, so that a run that was
stopped goes on with what is missing; so does one with more images. An image whose file has another size than before
is computed again; one that was replaced by another of the same size is not noticed.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from llava_ohd.errors import DataFormatError, ModelFormatError, StorageError
from llava_ohd.files import atomic_path, read_json, sha256_json, write_json
from llava_ohd.llava15.packed_step import tower_features
from llava_ohd.progress import track
from llava_ohd.results import differences
from llava_ohd.tower import Encoder, load_processor

__all__ = ["CachedBatches", "CachedPixels", "FeatureCache", "cached"]

FORMAT = 1
_SHARD = 128  # images: 151 MB of LLaVA-1.5's
_BATCH = 16
_GIB = 2**30


class FeatureCache:
    """Features of images in a folder.

    Args:
        folder: New, or a cache.
        settings: Everything that features depend on: `encoder` (digest), `layer`, `aspect_ratio`, `processor`
            (sha256), `tokens` and `width` of an image's features, `dtype`.

    Raises:
        ModelFormatError: the folder is a cache of another tower, or of other settings.
        StorageError: the folder holds something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings | {"format": FORMAT, "kind": "features"}
        self._places: dict[tuple[str, int], tuple[str, int]] = {}
        head = folder / "cache.json"
        if head.is_file():
            if changed := differences(read_json(head), self.settings):
                raise ModelFormatError(
                    f"{folder} holds features of another tower or preprocessing: {'; '.join(changed[:4])}. Give "
                    "another --feature_cache, or remove that folder to compute them again"
                )
        elif folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise StorageError(f"{folder} holds something else (no cache.json in it); give another --feature_cache")
        else:
            write_json(head, self.settings)

    @property
    def bytes_per_image(self) -> int:
        """Bytes that the features of one image take."""
        size: int = getattr(torch, self.settings["dtype"]).itemsize
        return int(self.settings["tokens"] * self.settings["width"] * size)

    def scan(self) -> list[Path]:
        """Reads which images are there; returns files that are damaged."""
        self._places, damaged = {}, []
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as shard:
                    images = json.loads(shard.metadata()["images"])
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                damaged.append(file)
                continue
            self._places |= {(name, size): (file.name, row) for row, (name, size) in enumerate(images)}
        return damaged

    def missing(self, sizes: dict[str, int]) -> list[str]:
        """Returns the names of images that were not there, with these file sizes in bytes, at the last scan."""
        return [name for name, size in sizes.items() if (name, size) not in self._places]

    def write(self, images: list[tuple[str, int]], features_INC: Tensor) -> None:
        """Writes the features of images, given with their file sizes.

        Raises:
            StorageError: the disk is full or not writable.
        """
        stored = features_INC.to(getattr(torch, self.settings["dtype"])).cpu().contiguous()
        with atomic_path(self.folder / f"{sha256_json(images)[:32]}.safetensors") as temporary:
            save_file({"features": stored}, temporary, {"images": json.dumps(images)})

    def read(self, name: str, size: int) -> Tensor:
        """Returns the features (N, C) of an image; only they are read from the file."""
        file, row = self._places[name, size]
        with safe_open(self.folder / file, "pt") as shard:
            features: Tensor = shard.get_slice("features")[row]
        return features


def fill(
    cache: FeatureCache,
    sizes: dict[str, int],
    compute: Callable[[list[str]], Iterator[Tensor]],
    say: Callable[[str], None],
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Computes what is missing; every rank a share. All ranks must call it.

    Args:
        cache: The cache.
        sizes: Images, and the sizes of their files in bytes.
        compute: From names to batches of features (I, N, C), in order.
        say: Gets lines for the user.
        rank: This process.
        ranks: Number of processes.

    Raises:
        StorageError: there is not enough room.
        ImageError: an image cannot be read.
    """
    for file in cache.scan():
        say(f"{file} is half-written: its images are computed again")
        if rank == 0:
            file.unlink(missing_ok=True)
    names = cache.missing(sizes)
    needed, shape = len(names) * cache.bytes_per_image, "{tokens} x {width} {dtype}".format(**cache.settings)
    free = shutil.disk_usage(cache.folder).free
    say(
        f"feature cache {cache.folder}: {len(sizes) - len(names):,} of {len(sizes):,} images are there; "
        f"{len(names):,} of {shape} take {needed / _GIB:.2f} GiB, {free / _GIB:.1f} GiB are free"
    )
    if needed > free:
        raise StorageError(
            f"the feature cache needs {needed / _GIB:.2f} GiB more in {cache.folder}, {free / _GIB:.2f} GiB are free; "
            "make room, give a --feature_cache on another disk, or leave it out"
        )
    _wait()  # nobody writes before all have seen what is missing
    shards = [names[start : start + _SHARD] for start in range(0, len(names), _SHARD)]
    for shard in track(shards[rank::ranks], "computing features"):
        features = torch.cat([part.cpu() for part in compute(shard)])
        cache.write([(name, sizes[name]) for name in shard], features)
    _wait()
    cache.scan()
    if names := cache.missing(sizes):
        raise StorageError(f"{cache.folder} still lacks {len(names)} images, first {names[0]}; run the command again")


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


@dataclass(frozen=True)
class CachedPixels:
    """Stands in for `Pixels`: gives features (1, N, C), one channel instead of three, where that gives pixels.

    Attributes:
        pixels: What it stands for.
        cache: A filled cache.
        sizes: Of the image files, in bytes.
    """

    pixels: Any
    cache: FeatureCache
    sizes: dict[str, int]

    def __call__(self, name: str) -> Tensor:
        """Returns the features of an image."""
        return self.cache.read(name, self.sizes[name])[None]

    def __getattr__(self, name: str) -> Any:  # where images come from is as before
        if name == "pixels" or name.startswith("__"):  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.pixels, name)


@dataclass(frozen=True)
class CachedBatches:
    """Makes the hidden image of a batch of text only one of features too, so that no rank runs its tower.

    Attributes:
        batches: `Batches`.
        shape: (N, C) of an image's features.
    """

    batches: Any
    shape: tuple[int, int]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns a batch."""
        batch: dict[str, Any] = self.batches(examples)
        if batch["pixel_values"].shape[1] != 1:
            batch["pixel_values"] = torch.zeros(1, 1, *self.shape)
        return batch


def cached(
    pixels: Any,
    batches: Any,
    names: Iterable[str],
    model: Any,
    aspect_ratio: str,
    training: Any,
    encoder: Encoder,
) -> tuple[CachedPixels, CachedBatches]:
    """Fills the cache of a run, and returns what takes the place of its `Pixels` and `Batches`. All ranks must call it.

    Args:
        pixels: Preprocessed images of the run.
        batches: Collator of the run.
        names: Image files; the same may come again.
        model: What trains, not yet split or moved.
        aspect_ratio: `pad` or `square`.
        training: The run's `TrainingArguments`.
        encoder: That of the run.

    Raises:
        DataFormatError: the tower trains, so that its features change.
        ModelFormatError, StorageError: as `FeatureCache` and `fill`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = base.model.vision_tower
    if any(weight.requires_grad for weight in tower.parameters()):
        raise DataFormatError("--feature_cache keeps what a frozen tower makes, but the tower trains; leave it out")
    dtype = training.feature_cache_dtype
    settings = {
        "encoder": encoder.digest,
        "layer": base.config.vision_feature_layer,
        "aspect_ratio": aspect_ratio,
        "processor": sha256_json(json.loads(load_processor(encoder.path).to_json_string())),
        "tokens": (encoder.image_size // encoder.patch_size) ** 2,
        "width": encoder.hidden_size,
        "dtype": str(tower.dtype if dtype == "auto" else dtype).removeprefix("torch."),
    }
    cache = FeatureCache(Path(training.feature_cache).resolve(), settings)
    sizes = {name: pixels.source.size(name) for name in dict.fromkeys(names)}
    compute = partial(_features, base, pixels, training)
    say = print if training.process_index == 0 else _silent
    fill(cache, sizes, compute, say, training.process_index, training.world_size)
    return CachedPixels(pixels, cache, sizes), CachedBatches(batches, (settings["tokens"], settings["width"]))


def _features(model: Any, pixels: Any, training: Any, names: list[str]) -> Iterator[Tensor]:
    """Yields what the tower makes of images, batch by batch, on the run's device."""
    tower, workers = model.model.vision_tower, training.dataloader_num_workers
    device = tower.device
    tower.to(training.device)
    loader: Any = DataLoader(names, _BATCH, num_workers=workers, collate_fn=partial(_stack, pixels))  # type: ignore[arg-type]
    for batch in loader:
        features, which = tower_features(model, batch.to(training.device))
        yield features[which]
    tower.to(device)


def _stack(pixels: Any, names: list[str]) -> Tensor:
    return torch.stack([torch.as_tensor(pixels(name)) for name in names])


def _silent(_: str) -> None:
    """Says nothing: rank 0 does."""
