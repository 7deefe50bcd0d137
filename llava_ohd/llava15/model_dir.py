"""The model folder: what a stage trained, in the files that LLaVA's own loader reads.

stage projector   mm_projector.bin                                 model.mm_projector.{0,2}.*
stage lora        adapter_model.safetensors, adapter_config.json   base_model.model.model.layers.N.*
                  non_lora_trainables.bin                          base_model.model.model.mm_projector.{0,2}.*
both              config.json (of LlavaLlamaForCausalLM, with mm_vision_tower), safetensors beside each .bin, ohd.json

ohd.json, written last: {"format": 1, "kind": "llava", "stage", "encoder": {"path", "digest", "name"},
                         "base": {"path", "sha256"}, "weights": {file: sha256}, "config": {flags}, "versions"}

Source: haotian-liu/LLaVA model/builder.py, train/train.py `safe_save_model_for_hf_trainer` @ c121f04.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.files import atomic_path, read_json, sha256_file, sha256_json, write_json
from llava_ohd.results import versions

__all__ = [
    "ModelDir",
    "base_of",
    "base_sha256",
    "encoder_of",
    "llava_name",
    "load_checkpoint",
    "load_projector",
    "load_trained",
    "projector_file",
    "read",
    "read_projector",
    "trained_weights",
    "write",
]

FORMAT = 1
_PROJECTOR = {"mm_projector.0": "multi_modal_projector.linear_1", "mm_projector.2": "multi_modal_projector.linear_2"}
_ADAPTED = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True)
class ModelDir:
    """What ohd.json says about a model folder.

    Attributes:
        path: The folder, absolute.
        stage: `projector` or `lora`.
        encoder: `path`, `digest` and `name` of the encoder it was trained on.
        base: `path` and `sha256` of the language model.
        config: Flags that it was trained with.
        digest: SHA-256 of ohd.json, which holds those of the weights.
    """

    path: Path
    stage: str
    encoder: dict[str, str]
    base: dict[str, str]
    config: dict[str, Any]
    digest: str


def llava_name(name: str) -> str:
    """Returns LLaVA's name of a parameter that transformers and peft name otherwise."""
    for theirs, ours in _PROJECTOR.items():
        name = name.replace(ours, theirs)
    return name.replace("model.language_model.layers.", "model.layers.").replace(".default.weight", ".weight")


def base_sha256(folder: Path) -> str:
    """Returns one digest of all weight files of a language model folder.

    Raises:
        ModelFormatError: it holds none.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        raise ModelFormatError(
            f"{folder} holds no weights (*.safetensors or pytorch_model*.bin); copy the folder again"
        )
    return sha256_json({file.name: sha256_file(file) for file in files})


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of all weights that train, whole and on the CPU, under LLaVA's names.

    Under ZeRO-3 all ranks must call it.
    """
    return {llava_name(name): _whole(weight) for name, weight in model.named_parameters() if weight.requires_grad}


def _whole(weight: nn.Parameter) -> torch.Tensor:
    if not hasattr(weight, "ds_id"):
        return weight.detach().cpu().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().cpu().clone()


def load_checkpoint(model: nn.Module, folder: Path) -> None:
    """Puts the weights of a checkpoint back into a model that trains.

    Raises:
        ModelFormatError: the checkpoint holds others than those that train.
    """
    stored = {name: w for file in sorted(folder.glob("*.safetensors")) for name, w in _tensors(file).items()}
    live = {llava_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
    if stored.keys() != live.keys():
        raise ModelFormatError(f"{folder} holds {len(stored)} weights, {len(live)} train; it is of another run")
    for name, weight in live.items():
        weight.data.copy_(stored[name])


def write(folder: Path, weights: Mapping[str, torch.Tensor], record: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes a model folder, each file atomically, ohd.json last.

    Args:
        folder: Other files in it stay.
        weights: Everything that was trained, under LLaVA's names.
        record: `stage`, `encoder`, `base` and `config` of ohd.json.
        config: LLaVA's config.json.

    Raises:
        StorageError: the disk is full or not writable.
    """
    (folder / "ohd.json").unlink(missing_ok=True)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    adapter = {name: weight for name, weight in tensors.items() if ".lora_" in name}
    rest = {name: weight for name, weight in tensors.items() if name not in adapter}
    stem = "non_lora_trainables" if record["stage"] == "lora" else "mm_projector"
    with atomic_path(folder / f"{stem}.bin") as temporary, temporary.open("wb") as file:
        torch.save(rest, file)  # given a path, it would write that name into the file
    files = {f"{stem}.safetensors": rest}
    if record["stage"] == "lora":
        files["adapter_model.safetensors"] = adapter
        write_json(folder / "adapter_config.json", _adapter_config(record))
    for name, part in files.items():
        with atomic_path(folder / name) as temporary:
            save_file(part, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    sums = {name: sha256_file(folder / name) for name in files}
    head = {"format": FORMAT, "kind": "llava"}
    write_json(folder / "ohd.json", head | record | {"weights": sums, "versions": versions()})


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
        "target_modules": _ADAPTED,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def read(path: str | Path) -> ModelDir:
    """Reads and checks ohd.json, and the weight files against it.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: incomplete, altered, or not written by this package.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give a model folder that scripts/finetune_llava.py wrote")
    if not (folder / "ohd.json").is_file():
        raise ModelFormatError(
            f"{folder} has no ohd.json, which is written last: its training did not end. Run the same command again"
        )
    record = read_json(folder / "ohd.json")
    if record.get("format") != FORMAT or record.get("kind") != "llava":
        raise ModelFormatError(
            f"{folder}/ohd.json is format {record.get('format')!r}, kind {record.get('kind')!r}; format {FORMAT}, kind "
            "'llava' is expected"
        )
    for name, digest in record["weights"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise ModelFormatError(
                f"{folder / name} is missing or was altered; copy the folder again, or train it again"
            )
    parts = {key: record[key] for key in ("stage", "encoder", "base", "config")}
    return ModelDir(path=folder.resolve(), digest=sha256_file(folder / "ohd.json"), **parts)


def encoder_of(folder: ModelDir) -> tower.Encoder:
    """Finds the encoder that a model was trained on: at its path, or wherever its name leads now.

    Raises:
        EncoderFormatError: only another encoder is there.
        EncoderNotFound: none is there.
    """
    places = [Path(folder.encoder["path"])]
    if folder.encoder["name"] in tower.registered():
        places.append(tower.resolve(folder.encoder["name"]))
    found = [tower.check(place) for place in places if place.is_dir()]
    if not found:
        raise EncoderNotFound(
            f"{folder.path} was trained on the encoder {folder.encoder['path']}, which is gone; bring it back, or"
            f" `python -m llava_ohd.tower register {folder.encoder['name']} PATH`"
        )
    for encoder in found:
        if encoder.digest == folder.encoder["digest"]:
            return encoder
    raise EncoderFormatError(
        f"{folder.path} was trained on an encoder with digest {folder.encoder['digest'][:12]}; {found[0].path} has "
        f"{found[0].digest[:12]}: it was trained again since. Train the model again, or bring the old encoder back"
    )


def base_of(folder: ModelDir) -> Path:
    """Returns the language model folder of a model.

    Raises:
        ModelNotFound: it is gone.
        ModelFormatError: its weights are others than in training.
    """
    base = Path(folder.base["path"])
    if not base.is_dir():
        raise ModelNotFound(f"{folder.path} was trained on the language model {base}, which is gone; bring it back")
    if base_sha256(base) != folder.base["sha256"]:
        raise ModelFormatError(f"{base} is another language model than {folder.path} was trained on; bring that back")
    return base


def projector_file(path: Path) -> Path:
    """Returns the file of a projector, given itself or the folder of stage projector.

    Raises:
        ModelNotFound: there is no such file.
    """
    if path.is_dir():
        path = next((path / f for f in ("mm_projector.safetensors", "mm_projector.bin") if (path / f).is_file()), path)
    if not path.is_file():
        raise ModelNotFound(f"{path} is not a projector file; give the mm_projector.bin of stage projector")
    return path


def read_projector(path: Path) -> dict[str, torch.Tensor]:
    """Reads a projector from a model folder, an `mm_projector.bin` of LLaVA, or a safetensors file.

    Returns:
        `mm_projector.0.weight`, `mm_projector.0.bias`, `mm_projector.2.weight`, `mm_projector.2.bias`.

    Raises:
        ModelNotFound: there is no such file.
        ModelFormatError: it does not hold exactly those.
    """
    path = projector_file(path)
    found = {re.sub(r"^.*(?=mm_projector\.)", "", name): weight for name, weight in _tensors(path).items()}
    expected = {f"{layer}.{part}" for layer in _PROJECTOR for part in ("weight", "bias")}
    if found.keys() != expected:
        raise ModelFormatError(f"{path} holds {sorted(found)[:6]}; the two linear layers of mlp2x_gelu are expected")
    return found


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelFormatError(f"{file} is truncated or damaged ({error}); copy it again, or train it again") from error


def load_trained(model: nn.Module, folder: ModelDir) -> None:
    """Puts what a stage trained into the model that `build` returns; an adapter is merged into the weights.

    Raises:
        ModelFormatError: a weight is missing, too much, or of another shape.
    """
    lora = folder.stage == "lora"
    weights = _tensors(folder.path / ("non_lora_trainables.safetensors" if lora else "mm_projector.safetensors"))
    weights = {re.sub(r"^.*(?=mm_projector\.)", "", name): weight for name, weight in weights.items()}
    load_projector(model, weights, folder.path)
    if lora:
        scale = folder.config["lora_alpha"] / folder.config["lora_r"]
        _merge(model, _tensors(folder.path / "adapter_model.safetensors"), scale, folder.path)


def load_projector(model: nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Loads a projector, named as `read_projector` does, into a model.

    Raises:
        ModelFormatError: a weight has another shape: it belongs to another encoder or language model.
    """
    for name, weight in weights.items():
        layer, part = name.rsplit(".", 1)
        parameter = model.get_parameter(f"model.{_PROJECTOR[layer]}.{part}")
        if parameter.shape != weight.shape:
            raise ModelFormatError(
                f"{source}: {name} has shape {list(weight.shape)}, this encoder and language model need "
                f"{list(parameter.shape)}; the projector was trained for others"
            )
        parameter.data.copy_(weight)


@torch.no_grad()
def _merge(model: nn.Module, adapter: Mapping[str, torch.Tensor], scale: float, source: Path) -> None:
    """Adds scale * B A to every weight that has an adapter."""
    layers = {llava_name(name): module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = {f"base_model.model.{name}": module for name, module in layers.items() if re.fullmatch(_ADAPTED, name)}
    expected = {f"{name}.lora_{half}.weight" for name in adapted for half in "AB"}
    if adapter.keys() != expected:
        wrong = sorted(adapter.keys() ^ expected)
        raise ModelFormatError(
            f"{source}: the adapter does not fit the language model; {len(wrong)} weights, {wrong[0]}"
        )
    for name, module in adapted.items():
        down, up = adapter[f"{name}.lora_A.weight"].float(), adapter[f"{name}.lora_B.weight"].float()
        module.weight.copy_(module.weight.float() + scale * (up @ down))
