"""Tensors that are not loaded yet: what a file says of each, and how to read it.

A conversion handles names and shapes first, and every tensor once, when it is written: memory stays near the largest
tensor. Nothing in a file is ever executed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llava_ohd.errors import EncoderFormatError, ModelFormatError
from llava_ohd.files import read_json
from llava_ohd.tower.weights import is_counter, read_weights

__all__ = ["Stored", "cast", "has_weight_files", "in_files", "weight_files"]

_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers prefers them
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_REMEDY = "copy or download it again"


@dataclass(frozen=True)
class Stored:
    """One tensor.

    Attributes:
        shape: Its shape.
        dtype: The type that it is written in.
        read: Reads it; in `dtype`, or wider where the last digits are lost only in writing (`rounded`).
        rounded: Whether `read` gives more digits than `dtype` holds.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    rounded: bool = False


def cast(stored: Stored, dtype: torch.dtype) -> Stored:
    """Returns the tensor in another type; one of more digits loses none."""
    fewer = (
        torch.finfo(dtype).eps > torch.finfo(stored.dtype).eps or torch.finfo(dtype).max < torch.finfo(stored.dtype).max
    )
    return Stored(stored.shape, dtype, stored.read, stored.rounded or fewer)


def has_weight_files(folder: Path) -> bool:
    """Says whether a folder holds a whole model of any kind."""
    return any((folder / f"{name}{end}").is_file() for name in _WHOLE for end in ("", ".index.json"))


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that transformers would load from a model folder.

    Raises:
        ModelFormatError: there are none, an index is damaged, or a shard that it names is missing.
    """
    for name in _WHOLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            files = [folder / Path(str(place)).name for place in sorted(set(_weight_map(index).values()))]
            if lost := [file.name for file in files if not file.is_file()]:
                raise ModelFormatError(f"{index} names {lost[0]}, which is not beside it; {_REMEDY}")
            return files
    raise ModelFormatError(f"{folder} has neither {_WHOLE[0]} nor {_WHOLE[1]}, whole or in shards; {_REMEDY}")


def _weight_map(index: Path) -> dict[str, str]:
    record = read_json(index)
    places = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelFormatError(f"{index} is not the index of a sharded checkpoint (no weight_map); {_REMEDY}")
    return places


def in_files(files: Iterable[Path]) -> dict[str, Stored]:
    """Lists the tensors of weight files by the names in them, without reading one.

    Raises:
        ModelFormatError: damaged, with code in it, the same name twice, a tensor that its index promises is missing, or
            one that is no floating point (quantised).
    """
    found: dict[str, Stored] = {}
    promised: dict[str, str] = {}
    for file in files:
        part = _in_safetensors(file) if file.suffix == ".safetensors" else _in_pickle(file)
        if twice := sorted(part.keys() & found.keys()):
            raise ModelFormatError(f"{file} holds {twice[0]} a second time; remove the file that is too much")
        found |= part
        for name in _WHOLE:
            index = file.with_name(f"{name}.index.json")
            if file.name != name and file.suffix == Path(name).suffix and index.is_file():
                promised |= _weight_map(index)
    if lost := sorted(name for name in promised.keys() - found.keys() if not _is_buffer(name)):
        raise ModelFormatError(f"{promised[lost[0]]} does not hold {lost[0]}, which its index promises; {_REMEDY}")
    return found


def _is_buffer(name: str) -> bool:
    """Says whether old versions of transformers stored something under this name that is computed nowadays."""
    return is_counter(name) or name.endswith(".inv_freq")


def _in_safetensors(file: Path) -> dict[str, Stored]:
    found = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is no dict)
                part = opened.get_slice(name)
                if not _is_buffer(name):
                    found[name] = _stored(file, name, part.get_dtype(), tuple(part.get_shape()))
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"{file} is truncated or damaged ({error}); {_REMEDY}") from error
    return found


def _stored(file: Path, name: str, kind: str, shape: tuple[int, ...]) -> Stored:
    if kind not in _TYPES:
        raise ModelFormatError(
            f"{file}: {name} is {kind}; floating point is expected. Take weights without quantisation"
        )

    def read() -> torch.Tensor:
        with safe_open(file, framework="pt") as opened:  # opened anew, so that read pages do not stay in memory
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    return Stored(shape, _TYPES[kind], read)


def _in_pickle(file: Path) -> dict[str, Stored]:
    def reader(name: str) -> Callable[[], torch.Tensor]:
        return lambda: _pickle(file)[name]

    found = {}
    for name, tensor in _pickle(file).items():
        if not tensor.is_floating_point():
            raise ModelFormatError(f"{file}: {name} is {tensor.dtype}; floating point is expected, not quantised")
        if not _is_buffer(name):
            found[name] = Stored(tuple(tensor.shape), tensor.dtype, reader(name))
    return found


@lru_cache(maxsize=1)  # one at a time: files of old versions of torch cannot be mapped and are read as a whole
def _pickle(file: Path) -> dict[str, Any]:
    try:
        return read_weights(file)
    except EncoderFormatError as error:
        raise ModelFormatError(str(error)) from None
