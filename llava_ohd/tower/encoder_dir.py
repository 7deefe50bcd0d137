"""The encoder folder: the layout of openai/clip-vit-large-patch14-336, plus `ohd.json` that says what it must contain.

config.json, model.safetensors, preprocessor_config.json, tokenizer files, and ohd.json as record.py describes it.

Weights keep the names `vision_model.*` and `text_model.*` that every transformers version since 4.37 loads. They are
never written by `save_pretrained`, which since 5.6 may leave out `vision_model.`; older versions then load random
weights with only a warning. Here, everything that does not fit raises.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel

from llava_ohd.errors import EncoderFormatError, EncoderNotFound, StorageError
from llava_ohd.files import atomic_folder, sha256_file, write_json
from llava_ohd.results import versions
from llava_ohd.tower.checks import (
    check_container,
    check_finite,
    check_keys,
    check_preprocessor,
    empty_model,
    read_config,
)
from llava_ohd.tower.every_version import copy_files
from llava_ohd.tower.record import FORMAT, check_record, file_sums
from llava_ohd.tower.shadows import check_shadows
from llava_ohd.tower.tokenizer import check_tokenizer
from llava_ohd.tower.weights import read_weights, tower_digest, weights_file, write_weights

__all__ = ["Encoder", "check", "load", "write"]


@dataclass(frozen=True)
class Encoder:
    """What a checked encoder folder holds.

    Attributes:
        path: The folder, absolute.
        name: Name in ohd.json; the folder's name where there is none.
        digest: SHA-256 of the vision tower (`tower_digest`).
        image_size: Side of the square input, pixels.
        patch_size: Side of a patch, pixels.
        hidden_size: Width of a patch token.
    """

    path: Path
    name: str
    digest: str
    image_size: int
    patch_size: int
    hidden_size: int


def write(
    model: CLIPModel,
    destination: str | Path,
    *,
    files_from: str | Path,
    name: str,
    parents: list[dict[str, str]],
    config: dict[str, Any],
) -> str:
    """Writes an encoder folder, checks it, and only then puts it in place of what was there.

    Args:
        model: The weights, stored in the type that they have.
        destination: The folder; replaced where it is an encoder already.
        files_from: Encoder folder whose tokenizer and preprocessor files are copied.
        name: Name under which results mention it.
        parents: `{"path", "digest"}` of every encoder it was made from.
        config: How it was made, JSON-able.

    Returns:
        The digest of the vision tower.

    Raises:
        EncoderFormatError: the model is not a plain CLIPModel, holds NaN or Inf, or does not fit its preprocessor.
        StorageError: no room, not writable, or `destination` holds something else than an encoder.
    """
    destination = Path(destination).resolve()
    if _is_something_else(destination) and _is_something_else(destination):  # twice: another writer may replace it
        raise StorageError(f"{destination} holds something else than an encoder, which would be lost; choose another")
    weights = {key: weight for key, weight in model.state_dict().items() if not key.endswith(".position_ids")}
    digest = tower_digest(weights)
    with atomic_folder(destination) as folder:
        write_json(folder / "config.json", _config_record(model))
        copy_files(Path(files_from), folder)
        write_weights(folder / "model.safetensors", weights)
        record = {"format": FORMAT, "kind": "encoder", "name": name, "digest": digest}
        record |= {"file_sha256": sha256_file(folder / "model.safetensors"), "files": file_sums(folder)}
        record |= {"parents": parents, "config": config}
        write_json(folder / "ohd.json", record | {"versions": versions()})
        try:
            check(folder)
        except EncoderFormatError as error:
            raise EncoderFormatError(
                f"nothing was written: {str(error).replace(str(folder), str(destination))}"
            ) from None
    return digest


def _is_something_else(destination: Path) -> bool:
    try:
        names = os.listdir(destination)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return bool(names) and "ohd.json" not in names


def check(path: str | Path) -> Encoder:
    """Checks everything about an encoder folder: keys, shapes, finite numbers, digests, preprocessing, tokenizer.

    A folder without ohd.json (a stock CLIP download) passes where its weights are complete.

    Raises:
        EncoderNotFound: there is no such folder.
        EncoderFormatError: anything is missing, too much, altered, or contradictory.
    """
    return read(Path(path))[0]


def load(path: str | Path) -> CLIPModel:
    """Loads a checked encoder in float32, ready for inference.

    Raises:
        EncoderNotFound: there is no such folder.
        EncoderFormatError: as `check`.
    """
    return load_checked(path)[1]


def load_checked(path: str | Path, only: str = "") -> tuple[Encoder, CLIPModel]:
    """As `load`, and says what was loaded, so that no caller needs to read the folder a second time.

    Args:
        path: The encoder folder; all of it is checked.
        only: Weights whose names begin otherwise are not loaded and stay without storage.

    Raises:
        EncoderNotFound: there is no such folder.
        EncoderFormatError: as `check`.
    """
    encoder, model, weights = read(Path(path))
    full = {name: w.to(torch.float32, copy=True) for name, w in weights.items() if name.startswith(only)}
    return encoder, fill(model, full)


def fill(model: CLIPModel, weights: dict[str, torch.Tensor]) -> CLIPModel:
    """Puts weights, checked and under the legacy names, into a model without storage; they are not copied.

    The weights are real even where a caller builds its own model without storage (meta device).
    """
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        # Not load_state_dict: accelerate's init_empty_weights, around it in 4.37, would take the storage away again.
        model.get_submodule(owner)._parameters[leaf] = torch.nn.Parameter(weight)
        embeddings, found, _ = name.partition(".position_embedding.weight")
        if found:
            numbers = torch.arange(len(weight), device="cpu").expand((1, -1))
            model.get_submodule(embeddings).register_buffer("position_ids", numbers, persistent=False)
    return model.eval()


def _config_record(model: CLIPModel) -> dict[str, Any]:
    record = json.loads(model.config.to_json_string(use_diff=False))
    for part in (record, record["text_config"], record["vision_config"]):
        for key in ("_name_or_path", "dtype", "torch_dtype"):
            part.pop(key, None)
    stored = str(model.logit_scale.dtype).removeprefix("torch.")
    return record | {"architectures": ["CLIPModel"], "torch_dtype": stored}


def read(folder: Path) -> tuple[Encoder, CLIPModel, dict[str, torch.Tensor]]:
    """Returns the description, the model without storage (meta device), and the checked weights as stored.

    Raises:
        EncoderNotFound: there is no such folder.
        EncoderFormatError: as `check`.
    """
    if not folder.is_dir():
        raise EncoderNotFound(
            f"{folder} is not a folder; give an encoder folder or one of `python -m llava_ohd.tower list`"
        )
    # First the sums, last ohd.json: what was read in between is what the sums are of, even beside a writer.
    sums = file_sums(folder)
    check_shadows(folder)
    config = read_config(folder)
    model = empty_model(folder, config)
    file = weights_file(folder)
    if (folder / "ohd.json").is_file():
        sums[file.name] = sha256_file(file)
    weights = read_weights(file)
    check_container(file)
    check_keys(file, model, weights)
    check_preprocessor(folder, config.vision_config.image_size)
    check_tokenizer(folder, config.text_config)
    digest = tower_digest(weights)
    name = check_record(folder, file, digest, sums)
    check_finite(file, weights)
    vision = config.vision_config
    encoder = Encoder(folder.resolve(), name, digest, vision.image_size, vision.patch_size, vision.hidden_size)
    return encoder, model, weights
