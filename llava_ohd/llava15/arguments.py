"""The flags of LLaVA's train.py under their names, on transformers 5.

A command of LLaVA's scripts/v1_5/*.sh runs here with only the script's path changed (flags.py translates what
transformers has dropped since). Where LLaVA's code has another default than all of its v1.5 scripts, the default here
is that of the scripts. A flag that cannot be honoured is refused, never ignored.

Source: haotian-liu/LLaVA train/train.py, scripts/v1_5/ @ c121f04.
"""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import transformers
from transformers import HfArgumentParser
from transformers.trainer_pt_utils import AcceleratorConfig

from llava_ohd.command_line import helps
from llava_ohd.errors import LlavaOhdError
from llava_ohd.files import read_json
from llava_ohd.llava15.stages import stage_of

__all__ = ["DataArguments", "ModelArguments", "TrainingArguments", "flags", "parse"]


@dataclass(frozen=True)
class ModelArguments:
    """Which models, and how they are put together."""

    model_name_or_path: str = field(metadata=helps("language model: folder, or name on the Hub; for 1.5 Vicuna v1.5"))
    vision_tower: str = field(metadata=helps("encoder: ours, openai, another registered name, or a folder"))
    version: str = field(default="v1", metadata=helps("conversation template: plain (stage projector) or v1"))
    tune_mm_mlp_adapter: bool = field(default=False, metadata=helps("stage projector: only the projector trains"))
    pretrain_mm_mlp_adapter: str | None = field(
        default=None, metadata=helps("to start from: mm_projector.bin, folder of stage projector, or random")
    )
    mm_projector_type: str = field(default="mlp2x_gelu", metadata=helps("only mlp2x_gelu, as in LLaVA-1.5"))
    mm_vision_select_layer: int = field(default=-2, metadata=helps("hidden states of the tower that are read"))
    mm_vision_select_feature: str = field(default="patch", metadata=helps("only patch: without the class token"))
    mm_patch_merge_type: str = field(default="flat", metadata=helps("only flat"))
    mm_use_im_start_end: bool = field(default=False, metadata=helps("only False, as in LLaVA-1.5"))
    mm_use_im_patch_token: bool = field(default=False, metadata=helps("only False, as in LLaVA-1.5"))
    freeze_backbone: bool = field(default=False, metadata=helps("without effect: frozen unless all of it trains"))
    unfreeze_mm_vision_tower: bool = field(
        default=False, metadata=helps("train the tower too, but not its last layer, whose output is not read")
    )


@dataclass(frozen=True)
class DataArguments:
    """What it trains on."""

    data_path: Path = field(metadata=helps("training file, .json or .jsonl: LLaVA's format, or messages"))
    image_folder: Path = field(metadata=helps("folder, .zip or .tar that image names are relative to"))
    image_aspect_ratio: str = field(default="square", metadata=helps("pad: to a square; square: crop the centre"))
    lazy_preprocess: bool = field(default=True, metadata=helps("without effect: rows are always read when needed"))
    is_multimodal: bool = field(default=True, metadata=helps("without effect: always so"))
    data_policy: str = field(default="error", metadata=helps("a faulty row: error ends the run, skip leaves it out"))
    data_manifest: Path | None = field(default=None, metadata=helps("verdicts of python -m llava_ohd.llava15.doctor"))


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """HF's arguments and what LLaVA adds to them."""

    cache_dir: str | None = field(default=None, metadata=helps("without effect: set HF_HOME instead"))
    remove_unused_columns: bool = field(default=False, metadata=helps("only False"))
    logging_nan_inf_filter: bool = field(default=False, metadata=helps("only False: NaN stops the training"))
    logging_steps: float = field(default=1, metadata=helps("steps between lines of the log and points of the curve"))
    disable_tqdm: bool | None = field(default=True, metadata=helps("our own progress bar takes its place"))
    model_max_length: int = field(default=2048, metadata=helps("tokens at which a row is cut, image included"))
    group_by_modality_length: bool = field(default=False, metadata=helps("LLaVA's order: batches of one modality"))
    lora_enable: bool = field(default=False, metadata=helps("stage lora: adapters on the language model + projector"))
    lora_r: int = field(default=128, metadata=helps("rank; LLaVA-1.5: 128"))
    lora_alpha: int = field(default=256, metadata=helps("scale of the adapter is lora_alpha / lora_r; LLaVA-1.5: 256"))
    lora_dropout: float = field(default=0.05, metadata=helps("fraction"))
    lora_bias: str = field(default="none", metadata=helps("only none"))
    lora_weight_path: str = field(default="", metadata=helps("without effect, as in LLaVA"))
    mm_projector_lr: float | None = field(default=None, metadata=helps("projector's own rate; LLaVA-1.5 LoRA: 2e-5"))
    mm_vision_tower_lr: float | None = field(default=None, metadata=helps("the unfrozen tower's own rate"))
    freeze_mm_mlp_adapter: bool = field(default=False, metadata=helps("keep the projector as it is given"))
    bits: int = field(default=16, metadata=helps("4 or 8: the language model quantised by bitsandbytes (QLoRA)"))
    double_quant: bool = field(default=True, metadata=helps("with --bits 4: quantise the scales as well"))
    quant_type: str = field(default="nf4", metadata=helps("with --bits 4: nf4 or fp4"))
    attn_implementation: str = field(default="sdpa", metadata=helps("of the language model; flash_attention_2 on GPUs"))
    feature_cache: str | None = field(
        default=None, metadata=helps("folder in which the frozen tower's features are kept, each image computed once")
    )
    feature_cache_dtype: str = field(
        default="auto", metadata=helps("auto: that of the training, which changes nothing; float32, bfloat16, float16")
    )
    register: str = field(
        default="new", metadata=helps("as the encoder's model: new if it has none, replace one it has, or no")
    )
    mpt_attn_impl: str | None = field(default="triton", metadata=helps("without effect: no MPT models"))

    stage: str = field(default="", init=False)
    """`projector`, `lora`, `qlora` or `full`; `parse` fills it in."""


_ONLY: dict[str, tuple[Any, ...]] = {
    "version": ("plain", "v1"),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "image_aspect_ratio": ("pad", "square"),
    "data_policy": ("error", "skip"),
    "register": ("new", "replace", "no"),
    "lora_bias": ("none",),
    "bits": (16, 4, 8),
    "quant_type": ("nf4", "fp4"),
    "attn_implementation": ("sdpa", "flash_attention_2", "flash_attention_3"),
    "feature_cache_dtype": ("auto", "float32", "bfloat16", "float16"),
    "remove_unused_columns": (False,),
    "logging_nan_inf_filter": (False,),
    "fp16": (False,),
    "train_sampling_strategy": ("random", "group_by_length"),
    "label_smoothing_factor": (0.0,),
    "neftune_noise_alpha": (None,),
    "optim_target_modules": (None,),
    "torch_compile": (False,),
    "use_liger_kernel": (False,),
    "parallelism_config": (None,),
    "auto_find_batch_size": (False,),
    "eval_strategy": ("no",),
    "load_best_model_at_end": (False,),
    "push_to_hub": (False,),
    "save_only_model": (False,),  # such a checkpoint would go on with a new optimiser
    "ignore_data_skip": (False,),
    "resume_from_checkpoint": (None,),  # the last whole one of --output_dir is found
}
_TRAINING = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "mm_projector_lr",
    "mm_vision_tower_lr",
    "freeze_mm_mlp_adapter",
    "bits",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "lr_scheduler_kwargs",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "tf32",
    "attn_implementation",
    "seed",
    "data_seed",
    "model_max_length",
    "group_by_modality_length",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "average_tokens_across_devices",
)
_LORA = ("lora_r", "lora_alpha", "lora_dropout")
_QUANTIZED = ("quant_type", "double_quant")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LlavaOhdError(f"{message}; see --help")


def parse(arguments: list[str], description: str) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parses a translated command line.

    Raises:
        LlavaOhdError: an unknown flag, a value that transformers refuses, or one that cannot be honoured here.
    """
    parts: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = _Parser(parts, description=description, allow_abbrev=False)
    try:
        model, data, training = parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
        raise LlavaOhdError(f"{error}; see --help") from error
    for name, values in _ONLY.items():
        value = next(getattr(part, name) for part in (model, data, training) if hasattr(part, name))
        if value not in values:
            choice = " or ".join(map(str, values))
            raise LlavaOhdError(f"--{name} {value}: only {choice} is supported; leave the flag out or give that")
    _check_launcher(training)
    training.stage = stage_of(model, training, _zero_stage(training))
    if training.deepspeed and "optimizer" in _zero(training.deepspeed):
        raise LlavaOhdError(
            f"{training.deepspeed} has an 'optimizer', which would take the place of --optim and --learning_rate, and "
            "leave --mm_projector_lr without effect; remove that part (zero_configs/ has files without)"
        )
    return model, data, training


def _check_launcher(training: TrainingArguments) -> None:
    """Refuses what a launcher asks for beside the command line, which would change the training without a word."""
    if training.n_gpu > 1:
        raise LlavaOhdError(
            f"one process, {training.n_gpu} GPUs: a batch would be torn apart; start a process per GPU (deepspeed, "
            "torchrun, accelerate launch --multi_gpu), or let it see one: CUDA_VISIBLE_DEVICES=0"
        )
    given = {
        "USE_DEEPSPEED": "true" if training.deepspeed else "no",
        "MIXED_PRECISION": "bf16" if training.bf16 else "",
    }
    for name in ("USE_DEEPSPEED", "USE_FSDP", "MIXED_PRECISION", "DYNAMO_BACKEND"):
        asked = os.environ.get(f"ACCELERATE_{name}", "no").lower()
        if asked not in ("no", "false", given.get(name)):
            raise LlavaOhdError(
                f"accelerate's configuration asks for {name.lower()} {asked}, the command line does not; give "
                "--deepspeed FILE or --bf16 True for that, and launch with --mixed_precision no --dynamo_backend no"
            )
    if training.accelerator_config != AcceleratorConfig():
        raise LlavaOhdError(
            f"--accelerator_config {training.accelerator_config}: not supported, rows come as LLaVA has them; leave it "
            "out"
        )
    if training.fsdp:
        raise LlavaOhdError(f"--fsdp {training.fsdp}: not supported; give --deepspeed zero_configs/zero3.json instead")


def _zero(config: Any) -> dict[str, Any]:
    record = config if isinstance(config, dict) else read_json(Path(config))
    return dict(record)


def _zero_stage(training: TrainingArguments) -> int | None:
    return _zero(training.deepspeed).get("zero_optimization", {}).get("stage", 0) if training.deepspeed else None


def flags(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> dict[str, Any]:
    """Returns everything given on the command line that the trained weights depend on, JSON-able.

    Models, data and encoder are named here; their digests are recorded beside.
    """
    record = {field.name: getattr(model, field.name) for field in fields(model) if field.name != "freeze_backbone"}
    idle = ("lazy_preprocess", "is_multimodal", "data_manifest")
    record |= {key: str(value) for key, value in asdict(data).items() if key not in idle}
    names = [*_TRAINING, *(_LORA if training.lora_enable else ()), *(_QUANTIZED if training.bits != 16 else ())]
    record |= {name: getattr(training, name) for name in names}
    record |= {name: getattr(record[name], "value", record[name]) for name in ("lr_scheduler_type", "optim")}
    if training.feature_cache and training.feature_cache_dtype != "auto":  # auto changes nothing
        record["feature_cache_dtype"] = training.feature_cache_dtype
    return record | {"deepspeed": _zero(training.deepspeed) if training.deepspeed else None}
