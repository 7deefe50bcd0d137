"""A PEFT LoRA on CLIP, merged into its base in plain torch: W + alpha / r * B A.

Kinds of adapters whose arithmetic is another one are refused by the name of their setting; so is any setting that is
not known here.

Source: Hu et al. 2021, equation 3; Kalajdzievski 2023 (rsLoRA, alpha / sqrt(r)); peft tuners/lora/layer.py
`get_delta_weight` and config.py @ 0.21.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llava_ohd.errors import DataFormatError, EncoderFormatError
from llava_ohd.files import read_json
from llava_ohd.tower.checkpoints import Checkpoint, read_file
from llava_ohd.tower.layouts import VISION, legacy_names, some

__all__ = ["is_lora", "merge_lora", "read_adapter_config"]

_USED = {"peft_type", "r", "lora_alpha", "use_rslora", "alpha_pattern", "modules_to_save", "auto_mapping"}
_USED |= {"base_model_name_or_path", "revision"}
_HARMLESS = {"task_type", "peft_version", "inference_mode", "target_modules", "exclude_modules", "lora_dropout"}
_HARMLESS |= {"layers_to_transform", "layers_pattern", "rank_pattern", "megatron_core", "qalora_group_size"}
_HARMLESS |= {"eva_config", "ensure_weight_tying"}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others also change the base's weights
_PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


def is_lora(folder: Path) -> bool:
    """Says whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Reads adapter_config.json and refuses every kind of adapter that `merge_lora` would merge wrongly.

    Raises:
        EncoderFormatError: not a plain LoRA; the message names the setting.
    """
    file = folder / "adapter_config.json"
    try:
        record = read_json(file)
    except DataFormatError as error:
        raise EncoderFormatError(f"damaged adapter: {error}") from None
    if not isinstance(record, dict) or record.get("peft_type") != "LORA":
        found = record.get("peft_type") if isinstance(record, dict) else record
        raise EncoderFormatError(f"{file}: peft_type is {found!r}; only 'LORA' can be merged here. {_MERGE_IT}")
    bad = {key: value for key, value in record.items() if value and key not in _USED | _HARMLESS}
    if bad.get("bias") == "none":
        del bad["bias"]
    if bad.get("init_lora_weights") in _PLAIN_STARTS:
        del bad["init_lora_weights"]
    if bad:
        shown = ", ".join(f"{key} = {value!r}" for key, value in sorted(bad.items()))
        raise EncoderFormatError(f"{file}: {shown} cannot be merged here, only a plain LoRA. {_MERGE_IT}")
    return record


_MERGE_IT = "Merge it with peft (merge_and_unload) and import the folder that CLIPModel.save_pretrained writes"


def merge_lora(folder: Path, base: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Merges the adapter in `folder` into the weights of its base.

    Args:
        folder: adapter_config.json and adapter_model.safetensors or .bin.
        base: A full CLIP under the legacy names.

    Returns:
        All weights under the legacy names; the merged ones in float32, so that a small change is not rounded away.

    Raises:
        EncoderFormatError: not a plain LoRA, damaged, half a pair, or for another model or geometry than `base`.
    """
    config = read_adapter_config(folder)
    file = next(
        (f for f in map(folder.joinpath, ("adapter_model.safetensors", "adapter_model.bin")) if f.is_file()), None
    )
    if file is None:
        raise EncoderFormatError(f"{folder} has no adapter_model.safetensors; copy the whole adapter again")
    stored = {_plain(name): weight for name, weight in read_file(file).weights.items()}
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in stored.items():
        if match := _PAIR.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2]] = weight
    saved = {name: weight for name, weight in stored.items() if not _PAIR.fullmatch(name)}
    if not pairs:
        raise EncoderFormatError(f"{file} holds no lora_A and lora_B; it is not the file of a LoRA")
    if foreign := [name for name in saved if not _is_saved(name, config.get("modules_to_save") or [])]:
        raise EncoderFormatError(f"{file} holds {some(foreign)}, which a plain LoRA does not have. {_MERGE_IT}")
    names = _base_names(file, [f"{module}.weight" for module in pairs] + list(saved), config, base)
    merged = {names[name]: weight for name, weight in saved.items()}
    for module, pair in pairs.items():
        target = names[f"{module}.weight"]
        merged[target] = base[target].float() + _change(
            f"{file}: {module}", pair, _alpha(module, config), config, base[target]
        )
    _check_shapes(file, merged, base)
    return Checkpoint({**base, **merged}, [file, folder / "adapter_config.json"])


def _plain(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")


def _is_saved(name: str, modules: list[str]) -> bool:
    """Says whether a whole weight belongs to a module that was trained beside the adapters."""
    return any(f".{name}".endswith(f".{module}.{part}") for module in modules for part in ("weight", "bias"))


def _base_names(
    file: Path, names: list[str], config: dict[str, Any], base: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    try:
        legacy = legacy_names(names)
    except EncoderFormatError as error:
        raise EncoderFormatError(f"{file} is an adapter for another model than CLIP: {error}") from None
    made_for = (config.get("auto_mapping") or {}).get("base_model_class")
    if any(new == VISION + old for old, new in legacy.items()) and "Vision" not in str(made_for):
        raise EncoderFormatError(
            f"{file} names layers without their tower, and adapter_config.json says that it is for {made_for}; "
            f"for a CLIPVisionModel this would be clear. {_MERGE_IT}"
        )
    if absent := [new for new in legacy.values() if new not in base]:
        raise EncoderFormatError(f"{file} adapts {some(absent)}, which the base does not have; give its own --base")
    return legacy


def _alpha(module: str, config: dict[str, Any]) -> float:
    """Returns a module's alpha; older peft read `alpha_pattern` otherwise, and did not note its version.

    Raises:
        EncoderFormatError: the two ways of reading differ, and nothing says which was trained with.
    """
    alphas = config.get("alpha_pattern") or {}
    default = config["lora_alpha"]
    # peft 0.21 `get_pattern_key`; peft 0.10 `_create_and_replace`: ranks and alphas in one list, never a whole name
    now = next((alphas[key] for key in alphas if re.match(rf"(.*\.)?({key})$", module)), default)
    if not config.get("peft_version"):
        keys = [*(config.get("rank_pattern") or {}), *alphas]
        then = alphas.get(next((key for key in keys if re.match(rf".*\.{key}$", module)), module), default)
        if then != now:
            raise EncoderFormatError(
                f"alpha of {module} is {then} as older versions of peft read alpha_pattern and {now} as newer ones do, "
                f"and adapter_config.json has no peft_version. {_MERGE_IT}, with the peft that it was trained with"
            )
    return float(now)


def _change(
    what: str, pair: dict[str, torch.Tensor], alpha: float, config: dict[str, Any], weight: torch.Tensor
) -> torch.Tensor:
    """Returns alpha / r * B A in float32 and the shape of `weight`; r is read off A, as ranks may differ by module."""
    if pair.keys() != {"A", "B"}:
        raise EncoderFormatError(f"{what} has only one of lora_A and lora_B; copy the adapter again")
    up, down = pair["B"].float().flatten(1), pair["A"].float().flatten(1)  # flat: convolutions have 1 x 1 in B
    rank = len(down)
    if up.shape != (len(weight), rank) or rank * weight[0].numel() != down.numel():
        raise EncoderFormatError(
            f"{what} is B {list(pair['B'].shape)} times A {list(pair['A'].shape)}, the base's weight is "
            f"{list(weight.shape)}; give the base that the adapter was trained on with --base"
        )
    return alpha / (rank**0.5 if config.get("use_rslora") else rank) * (up @ down).reshape(weight.shape)


def _check_shapes(file: Path, merged: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> None:
    for name, weight in merged.items():
        if weight.shape != base[name].shape:
            raise EncoderFormatError(
                f"{file}: {name} has shape {list(weight.shape)}, in the base {list(base[name].shape)}; give the base "
                "that the adapter was trained on with --base"
            )
