"""Puts another encoder into a trained model, whose projector is kept, re-fitted, or taken from a stage projector.

The result is a model folder of its own kind ("llava-swapped"): its ohd.json says which encoder it runs on, which it was
trained on, and how the projector came about. Evaluations say so, and trainings do not start from it.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_ohd import tower
from llava_ohd.command_line import helps
from llava_ohd.errors import DataFormatError, ModelFormatError
from llava_ohd.files import atomic_folder, read_json, sha256_file, write_json
from llava_ohd.llava15 import model_dir, refit
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.row_files import records
from llava_ohd.llava15.rows import examine
from llava_ohd.llava15.weight_names import PROJECTOR, TOWER
from llava_ohd.progress import track
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.same_tower import check_geometry

__all__ = ["SwapConfig", "swap"]

_BATCH = 8  # images


@dataclass(frozen=True)
class SwapConfig:
    """Which encoder goes into which model."""

    model: Path = field(metadata=helps("model folder of scripts/finetune_llava.py, or a conversion to LLaVA's layout"))
    encoder: str = field(metadata=helps("the encoder to put in: ours, openai, another name, or a folder"))
    out: Path = field(metadata=helps("folder to write; LLaVA needs 'llava' and, with an adapter, 'lora' in its name"))
    projector: str = field(
        default="keep", metadata=helps("keep; refit: affine least squares; or what stage projector wrote for it")
    )
    data_path: Path | None = field(
        default=None, metadata=helps("refit: training file whose images are used (default: the model's own)")
    )
    image_folder: Path | None = field(default=None, metadata=helps("refit: folder, .zip or .tar of the images"))
    images: int = field(default=1000, metadata=helps("refit: number of images, drawn from those of the file"))
    seed: int = field(default=0, metadata=helps("refit: of the draw"))


def swap(config: SwapConfig) -> model_dir.ModelDir:
    """Writes the model with the other encoder.

    Args:
        config: What goes where.

    Returns:
        The new model folder; with `refit.json` in it where a map was fitted.

    Raises:
        ModelNotFound, ModelFormatError: the model or the projector is gone, altered, or made for something else.
        EncoderNotFound, EncoderFormatError: an encoder is gone, damaged, or of another geometry.
        DataFormatError, ImageError: images of the fit are missing.
        StorageError: `out` holds something else, or the disk is full.
    """
    source = model_dir.read(config.model)
    if source.swapped:
        raise ModelFormatError(f"{source.path} is swapped already; give the model that it was made of as --model")
    old, new = model_dir.encoder_of(source), tower.check(tower.resolve(config.encoder))
    check_geometry(read_config(old.path).vision_config, read_config(new.path).vision_config, new.name)
    weights = {name: w for name, w in model_dir.stored_weights(source).items() if TOWER not in name}
    projector, note, fitted = _projector(config, source, old, new)
    for name, weight in projector.items():
        place = next(key for key in weights if key.endswith(name))
        if weights[place].shape != weight.shape:
            raise ModelFormatError(f"{config.projector}: {name} has another shape than in {source.path}")
        weights[place] = weight.to(weights[place].dtype)
    record = {
        "kind": model_dir.SWAPPED,
        "stage": source.stage,
        "encoder": {"path": str(new.path), "digest": new.digest, "name": new.name},
        "base": _base(source),
        "config": source.config,
        "swapped": {
            "trained_on": {"name": old.name, "digest": old.digest},
            "source": {"path": str(source.path), "digest": source.digest},
            **note,
        },
    }
    for_llava = {"mm_vision_tower": str(new.path), "unfreeze_mm_vision_tower": False}
    with atomic_folder(config.out.expanduser().absolute(), marker="ohd.json") as folder:
        if fitted:
            write_json(folder / "refit.json", fitted)
        model_dir.write(folder, weights, record, read_json(source.path / "config.json") | for_llava)
    return model_dir.read(config.out)


def _base(source: model_dir.ModelDir) -> dict[str, str]:
    if source.stage != "full":
        return source.base
    return {"path": str(source.path), "sha256": model_dir.base_sha256(source.path)}


def _projector(
    config: SwapConfig, source: model_dir.ModelDir, old: tower.Encoder, new: tower.Encoder
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Returns the projector, what ohd.json says of it, and what was measured at the fit."""
    if config.projector == "keep":
        return {}, {"projector": "kept"}, {}
    if config.projector != "refit":
        return *_retrained(Path(config.projector), source, new), {}
    kept = model_dir.stored_weights(source, "mm_projector.")
    names = {f"{layer}.{part}" for layer in PROJECTOR for part in ("weight", "bias")}
    projector = {name: next(w for key, w in kept.items() if key.endswith(name)) for name in names}
    data = config.data_path or Path(source.config.get("data_path", ""))
    folder = config.image_folder or Path(source.config.get("image_folder", ""))
    started = time.monotonic()
    chosen = _images(data, config.images, config.seed)
    affine = refit.fit(_features(source.config, (new, old), folder, chosen))
    draw = {"data_sha256": sha256_file(data), "images": len(chosen), "seed": config.seed}
    measured = {
        "images": len(chosen),
        "tokens": affine.tokens,
        "fitted_numbers": affine.weight.numel() + affine.bias.numel(),
        "explained": affine.explained,
        "explained_held_out": affine.explained_held_out,
        "explained_before": affine.explained_before,
        "seconds": time.monotonic() - started,
    }
    return refit.fold(projector, affine), {"projector": "re-fitted", "refit": draw}, measured


def _retrained(place: Path, source: model_dir.ModelDir, new: tower.Encoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what stage projector wrote, for the same language model and this very encoder."""
    file = model_dir.projector_file(place)
    if not (file.parent / "ohd.json").is_file():
        raise ModelFormatError(f"{file} has no ohd.json beside it that says for which encoder it was trained")
    made = model_dir.read(file.parent)
    if made.swapped or made.encoder["digest"] != new.digest:
        raise ModelFormatError(
            f"{file} was trained for the encoder with digest {made.encoder['digest'][:12]}, --encoder {new.name} has "
            f"{new.digest[:12]}; run stage projector for this encoder"
        )
    if source.stage != "full" and made.base["sha256"] != source.base["sha256"]:
        raise ModelFormatError(f"{file} was trained on another language model than {source.path}; give one of the same")
    return model_dir.read_projector(file), {"projector": "of stage projector", "projector_sha256": sha256_file(file)}


def _images(data: Path, count: int, seed: int) -> list[str]:
    """Draws image names from a training file, each once."""
    if not data.is_file():
        raise DataFormatError(f"the training file {str(data)!r} is not there; give one as --data_path")
    rows = (examine(row, "v1")[0] for _, row in records(data))
    names = list(dict.fromkeys(name for row in rows if row for name in row["images"]))
    return random.Random(seed).sample(names, min(count, len(names)))


def _features(
    flags: dict[str, Any], encoders: tuple[tower.Encoder, tower.Encoder], folder: Path, names: list[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the patch tokens (B, N, C) of both encoders at the layer that the model reads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    towers: list[Any] = [tower.load(encoder.path).vision_model.to(device) for encoder in encoders]
    pad = flags["image_aspect_ratio"] == "pad"
    readers = [Pixels(folder, tower.load_processor(encoder.path), pad, None) for encoder in encoders]
    layer = flags["mm_vision_select_layer"]
    batches = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]
    for batch in track(batches, "features of both encoders"):
        found = []
        for vision, pixels in zip(towers, readers, strict=True):
            stacked = torch.stack([torch.as_tensor(pixels(name)) for name in batch]).to(device)
            with torch.no_grad():
                found.append(vision(stacked, output_hidden_states=True).hidden_states[layer][:, 1:])
        yield found[0], found[1]
