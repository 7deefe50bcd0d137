"""Reads the tensors out of a TorchScript archive without running anything in it.

An archive (OpenAI's `ViT-L-14-336px.pt`) is a zip: `data.pkl` says which module has which tensor, `data/N` are their
bytes, `code/` is a program. `torch.jit.load` compiles that program; here only the first two are read, by an unpickler
that knows tensors and nothing else.

Source: torch/csrc/jit/serialization/docs (serialization.md), torch/_utils.py `_rebuild_tensor_v2`.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llava_ohd.errors import EncoderFormatError

__all__ = ["is_torchscript", "read_torchscript"]

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def is_torchscript(file: Path) -> bool:
    """Says whether a file is a TorchScript archive; a plain `torch.save` has no constants."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Reads every tensor of the modules in an archive, in the stored type, and the text of its program.

    Returns:
        The tensors by name, as `state_dict` would give them, and the program, which is only looked at.

    Raises:
        EncoderFormatError: damaged, or with objects beside modules and tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = inside.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            with archive.open(inside) as stream:
                module = _Tensors(stream, archive, root).load()
            programs = [name for name in archive.namelist() if name.startswith(f"{root}code/") and name.endswith(".py")]
            program = "\n".join(archive.read(name).decode() for name in sorted(programs))
        return dict(_named_tensors(module, "")), program
    except Exception as error:  # a damaged pickle can raise any type
        raise EncoderFormatError(
            f"{file} is a TorchScript archive that cannot be read as modules with tensors ({error}); download it "
            "again, or save the state_dict of its model alone"
        ) from error


class _Module:
    """A module of the archive: its attributes, without its program."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state)


class _Tensors(pickle.Unpickler):
    """Unpickles modules (as `_Module`), tensors and plain values; any other global raises."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list  # typed lists of numbers
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither module nor tensor")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, count = pid
        content = bytearray(self._archive.read(f"{self._root}data/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def _named_tensors(module: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if not isinstance(module, _Module):
        raise ValueError(f"it holds {type(module).__name__} where a module is expected")
    for name, value in module.attributes.items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _named_tensors(value, f"{prefix}{name}.")
