"""Merges a LoRA adapter into a language model, weight by weight, while it is written.

Every merged weight is computed in float32 and rounded once, to the type that the base stores it in; the original LLaVA
adds in float16.

Source: Hu et al., arXiv 2106.09685, eq. 3; peft's adapter files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llava_ohd.errors import ModelFormatError
from llava_ohd.files import read_json
from llava_ohd.llava15.convert.stored import Stored, in_files

__all__ = ["adapter_file", "merged"]

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "lora_bias": (False, None),
}


def adapter_file(folder: Path) -> Path | None:
    """Returns the weights of the adapter in a folder; None where there is none."""
    files = (folder / name for name in ("adapter_model.safetensors", "adapter_model.bin"))
    return next((file for file in files if file.is_file()), None)


def merged(language: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """Returns the language model with the adapter of a folder added: W + scale * B A.

    Args:
        language: The base, under the names of LlamaForCausalLM.
        folder: Has adapter_config.json beside the adapter's weights.

    Raises:
        ModelFormatError: the adapter does not fit the base, or is more than a plain LoRA.
    """
    file = adapter_file(folder)
    assert file is not None
    config = read_json(folder / "adapter_config.json")
    for key, plain in _PLAIN.items():
        if (value := config.get(key, plain[0])) not in plain:
            raise ModelFormatError(
                f"{folder}/adapter_config.json: {key} is {value!r}; only a plain LoRA ({plain[0]!r}) can be merged. "
                "Merge it with peft and convert the result"
            )
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    halves: dict[str, dict[str, Stored]] = {}
    for name, stored in in_files([file]).items():
        if (match := _FACTOR.fullmatch(name)) is None:
            raise ModelFormatError(f"{file} holds {name}, which is no part of a LoRA; merge it with peft")
        halves.setdefault(f"{match['module']}.weight", {})[match["half"]] = stored
    if not halves:
        raise ModelFormatError(f"{file} is empty: the adapter was lost in saving (ZeRO-3 does so); train it again")
    made = dict(language)
    for name, pair in halves.items():
        made[name] = _add(name, language.get(name), pair, rank, scale, file)
    return made


def _add(name: str, base: Stored | None, pair: dict[str, Stored], rank: int, scale: float, file: Path) -> Stored:
    shapes = {half: stored.shape for half, stored in pair.items()}
    if base is None or shapes != {"A": (rank, base.shape[-1]), "B": (base.shape[0], rank)}:
        raise ModelFormatError(
            f"{file}: the adapter of {name} has shapes {shapes} and rank {rank}, the language model has "
            f"{base.shape if base else 'no such weight'}; give the base that it was trained on"
        )

    def read() -> torch.Tensor:
        return base.read().float() + scale * (pair["B"].read().float() @ pair["A"].read().float())

    return Stored(base.shape, base.dtype, read, rounded=base.dtype != torch.float32)
