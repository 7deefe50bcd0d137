"""The weights that a run must keep: out of a live model, and from a checkpoint back into it."""

from pathlib import Path

import torch
from torch import nn

from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15.model_dir.weight_files import read_tensors
from llava_ohd.llava15.weight_names import llava_name, part_of

__all__ = ["load_checkpoint", "trained_weights"]


def trained_weights(model: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """Returns copies of all weights that neither base nor encoder have, whole and on the CPU, under LLaVA's names.

    These are the weights that train; the projector also where it is frozen; and all of the tower where a part of it
    trains, since a part alone would be laid over another tower without a word.

    Args:
        model: A model that `trainable` prepared.
        keep: False on ranks that only help to gather, and get an empty dict. Under ZeRO-3 all ranks must call this.
    """
    kept = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    whole = {"projector"} | {"tower" for name, _ in kept if part_of(name) == "tower"}
    kept = [(name, w) for name, w in model.named_parameters() if w.requires_grad or part_of(name) in whole]
    weights = {}
    for name, weight in kept:
        copy = _whole(weight, keep)
        if copy is not None:
            weights[llava_name(name)] = copy
    return weights


def _whole(weight: nn.Parameter, keep: bool) -> torch.Tensor | None:
    if not hasattr(weight, "ds_id"):
        return weight.detach().cpu().clone() if keep else None
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().cpu().clone() if keep else None


def load_checkpoint(model: nn.Module, folder: Path) -> None:
    """Puts the weights of a checkpoint back into a model that trains.

    Raises:
        ModelFormatError: the checkpoint holds others than those that train.
    """
    stored = {name: w for file in sorted(folder.glob("*.safetensors")) for name, w in read_tensors(file).items()}
    live = {llava_name(name): (name, weight) for name, weight in model.named_parameters()}
    trained = {name for name, (_, weight) in live.items() if weight.requires_grad}
    if missing := trained - stored.keys():
        raise ModelFormatError(f"{folder} lacks {len(missing)} weights that train, first {min(missing)}; another run's")
    foreign = {n for n in stored.keys() - trained if n not in live or part_of(live[n][0]) not in ("projector", "tower")}
    if foreign:
        raise ModelFormatError(f"{folder} holds {len(foreign)} weights that do not train, first {min(foreign)}")
    for name in trained:
        live[name][1].data.copy_(stored[name])
