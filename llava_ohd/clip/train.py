"""Fine-tunes an encoder on OHD-Caps: from an encoder folder to an encoder folder.

Source: arXiv 2410.03176, section 5 "Training Details"; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/run.sh.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound
from llava_ohd.files import read_json, sha256_file, sha256_json, storage_errors, write_json
from llava_ohd.home import home
from llava_ohd.results import differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import CLIPModel, TrainingArguments

    from llava_ohd.clip.batching import OhdData
    from llava_ohd.clip.loss import LossConfig
    from llava_ohd.tower import Encoder

__all__ = ["FinetuneConfig", "finetune"]


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class FinetuneConfig:
    """What to fine-tune, on what, and how. The paper: ViT-L/14-336, 1e-6, 10 epochs of 16,000 images, batch 14."""

    encoder: str = field(default="openai", metadata=_help("name or path of the encoder to start from"))
    data: Path = field(
        default_factory=lambda: home() / "world" / "ohd_caps" / "train.jsonl",
        metadata=_help("OHD-Caps rows: a file of scripts/build_ohd_caps.py, or one of the authors'"),
    )
    images: Path = field(
        default_factory=lambda: home() / "world" / "images", metadata=_help("folder that the rows' images lie in")
    )
    out: Path = field(
        default_factory=lambda: home() / "clip", metadata=_help("where to write; OUT/encoder, OUT/curve.json")
    )
    name: str = field(default="ours", metadata=_help("name to register the new encoder under"))
    register: bool = field(default=True, metadata=_help("make the new encoder known as --encoder NAME"))
    loss: Literal["paper", "released"] = field(
        default="paper", metadata=_help("the paper's equations, or what the released code computes")
    )
    lambda1: float | None = field(
        default=None, metadata=_help("weight of L_1, eq. 5; paper 0.1, released 0.2; 0 = off")
    )
    lambda2: float | None = field(
        default=None, metadata=_help("weight of L_2, eq. 5; paper 0.1, released 0.2; 0 = off")
    )
    tau1: float | None = field(default=None, metadata=_help("margin of L_1, eq. 3; paper 2, released 5"))
    tau2: float | None = field(default=None, metadata=_help("margin of L_2, eq. 4; paper 2, released 5"))
    margin_unit: Literal["logit", "cosine"] = field(
        default="logit", metadata=_help("unit of tau1 and tau2: with or without the scale")
    )
    hardest: bool = field(default=False, metadata=_help("paper's L_2 against the best in-batch caption, not the mean"))
    learning_rate: float = field(
        default=3e-4, metadata=_help("peak rate; 3e-4 suits the world's mini CLIP, for OpenAI's the paper takes 1e-6")
    )
    epochs: float = field(default=1.0, metadata=_help("passes over the data, unless --max_steps is given"))
    max_steps: int = field(default=-1, metadata=_help("optimiser steps; -1 = by --epochs"))
    batch_size: int = field(default=32, metadata=_help("images a step and device, each with its captions"))
    negatives: int | None = field(
        default=None,
        metadata=_help("negatives per image and step, drawn anew each time: more images for the time; paper: all"),
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata=_help("batches per optimiser step; in-batch captions stay those of one batch")
    )
    warmup_steps: int = field(default=20, metadata=_help("steps of linear warm-up; linear decay to 0 follows"))
    weight_decay: float = field(default=0.1, metadata=_help("AdamW's, on matrices only"))
    bf16: bool = field(default=False, metadata=_help("towers in bfloat16 autocast; the loss stays in float32"))
    seed: int = field(default=0, metadata=_help("order of the data"))
    save_steps: int = field(default=50, metadata=_help("steps between checkpoints; a killed run goes on from the last"))
    dev: Path | None = field(
        default=None,
        metadata=_help("OHD-Caps rows by whose accuracy the best checkpoint is chosen; images as --images"),
    )
    report_to: str = field(default="none", metadata=_help("none, tensorboard, wandb, ... (as in HF's Trainer)"))


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tunes the whole CLIP and writes OUT/encoder and OUT/curve.json.

    Does nothing but register where OUT/encoder was made from the same encoder, data and settings already; goes on from
    the last whole checkpoint of a run that was stopped.

    Returns:
        The new encoder folder.

    Raises:
        EncoderNotFound, EncoderFormatError: the encoder to start from.
        DataFormatError, ImageError: the rows or an image.
        StorageError: no room; what was there before is still there.
        StageFailed: the loss is not finite.
    """
    from llava_ohd import tower
    from llava_ohd.clip.trainer import remove_checkpoints

    for file in (config.data, config.dev):
        if file is not None and not file.is_file():
            raise DataFormatError(
                f"{file} does not exist; make it with scripts/build_ohd_caps.py, or give another file"
            )
    source = tower.check(tower.resolve(config.encoder))
    settings = _settings(config, source.path)
    if not _made_with(config.out, settings):
        _refuse_other(config.out, settings)
        _train(config, settings, source)
    remove_checkpoints(config.out)
    if config.register:
        tower.register(config.name, config.out / "encoder")
    return config.out / "encoder"


def _settings(config: FinetuneConfig, source: Path) -> dict[str, Any]:
    """Returns everything that the weights depend on, JSON-able; it stands in ohd.json and marks checkpoints."""
    from llava_ohd.tower.weights import weights_file

    record = {
        key: value for key, value in asdict(config).items() if key not in ("out", "name", "register", "report_to")
    }
    record |= {key: str(path.resolve()) if path else None for key, path in record.items() if isinstance(path, Path)}
    record |= {"encoder_sha256": sha256_file(weights_file(source)), "data_sha256": sha256_file(config.data)}
    return record | {"dev_sha256": sha256_file(config.dev) if config.dev else None}


def _made_with(out: Path, settings: dict[str, Any]) -> bool:
    """Says whether OUT holds an encoder made with these settings, and its curve."""
    from llava_ohd import tower

    try:
        tower.check(out / "encoder")
        record = read_json(out / "encoder" / "ohd.json")
        return record.get("config") == settings and bool(read_json(out / "curve.json"))
    except (EncoderNotFound, EncoderFormatError, DataFormatError):
        return False


def _refuse_other(out: Path, settings: dict[str, Any]) -> None:
    """Raises where OUT holds an encoder made with other settings, which would be lost."""
    record = out / "encoder" / "ohd.json"
    if record.is_file() and (changed := differences(read_json(record).get("config", {}), settings)):
        raise EncoderFormatError(
            f"{out / 'encoder'} was made with other settings: {'; '.join(changed[:4])}. Give another --out and --name, "
            "or remove it to make it again"
        )


def _train(config: FinetuneConfig, settings: dict[str, Any], source: "Encoder") -> None:
    from llava_ohd import tower
    from llava_ohd.clip.trainer import FineTuner, OhdObjective, curve, last_checkpoint

    model = tower.load(source.path)
    data, select = _data(config, source.path)
    objective = OhdObjective(model.train(), _loss(config))
    fingerprint = sha256_json(settings)
    with storage_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    trainer = FineTuner(
        objective,
        _arguments(config, len(data)),
        fingerprint,
        select,
        train_dataset=data,
        eval_dataset=data if select else None,  # the Trainer wants one; `select` has the rows
        data_collator=data.collate,
    )
    checkpoint = last_checkpoint(config.out, fingerprint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        write_json(config.out / "curve.json", curve(trainer.state.log_history))
        tower.write(
            model,
            config.out / "encoder",
            files_from=source.path,
            name=config.name,
            parents=[{"path": str(source.path), "digest": source.digest}],
            config=settings,
        )
    trainer.accelerator.wait_for_everyone()


def _data(config: FinetuneConfig, source: Path) -> "tuple[OhdData, Callable[[CLIPModel], float] | None]":
    """Returns the training data, and what measures the dev accuracy of a model where there are dev rows."""
    from llava_ohd import tower
    from llava_ohd.clip.accuracy import accuracy, score
    from llava_ohd.clip.batching import OhdData, image_names
    from llava_ohd.clip.embedding import Images
    from llava_ohd.ohd_caps.readers import read_rows

    tokenizer, processor = tower.load_tokenizer(source), tower.load_processor(source)
    rows = read_rows(config.data)
    pictures = Images(config.images, image_names(rows), processor)
    data = OhdData(rows, pictures, tokenizer, config.negatives, config.seed)
    if config.dev is None:
        return data, None
    dev = read_rows(config.dev)
    images = Images(config.images, image_names(dev), processor)
    return data, lambda model: accuracy(score(model, tokenizer, images, dev).cosines)


def _loss(config: FinetuneConfig) -> "LossConfig":
    from llava_ohd.clip.loss import LossConfig

    return LossConfig(
        mode=config.loss,
        lambda1=config.lambda1,
        lambda2=config.lambda2,
        tau1=config.tau1,
        tau2=config.tau2,
        margin_unit=config.margin_unit,
        hardest=config.hardest,
    )


def _arguments(config: FinetuneConfig, rows: int) -> "TrainingArguments":
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    selection: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": config.save_steps,
        "load_best_model_at_end": True,
    }
    selection |= {"metric_for_best_model": "accuracy", "greater_is_better": True}
    return TrainingArguments(
        output_dir=str(config.out),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=2,  # the one before the last, should a kill spoil the last
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_drop_last=rows >= config.batch_size,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        report_to=config.report_to,
        **(selection if config.dev else {}),
    )
