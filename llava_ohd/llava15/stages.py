"""The stages: what each trains, what stays frozen, and which flags contradict each other.

projector   --tune_mm_mlp_adapter True      the projector
lora        --lora_enable True              adapters on the language model's layers, and the projector
qlora       --lora_enable True --bits 4     as lora, on a language model in 4 or 8 bits
full        neither                         the language model, and the projector

In each, `--unfreeze_mm_vision_tower True` trains the tower too, as far as its output is read: LLaVA-1.5 reads the
hidden states before the last layer, so that this layer and `post_layernorm` would never get a gradient and stay frozen.
`--freeze_mm_mlp_adapter True` keeps the projector as it is given.

Source: haotian-liu/LLaVA train/train.py @ c121f04; LLaVA-VL/LLaVA-NeXT train/train.py for the tower's flags.
"""

from typing import Any

import torch
from torch import nn

from llava_ohd.errors import LlavaOhdError
from llava_ohd.llava15.model_dir.record import ADAPTER_STAGES
from llava_ohd.llava15.weight_names import LANGUAGE_LINEARS, part_of

__all__ = ["stage_of", "trainable", "what_trains"]

_PARTS = ("tower", "projector", "language model", "adapter")


def stage_of(model: Any, training: Any, zero_stage: int | None) -> str:
    """Returns the stage that flags ask for.

    Args:
        model: `ModelArguments`.
        training: `TrainingArguments`.
        zero_stage: Of the DeepSpeed file; None without.

    Raises:
        LlavaOhdError: flags that contradict each other; the message names the remedy.
    """
    if model.tune_mm_mlp_adapter and training.lora_enable:
        raise LlavaOhdError(
            "--tune_mm_mlp_adapter True (stage projector) and --lora_enable True (stage lora) exclude each other; give "
            "one of them, or neither for full fine-tuning"
        )
    for name in ("lora_r", "lora_alpha", "per_device_train_batch_size"):
        if getattr(training, name, 1) < 1:
            raise LlavaOhdError(f"--{name} {getattr(training, name)}: give a number of at least 1")
    stage = "projector" if model.tune_mm_mlp_adapter else "lora" if training.lora_enable else "full"
    if training.bits != 16:
        _check_quantized_stage(stage, training.bits, zero_stage)
        stage = "qlora" if stage == "lora" else stage
    if stage == "full" and model.freeze_backbone:
        raise LlavaOhdError("--freeze_backbone True: full fine-tuning trains it; give --tune_mm_mlp_adapter True")
    if training.freeze_mm_mlp_adapter and stage == "projector":
        raise LlavaOhdError("--freeze_mm_mlp_adapter True leaves stage projector nothing to train; leave it out")
    if training.freeze_mm_mlp_adapter and model.pretrain_mm_mlp_adapter in (None, "random"):
        raise LlavaOhdError(
            "--freeze_mm_mlp_adapter True would keep a random projector; give --pretrain_mm_mlp_adapter too"
        )
    if training.mm_vision_tower_lr is not None and not model.unfreeze_mm_vision_tower:
        raise LlavaOhdError(
            "--mm_vision_tower_lr has no effect on a frozen tower; add --unfreeze_mm_vision_tower True, or leave it out"
        )
    return stage


def _check_quantized_stage(stage: str, bits: int, zero_stage: int | None) -> None:
    if stage == "full":
        raise LlavaOhdError(
            f"--bits {bits} and full fine-tuning exclude each other: quantised weights cannot train; give "
            "--lora_enable True (QLoRA), or --bits 16"
        )
    if zero_stage == 3:
        raise LlavaOhdError(
            f"--bits {bits} and ZeRO-3 exclude each other: ZeRO-3 cannot split quantised weights over the ranks; give "
            "--deepspeed zero_configs/zero2.json, or --bits 16"
        )


def trainable(
    model: nn.Module,
    stage: str,
    lora: dict[str, Any] | None = None,
    seed: int = 0,
    *,
    tower: bool = False,
    projector: bool = True,
    float32: bool = True,
) -> Any:
    """Freezes everything but what the stage trains.

    Args:
        model: What `build` returns.
        stage: `projector`, `lora`, `qlora` or `full`.
        lora: Keyword arguments of peft's `LoraConfig`: `r`, `lora_alpha`, `lora_dropout`, `bias`.
        seed: Of the adapter's random half.
        tower: Train the tower too, as far as it is read.
        projector: Train the projector.
        float32: Keep what trains in float32 beside a model in bfloat16, whose weights are too coarse for most updates
            (0.4 percent of a weight). DeepSpeed does so itself, and ZeRO-3 refuses weights of two types.

    Returns:
        The model; with an adapter inside a `PeftModel`, with adapters on the language model only.
    """
    model.requires_grad_(False)
    bare: Any = model
    if stage in ADAPTER_STAGES:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(target_modules=LANGUAGE_LINEARS, task_type="CAUSAL_LM", **(lora or {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(bare, config, autocast_adapter_dtype=float32)
    elif stage == "full":
        bare.model.language_model.requires_grad_(True)
        bare.lm_head.requires_grad_(True)
    bare.model.multi_modal_projector.requires_grad_(projector)
    if tower:
        _unfreeze(bare.model.vision_tower, bare.config.vision_feature_layer)
    for weight in model.parameters() if float32 else ():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def _unfreeze(tower: Any, feature_layer: int) -> None:
    core = getattr(tower, "vision_model", tower)
    core.requires_grad_(True)
    core.post_layernorm.requires_grad_(False)
    read = feature_layer if feature_layer >= 0 else len(core.encoder.layers) + 1 + feature_layer
    for layer in core.encoder.layers[read:]:
        layer.requires_grad_(False)


def what_trains(model: nn.Module) -> list[str]:
    """Says for each part how many weights train, and how many are frozen."""
    counts = {part: [0, 0] for part in _PARTS}
    bits = {part: 0 for part in _PARTS}
    for name, weight in model.named_parameters():
        part = part_of(name)
        counts[part][not weight.requires_grad] += _count(weight)
        if not weight.is_floating_point():
            bits[part] = 8 if weight.dtype == torch.int8 else 4
    lines = []
    for part, (trained, frozen) in counts.items():
        how = f" (layers in {bits[part]} bits)" if bits[part] else ""
        if trained:
            lines.append(f"{part}: {trained:,} weights train" + (f", {frozen:,} frozen" if frozen else ""))
        elif frozen:
            lines.append(f"{part}: {frozen:,} weights, frozen{how}")
    return lines


def _count(weight: nn.Parameter) -> int:
    packed = getattr(weight, "quant_state", None)  # two numbers of 4 bits are one byte
    return packed.shape.numel() if packed is not None else getattr(weight, "ds_numel", weight.numel())
