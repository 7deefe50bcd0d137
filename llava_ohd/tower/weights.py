"""The weights file of an encoder: read, write, and the digest that says which tower it is.

Two containers are read: `model.safetensors`, and `pytorch_model.bin` as the Hub has it for OpenAI's CLIP-L/336. Nothing
in a file is ever executed: pickles are opened with `weights_only=True`, and only in the layouts where every version of
torch keeps to that. Only safetensors is written.
"""

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llava_ohd.errors import EncoderFormatError
from llava_ohd.files import atomic_path

__all__ = [
    "TOWER_PREFIX",
    "is_counter",
    "read_content",
    "read_weights",
    "same_weight",
    "tower_digest",
    "weights_file",
    "write_weights",
]

TOWER_PREFIX = "vision_model."
_NAMES = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers prefers them
_REMEDY = "copy or download it again, or make it again"


def weights_file(folder: Path) -> Path:
    """Returns the weights file inside an encoder folder.

    Raises:
        EncoderFormatError: the folder has none.
    """
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise EncoderFormatError(f"{folder} has no {_NAMES[0]}; {_REMEDY}")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Reads every parameter of an encoder's weights file, memory-mapped and in the stored type.

    Raises:
        EncoderFormatError: truncated, not in the format its name says, or with something else than named tensors.
    """
    weights = read_content(file)
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise EncoderFormatError(f"{file} holds something else than named tensors; give the folder of a CLIPModel")
    return {name: weight for name, weight in weights.items() if not is_counter(name)}


def is_counter(name: str) -> bool:
    """Says whether a name is that of the `position_ids` which old transformers versions stored beside the weights."""
    return name.endswith("position_ids")


def read_content(file: Path) -> Any:
    """Reads what a safetensors file or a pickle holds: tensors, and maybe plain values and containers around them.

    Raises:
        EncoderFormatError: truncated or damaged, or with code in it, which is not run.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if not zipfile.is_zipfile(file) and tarfile.is_tarfile(file):
            raise EncoderFormatError(
                f"{file} is a tar archive, as torch wrote before 2018; before 2.6 torch would run code inside it "
                "(CVE-2025-32434), so it was not opened. Where you trust it, load it and save its state_dict as "
                "safetensors"
            )
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except EncoderFormatError:
        raise
    except Exception as error:  # a damaged pickle can raise any type
        if found := re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error)):
            raise EncoderFormatError(
                f"{file} holds code beside tensors ({found[1]}) and was not opened, because that would run it; where "
                "you trust it, save its state_dict alone, best as safetensors, and import that"
            ) from None
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise EncoderFormatError(f"{file} is truncated or damaged ({first}); {_REMEDY}") from error


def write_weights(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes safetensors atomically, each tensor in its own type, under the names given.

    Raises:
        StorageError: the disk is full or not writable.
    """
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    with atomic_path(file) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask allows; safetensors makes files that only their owner can read
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers 4.37 refuses a file without it
        temporary.chmod(mode)


def tower_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 over name, type, shape and bytes of the vision tower's tensors, in the order of their names.

    The same tensors give the same digest, whatever the container; the same numbers stored in another type give another.
    It says nothing about what is computed with them (config.json) or about the images (preprocessor_config.json):
    ohd.json lists the SHA-256 of those files beside it.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if name.startswith(TOWER_PREFIX)):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def same_weight(found: torch.Tensor, stored: torch.Tensor, exact: bool = False) -> bool:
    """Whether a weight in a model is that of an encoder, given that models are trained and stored in half precision.

    Args:
        found: In any floating type, on any device; maybe rounded to bfloat16 or float16 on its way there.
        stored: As the encoder has it.
        exact: Allow for no rounding but to the type that `found` has.
    """
    if found.shape != stored.shape:
        return False
    found = found.detach().cpu()
    through = (found.dtype,) if exact else (found.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(found, stored.to(dtype).to(found.dtype)) for dtype in through)
