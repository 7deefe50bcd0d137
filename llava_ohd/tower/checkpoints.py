"""Reads the weights of a checkpoint, whatever its container: one file or shards, safetensors, pickle, TorchScript.

Nothing in a file is ever executed; a pickle that holds more than tensors and plain values is refused. Names are
returned as they stand in the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_ohd.errors import DataFormatError, EncoderFormatError
from llava_ohd.files import read_json
from llava_ohd.tower.torchscript import is_torchscript, read_torchscript
from llava_ohd.tower.weights import is_counter, read_content

__all__ = ["Checkpoint", "read_file", "read_folder"]

_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers prefers them
_NESTED = ("state_dict", "model_state_dict", "model")  # where trainers keep the weights beside their own state
_REMEDY = "copy or download it again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        weights: The tensors by the names in the file, without `position_ids` (counters that old versions stored).
        files: The files that were read.
        program: Source text of a TorchScript archive, never run; empty elsewhere.
    """

    weights: dict[str, torch.Tensor]
    files: list[Path]
    program: str = ""


def read_folder(folder: Path, keep: Callable[[str], bool] = lambda name: True) -> Checkpoint:
    """Reads the weights that transformers would load from a folder.

    Args:
        folder: Holds model.safetensors, pytorch_model.bin, or shards and their index.
        keep: Which names are wanted; shards without any are not opened.

    Raises:
        EncoderFormatError: no weights, a missing shard, a name that its shard lacks, or a damaged file.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            found = read_file(folder / name)
            return Checkpoint({key: w for key, w in found.weights.items() if keep(key)}, found.files)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json", keep)
    raise EncoderFormatError(
        f"{folder} has neither {_WHOLE[0]} nor {_WHOLE[1]}, whole or in shards; give the folder or file of the weights"
    )


def _read_shards(index: Path, keep: Callable[[str], bool]) -> Checkpoint:
    try:
        places = {name: str(file) for name, file in read_json(index)["weight_map"].items()}
    except (DataFormatError, KeyError, TypeError, AttributeError) as error:
        raise EncoderFormatError(f"{index} is not the index of a sharded checkpoint ({error}); {_REMEDY}") from error
    wanted = {name: place for name, place in places.items() if keep(name) and not is_counter(name)}
    weights: dict[str, torch.Tensor] = {}
    files = [index.parent / Path(place).name for place in sorted(set(wanted.values()))]
    for file in files:
        if not file.is_file():
            raise EncoderFormatError(f"{index} names {file.name}, which is not beside it; {_REMEDY}")
        weights |= {name: weight for name, weight in read_file(file).weights.items() if name in wanted}
    if lost := sorted(wanted.keys() - weights.keys()):
        raise EncoderFormatError(f"{index}: {wanted[lost[0]]} does not hold {lost[0]}; {_REMEDY}")
    return Checkpoint(weights, files)


def read_file(file: Path) -> Checkpoint:
    """Reads one file of weights: safetensors, a TorchScript archive, or a pickled state dict, also a trainer's.

    Raises:
        EncoderFormatError: damaged, with code in it, or without named tensors.
    """
    program = ""
    content: Any
    if file.suffix != ".safetensors" and is_torchscript(file):
        content, program = read_torchscript(file)
    else:
        content = read_content(file)
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(weight, torch.Tensor) for weight in content.values()):
        raise EncoderFormatError(
            f"{file} holds something else than named tensors; give a file with a model's state_dict"
        )
    return Checkpoint({name: w for name, w in content.items() if not is_counter(name)}, [file], program)
