"""The settings of a fine-tuning run, one flag of scripts/finetune_clip.py each.

Source: arXiv 2410.03176, section 5 "Training Details"; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/run.sh.
"""

from dataclasses import dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_ohd.command_line import helps, require, require_between
from llava_ohd.home import home

if TYPE_CHECKING:
    from llava_ohd.clip.loss import LossConfig

__all__ = ["FREEZABLE", "FinetuneConfig", "check", "effective", "loss_config"]

FREEZABLE = ("vision", "text", "projections", "visual_projection", "text_projection", "logit_scale")
"""Parts that `--freeze` takes; `projections` are both."""


@dataclass(frozen=True)
class FinetuneConfig:
    """What to fine-tune, on what, and how. The paper: ViT-L/14-336, 1e-6, 10 epochs of 16,000 images, batch 14."""

    encoder: str = field(default="openai", metadata=helps("name or path of the encoder to start from"))
    data: Path = field(
        default_factory=lambda: home() / "world" / "ohd_caps" / "train.jsonl",
        metadata=helps("OHD-Caps rows: a file of scripts/build_ohd_caps.py, or one of the authors'"),
    )
    images: Path = field(
        default_factory=lambda: home() / "world" / "images", metadata=helps("folder that the rows' images lie in")
    )
    out: Path = field(
        default_factory=lambda: home() / "clip", metadata=helps("where to write; OUT/encoder, OUT/curve.json")
    )
    name: str | None = field(
        default=None, metadata=helps("name to register the new encoder under; default: ours, unregistered OUT's name")
    )
    register: bool = field(default=True, metadata=helps("make the new encoder known as --encoder NAME"))
    loss: Literal["paper", "released"] = field(
        default="paper", metadata=helps("the paper's equations, or what the released code computes")
    )
    lambda1: float | None = field(
        default=None, metadata=helps("weight of L_1, eq. 5; paper 0.1, released 0.2; 0 = off")
    )
    lambda2: float | None = field(
        default=None, metadata=helps("weight of L_2, eq. 5; paper 0.1, released 0.2; 0 = off")
    )
    tau1: float | None = field(default=None, metadata=helps("margin of L_1, eq. 3; paper 2, released 5"))
    tau2: float | None = field(default=None, metadata=helps("margin of L_2, eq. 4; paper 2, released 5"))
    margin_unit: Literal["logit", "cosine"] = field(
        default="logit", metadata=helps("unit of tau1 and tau2: with or without the scale")
    )
    hardest: bool | None = field(
        default=None, metadata=helps("L_2 against the best in-batch pair, not the mean of all; paper no, released yes")
    )
    neg_scope: Literal["own", "all"] = field(
        default="own", metadata=helps("negatives in a denominator of eq. 2: the image's own, or those of all images")
    )
    l2_sign: Literal["above", "below"] | None = field(
        default=None,
        metadata=helps("L_2 keeps edited captions above or below in-batch pairs; paper above, released below"),
    )
    axis: Literal["texts", "images"] | None = field(
        default=None,
        metadata=helps("in-batch pairs of L_1 and L_2: other texts of the image (paper), other images of the text"),
    )
    mask: Literal["inf", "zero"] | None = field(
        default=None,
        metadata=helps("an empty slot is left out (paper), or is a logit of 0 that means count (released)"),
    )
    learning_rate: float = field(
        default=3e-4, metadata=helps("peak rate; 3e-4 suits the world's mini CLIP, for OpenAI's the paper takes 1e-6")
    )
    epochs: float = field(default=1.0, metadata=helps("passes over the data, unless --max_steps is given"))
    max_steps: int = field(default=-1, metadata=helps("optimiser steps; -1 = by --epochs"))
    batch_size: int = field(default=32, metadata=helps("images a step and device, each with its captions"))
    negatives: int | None = field(
        default=None,
        metadata=helps("negatives per image and step, drawn anew each time: more images for the time; paper: all"),
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata=helps("batches per optimiser step; in-batch captions stay those of one batch")
    )
    warmup_steps: int = field(default=20, metadata=helps("steps of linear warm-up; linear decay to 0 follows"))
    weight_decay: float = field(default=0.1, metadata=helps("AdamW's, on matrices only"))
    bf16: bool = field(default=False, metadata=helps("towers in bfloat16 autocast; the loss stays in float32"))
    seed: int = field(default=0, metadata=helps("order of the data"))
    save_steps: int = field(default=50, metadata=helps("steps between checkpoints; a killed run goes on from the last"))
    dev: Path | None = field(
        default=None,
        metadata=helps("OHD-Caps rows by whose accuracy the best checkpoint is chosen; images as --images"),
    )
    freeze: list[str] = field(  # HfArgumentParser cannot read a list of literals; `check` refuses other names
        default_factory=list,
        metadata=helps(f"parts that do not train, of {', '.join(FREEZABLE)}; LiT: vision visual_projection"),
    )
    train_layers: int | None = field(
        default=None, metadata=helps("train only so many layers of each tower, the last ones, and what follows them")
    )
    lora_rank: int = field(
        default=0, metadata=helps("train adapters of this rank instead of the weights; merged when written; 0 = off")
    )
    lora_alpha: int = field(default=16, metadata=helps("an adapter is scaled by this over its rank"))
    layer_decay: float = field(
        default=1.0, metadata=helps("a layer's rate is multiplied by this for every layer above it; 1 = off")
    )
    vision_rate: float | None = field(
        default=None, metadata=helps("peak rate of the image tower and its projection; default: --learning_rate")
    )
    text_rate: float | None = field(
        default=None, metadata=helps("peak rate of the text tower and its projection; default: --learning_rate")
    )
    chunk_size: int | None = field(
        default=None,
        metadata=helps("gradient caching: images at a time that are in memory, each computed twice; default: all"),
    )
    deepspeed: str | None = field(
        default=None, metadata=helps("DeepSpeed's json, zero_configs/zero2.json; under torchrun or deepspeed")
    )
    report_to: str = field(default="none", metadata=helps("none, tensorboard, wandb, ... (as in HF's Trainer)"))

    @property
    def title(self) -> str:
        """The encoder's name: that given, else `ours` where it is registered, else that of OUT."""
        return self.name or ("ours" if self.register else self.out.resolve().name)


def check(config: FinetuneConfig) -> None:
    """Refuses settings that no training can have, before anything is read.

    Raises:
        OptionError: the first of them, with what is expected.
    """
    for name in ("batch_size", "gradient_accumulation_steps", "save_steps", "chunk_size", "lora_alpha"):
        require_between(1, inf, name, getattr(config, name))
    for name in ("lambda1", "lambda2", "negatives", "warmup_steps", "weight_decay", "train_layers", "lora_rank"):
        require_between(0, inf, name, getattr(config, name))
    for name in ("tau1", "tau2"):
        value = getattr(config, name)
        require(value is None or isfinite(value), name, value, "a finite number")
    for name in ("learning_rate", "epochs", "vision_rate", "text_rate"):
        value = getattr(config, name)
        require(value is None or 0 < value < inf, name, value, "a number above 0")
    require(0 < config.layer_decay <= 1, "layer_decay", config.layer_decay, "a factor above 0 and at most 1")
    require(
        config.max_steps == -1 or config.max_steps >= 1, "max_steps", config.max_steps, "at least 1, or -1 (epochs)"
    )
    require_between(0, 2**32 - 1, "seed", config.seed)
    for part in config.freeze:
        require(part in FREEZABLE, "freeze", part, f"some of {', '.join(FREEZABLE)}", "leave it out to train all")


def loss_config(config: FinetuneConfig) -> "LossConfig":
    """Returns the loss that a run asks for: its fields have the names of the flags, `mode` is --loss."""
    from llava_ohd.clip.loss import LossConfig

    names = [field.name for field in fields(LossConfig) if field.name != "mode"]
    return LossConfig(mode=config.loss, **{name: getattr(config, name) for name in names})


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run with the loss that they mean: where no value was given, that of the mode.

    Args:
        settings: Flags and their values, those of the loss maybe None; of anything but a run they are returned as is.
    """
    from llava_ohd.clip.loss import LossConfig

    if "loss" not in settings:
        return settings
    given = {field.name: settings[field.name] for field in fields(LossConfig) if field.name in settings}
    chosen = LossConfig(**given | {"mode": settings["loss"]}).chosen
    return settings | {name: chosen[name] for name in given}
