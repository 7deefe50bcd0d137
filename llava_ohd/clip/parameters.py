"""Which weights of an encoder train, and how fast: freezing by part and layer, LoRA, learning rates by tower and layer.

Source: LiT (arXiv 2111.07991) freezes the image tower; LoRA (arXiv 2106.09685); layer-wise decay as in BEiT
(arXiv 2106.08254, appendix): rate · decay^(layers above).
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llava_ohd.command_line import require, require_between

__all__ = ["add_lora", "freeze", "group_rates", "merge_lora", "what_trains"]

_PARTS = {
    "vision": "vision_model.",
    "text": "text_model.",
    "visual_projection": "visual_projection.",
    "text_projection": "text_projection.",
    "logit_scale": "logit_scale",
}


def freeze(model: nn.Module, parts: Sequence[str], last_layers: int | None = None) -> None:
    """Freezes parts of a CLIP.

    Args:
        model: CLIPModel.
        parts: Of `vision`, `text`, `visual_projection`, `text_projection`, `projections` (both) and `logit_scale`.
        last_layers: In a tower that is not frozen train only so many layers, the last ones, and what comes after them.

    Raises:
        OptionError: there are not so many layers, or nothing would train.
    """
    config: Any = model.config
    layers = max(config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers)
    require_between(0, layers, "train_layers", last_layers)
    frozen = set(parts)
    if "projections" in frozen:
        frozen |= {"visual_projection", "text_projection"}
    for name, weight in model.named_parameters():
        below = last_layers is not None and _layers_above(name, model) > last_layers
        if _part(name) in frozen or below:
            weight.requires_grad_(False)
    trains = any(weight.requires_grad for weight in model.parameters())
    require(trains, "freeze", " ".join(parts), "a part that trains", "leave one of them out")


def _part(name: str) -> str:
    """Returns the part that a weight belongs to, by its name in CLIPModel."""
    return next(part for part, beginning in _PARTS.items() if name.startswith(beginning))


def _layers_above(name: str, model: Any) -> int:
    """Returns how far a weight is from the output: 0 after the last layer, 1 in it, layers + 1 in the embeddings."""
    part = _part(name)
    if part not in ("vision", "text"):
        return 0
    layers = int(getattr(model.config, f"{part}_config").num_hidden_layers)
    if found := re.search(r"\.layers\.(\d+)\.", name):
        return layers - int(found[1])
    return layers + 1 if ".embeddings." in name or ".pre_layrnorm." in name else 0


def add_lora(model: nn.Module, rank: int, alpha: float, seed: int) -> Any:
    """Puts adapters on every linear map that would train; of the model's own weights only the scale trains on.

    Args:
        model: CLIPModel, changed in place.
        rank: Width of an adapter.
        alpha: An adapter's output is scaled by alpha / rank.
        seed: Of the adapters' first values.

    Returns:
        peft's tuner, for `merge_lora`.
    """
    from peft import LoraConfig, LoraModel

    targets = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    require(bool(targets), "lora_rank", rank, "a part with a linear map that trains", "freeze less")
    scale: Any = model.logit_scale
    scale_trains = scale.requires_grad
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(model, LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=targets), "default")
    scale.requires_grad_(scale_trains)
    return tuner


def merge_lora(tuner: Any) -> Any:
    """Returns the plain CLIP with the adapters added to its weights."""
    return tuner.merge_and_unload()


def group_rates(
    model: Any, decayed: set[str], weight_decay: float, rates: dict[str, float], layer_decay: float
) -> list[dict[str, Any]]:
    """Returns the optimiser's groups of the weights that train, the highest rate first.

    Args:
        model: CLIPModel, maybe with adapters.
        decayed: Names of the weights that are decayed.
        weight_decay: For these.
        rates: Learning rates of `vision`, `text` and `other` (the scale); a projection has its tower's.
        layer_decay: A weight's rate is multiplied by this for every layer above it.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            tower = {"vis": "vision", "tex": "text"}.get(name[:3], "other")
            rate = rates[tower] * layer_decay ** _layers_above(name, model)
            groups.setdefault((rate, name in decayed), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), weights in sorted(groups.items(), key=lambda group: (-group[0][0], not group[0][1]))
    ]


def what_trains(model: nn.Module) -> list[str]:
    """Says of every part how many weights train and how many are frozen."""
    lines = []
    for part in _PARTS:
        found = [
            (weight.numel(), weight.requires_grad) for name, weight in model.named_parameters() if _part(name) == part
        ]
        trained, frozen = (sum(count for count, trains in found if trains == wanted) for wanted in (True, False))
        words = [f"{trained:,} weights train"] * bool(trained) + [f"{frozen:,} are frozen"] * bool(frozen)
        lines.append(f"{part}: {', '.join(words)}")
    return lines
