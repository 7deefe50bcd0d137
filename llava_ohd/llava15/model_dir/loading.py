"""Puts what a stage trained, or a projector alone, into the model that `build` returns."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.llava15.model_dir.record import ADAPTER_STAGES, ModelDir
from llava_ohd.llava15.model_dir.weight_files import read_tensors
from llava_ohd.llava15.weight_names import ADAPTED, PROJECTOR, llava_name

__all__ = ["load_projector", "load_trained", "projector_file", "read_projector", "stored_weights"]

_FILES = ("mm_projector.safetensors", "mm_projector.bin")


def projector_file(path: Path) -> Path:
    """Returns the file of a projector, given itself or the folder of stage projector.

    Raises:
        ModelNotFound: there is no such file.
    """
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).is_file()), path)
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
    found = _projector(read_tensors(path))
    expected = {f"{layer}.{part}" for layer in PROJECTOR for part in ("weight", "bias")}
    if found.keys() != expected:
        raise ModelFormatError(f"{path} holds {sorted(found)[:6]}; the two linear layers of mlp2x_gelu are expected")
    return found


def _projector(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Picks the projector out of weights, whatever its names are behind."""
    return {re.sub(r"^.*(?=mm_projector\.)", "", n): w for n, w in weights.items() if "vision_tower." not in n}


def stored_weights(folder: ModelDir, part: str = "") -> dict[str, torch.Tensor]:
    """Reads the weights that a model folder holds, under the names of its files.

    Args:
        folder: The model folder.
        part: Only weights with this in their names are read.

    Raises:
        ModelFormatError: a file is damaged.
    """
    if folder.stage == "full":
        files = sorted(folder.path.glob("model*.safetensors"))
    elif folder.stage in ADAPTER_STAGES:
        files = [folder.path / f"{stem}.safetensors" for stem in ("adapter_model", "non_lora_trainables")]
    else:
        files = [folder.path / "mm_projector.safetensors"]
    return {name: weight for file in files for name, weight in read_tensors(file, part).items()}


def load_projector(model: nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Loads a projector, named as `read_projector` does, into a model.

    Raises:
        ModelFormatError: a weight has another shape: it belongs to another encoder or language model.
    """
    for name, weight in weights.items():
        layer, part = name.rsplit(".", 1)
        parameter = model.get_parameter(f"model.{PROJECTOR[layer]}.{part}")
        if parameter.shape != weight.shape:
            raise ModelFormatError(
                f"{source}: {name} has shape {list(weight.shape)}, this encoder and language model need "
                f"{list(parameter.shape)}; the projector was trained for others"
            )
        parameter.data.copy_(weight)


def load_trained(model: nn.Module, folder: ModelDir) -> None:
    """Puts what a stage trained into the model that `build` made of `base_of` and `encoder_of`.

    An adapter is merged into the weights. A tower that was trained is an encoder inside the folder, and so in the model
    already; as is the language model of stage full.

    Raises:
        ModelFormatError: a weight is missing, too much, or of another shape.
    """
    load_projector(model, _projector(stored_weights(folder, "mm_projector.")), folder.path)
    if folder.stage in ADAPTER_STAGES:
        scale = folder.config["lora_alpha"] / folder.config["lora_r"]
        _merge(model, read_tensors(folder.path / "adapter_model.safetensors"), scale, folder.path)


@torch.no_grad()
def _merge(model: nn.Module, adapter: Mapping[str, torch.Tensor], scale: float, source: Path) -> None:
    """Adds scale * B A to every weight that has an adapter."""
    layers = {llava_name(name): module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = {f"base_model.model.{name}": module for name, module in layers.items() if re.fullmatch(ADAPTED, name)}
    expected = {f"{name}.lora_{half}.weight" for name in adapted for half in "AB"}
    if adapter.keys() != expected:
        wrong = sorted(adapter.keys() ^ expected)
        raise ModelFormatError(
            f"{source}: the adapter does not fit the language model; {len(wrong)} weights, {wrong[0]}"
        )
    for name, module in adapted.items():
        down, up = adapter[f"{name}.lora_A.weight"].float(), adapter[f"{name}.lora_B.weight"].float()
        module.weight.copy_(module.weight.float() + scale * (up @ down))
