"""Writes a model folder: LLaVA's files, safetensors beside each pickle, a trained tower as an encoder folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from llava_ohd import tower
from llava_ohd.files import atomic_path, sha256_file, write_json
from llava_ohd.llava15.model_dir.record import ADAPTER_STAGES, FORMAT
from llava_ohd.llava15.weight_names import ADAPTED, TOWER
from llava_ohd.results import versions

__all__ = ["write"]

_SHARD = 5 * 10**9  # bytes; as transformers' own files
_TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


def write(folder: Path, weights: Mapping[str, torch.Tensor], record: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes a model folder, each file atomically, ohd.json last.

    Args:
        folder: Other files in it stay.
        weights: What `trained_weights` returns.
        record: `stage`, `encoder`, `base` and `config` of ohd.json.
        config: LLaVA's config.json.

    Raises:
        StorageError: the disk is full or not writable.
    """
    (folder / "ohd.json").unlink(missing_ok=True)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    if any(TOWER in name for name in tensors):
        record = _with_own_encoder(folder, tensors, record)
        config = config | {"mm_vision_tower": str(folder.resolve() / "encoder"), "unfreeze_mm_vision_tower": True}
    if record["stage"] == "full":
        names = _write_full(folder, tensors, Path(record["base"]["path"]))
        config = config | {"torch_dtype": str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")}
    elif record["stage"] in ADAPTER_STAGES:
        adapter = {name: weight for name, weight in tensors.items() if ".lora_" in name}
        rest = {name: weight for name, weight in tensors.items() if name not in adapter}
        names = [
            _write(folder / "adapter_model.safetensors", adapter),
            *_write_both(folder / "non_lora_trainables", rest),
        ]
        write_json(folder / "adapter_config.json", _adapter_config(record))
    else:
        names = _write_both(folder / "mm_projector", tensors)
    write_json(folder / "config.json", config)
    sums = {name: sha256_file(folder / name) for name in names}
    head = {"format": FORMAT, "kind": "llava"}
    write_json(folder / "ohd.json", head | record | {"weights": sums, "versions": versions()})


def _write(file: Path, weights: dict[str, torch.Tensor]) -> str:
    with atomic_path(file) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return file.name


def _write_both(stem: Path, weights: dict[str, torch.Tensor]) -> list[str]:
    """Writes a pickle, which LLaVA reads, and safetensors beside it; returns the name of the latter."""
    with atomic_path(stem.with_suffix(".bin")) as temporary, temporary.open("wb") as file:
        torch.save(weights, file)  # given a path, it would write that name into the file
    return [_write(stem.with_suffix(".safetensors"), weights)]


def _write_full(folder: Path, weights: dict[str, torch.Tensor], base: Path) -> list[str]:
    """Writes a whole model in shards, with the tokenizer of its base; returns the names of the shards."""
    split = split_torch_state_dict_into_shards(
        weights, max_shard_size=_SHARD, filename_pattern="model{suffix}.safetensors"
    )
    for name, inside in split.filename_to_tensors.items():
        _write(folder / name, {key: weights[key] for key in inside})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    for name in _TOKENIZER:
        if (base / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(base / name, temporary)
    return list(split.filename_to_tensors)


def _with_own_encoder(folder: Path, weights: dict[str, torch.Tensor], record: dict[str, Any]) -> dict[str, Any]:
    """Writes the trained tower as an encoder folder; returns the record that names it."""
    start = record["encoder"]
    inside = {name.partition(TOWER)[2]: weight for name, weight in weights.items() if TOWER in name}
    clip = tower.load(start["path"])
    for name, weight in inside.items():
        clip.get_parameter(name).data = weight.float()
    name = f"{start['name']}-{folder.resolve().name}"
    parents = [{"path": start["path"], "digest": start["digest"]}]
    files = start["path"]
    digest = tower.write(
        clip, folder / "encoder", files_from=files, name=name, parents=parents, config=record["config"]
    )
    return record | {"encoder": {"path": "encoder", "digest": digest, "name": name}, "trained_from": start}


def _adapter_config(record: dict[str, Any]) -> dict[str, Any]:
    flags = record["config"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": record["base"]["path"],
        "r": flags["lora_r"],
        "lora_alpha": flags["lora_alpha"],
        "lora_dropout": flags["lora_dropout"],
        "bias": "none",
        "target_modules": ADAPTED,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
