"""Writes safetensors tensor by tensor, in shards with an index, and never holds more than one tensor.

`safetensors.save_file` wants all tensors of a file at once. The format is simple: the length of a header, the header
with name, type, shape and place of each tensor, then the bytes.

Source: https://github.com/huggingface/safetensors, "Format"; the index is that of transformers.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llava_ohd.errors import LlavaOhdError, ModelFormatError
from llava_ohd.files import write_json
from llava_ohd.llava15.convert.stored import Stored

__all__ = ["parse_size", "write_shards"]

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Returns the bytes that a size such as `5GB`, `500MB` or `4GiB` means.

    Raises:
        LlavaOhdError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not size:
        raise LlavaOhdError(f"--max_shard_size {text}: a size such as 5GB or 500MB is expected")
    return size


def write_shards(folder: Path, tensors: Mapping[str, Stored], max_bytes: int) -> dict[str, str]:
    """Writes model.safetensors, or shards and model.safetensors.index.json.

    Args:
        folder: An existing folder, not in use by a reader (files are not written atomically).
        tensors: What to write, under the names given; each is read once.
        max_bytes: Most bytes of tensors per file; a larger tensor gets a file of its own.

    Returns:
        SHA-256 by file name.

    Raises:
        ModelFormatError: NaN or Inf, also where a number is beyond the range of the type that it is written in.
    """
    parts = _split(tensors, max_bytes)
    one = len(parts) == 1
    names = [
        "model.safetensors" if one else f"model-{number:05}-of-{len(parts):05}.safetensors"
        for number in range(1, len(parts) + 1)
    ]
    sums = {name: _write(folder / name, part) for name, part in zip(names, parts, strict=True)}
    if not one:
        total = sum(_bytes(stored) for stored in tensors.values())
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    return sums


def _bytes(stored: Stored) -> int:
    return torch.Size(stored.shape).numel() * stored.dtype.itemsize


def _split(tensors: Mapping[str, Stored], max_bytes: int) -> list[dict[str, Stored]]:
    parts: list[dict[str, Stored]] = [{}]
    filled = 0
    for name, stored in tensors.items():
        if parts[-1] and filled + _bytes(stored) > max_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = stored
        filled += _bytes(stored)
    return parts


def _write(path: Path, tensors: Mapping[str, Stored]) -> str:
    ordered = sorted(tensors.items(), key=lambda row: (-row[1].dtype.itemsize, row[0]))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers 4.37 refuses the file
    place = 0
    for name, stored in ordered:
        end = place + _bytes(stored)
        header[name] = {"dtype": _NAMES[stored.dtype], "shape": list(stored.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        digest = hashlib.sha256()
        _put(file, digest, len(text).to_bytes(8, "little") + text)
        for name, stored in ordered:
            _put(file, digest, _content(name, stored))
    return digest.hexdigest()


def _put(file: BinaryIO, digest: Any, content: Any) -> None:
    file.write(content)
    digest.update(content)


def _content(name: str, stored: Stored) -> Any:
    tensor = stored.read().detach().to("cpu", stored.dtype).contiguous()
    if tuple(tensor.shape) != stored.shape:
        raise ModelFormatError(
            f"{name} has shape {list(tensor.shape)}, its file said {list(stored.shape)}; copy it again"
        )
    if not torch.isfinite(tensor).all():
        raise ModelFormatError(
            f"{name} holds NaN or Inf as {str(stored.dtype).removeprefix('torch.')}; where the source is sound, its "
            "numbers are beyond that type's range: give --dtype bfloat16 or float32"
        )
    return tensor.reshape(-1).view(torch.uint8).numpy().data
