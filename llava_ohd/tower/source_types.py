"""What a reader of sources returns, and what all readers share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.encoder_dir import Encoder
from llava_ohd.tower.record import read_object

__all__ = ["Base", "Source", "naming", "read_record"]


@dataclass(frozen=True)
class Base:
    """A checked encoder that gives what a source lacks.

    Attributes:
        encoder: Its description.
        config: Its `CLIPConfig`.
        weights: All its weights as stored, legacy names.
    """

    encoder: Encoder
    config: Any
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A full CLIP that was read.

    Attributes:
        kind: What it was read from, as in the table of sources.py.
        config: `CLIPConfig`.
        weights: All weights, legacy names, stored types.
        files: The files that gave weights.
        notes: What else ohd.json should say, JSON-able.
        pixels: What the source says about its preprocessing, in the terms of preprocessor_config.json.
        says_activation: Whether the activation in `config` is the source's own word, not that of a base.
    """

    kind: str
    config: Any
    weights: dict[str, torch.Tensor]
    files: list[Path]
    notes: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    says_activation: bool = True


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Puts the place in front of an error about names or tensors."""
    try:
        yield
    except EncoderFormatError as error:
        text = str(error)
        raise EncoderFormatError(text if str(place) in text else f"{place}: {text}") from None


def read_record(file: Path) -> dict[str, Any]:
    """Reads a JSON object of a source.

    Raises:
        EncoderFormatError: missing, damaged, or something else.
    """
    return read_object(file, f"cannot tell what {file.parent} is")
