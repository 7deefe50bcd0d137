"""Fine-tunes an encoder on OHD-Caps: from an encoder folder to an encoder folder.

Source: arXiv 2410.03176, section 5 "Training Details"; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/run.sh.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ohd.clip.config import FinetuneConfig, check, effective, loss_config
from llava_ohd.command_line import require_between
from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound
from llava_ohd.files import read_json, sha256_file, sha256_json, storage_errors, write_json
from llava_ohd.results import differences
from llava_ohd.training.launch import has_gpu, is_first, prepare_deepspeed, said_once
from llava_ohd.training.trackers import check_trackers

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import CLIPModel, TrainingArguments

    from llava_ohd.clip.batching import OhdData
    from llava_ohd.tower import Encoder

__all__ = ["FinetuneConfig", "finetune"]


@said_once()
def finetune(config: FinetuneConfig) -> Path:
    """Fine-tunes the whole CLIP and writes OUT/encoder and OUT/curve.json.

    Does nothing but register where OUT/encoder was made from the same encoder, data and settings already; goes on from
    the last whole checkpoint of a run that was stopped. A program that was launched as several processes should end
    with `training.launch.leave`.

    Returns:
        The new encoder folder.

    Raises:
        OptionError: a setting that no training can have.
        EncoderNotFound, EncoderFormatError: the encoder to start from, or the name of the new one.
        DataFormatError, ImageError: the rows or an image.
        StorageError: no room; what was there before is still there.
        StageFailed: the loss is not finite.
        MissingDependency: what `report_to` names is not installed.
    """
    check(config)
    from llava_ohd import tower
    from llava_ohd.clip.trainer import remove_checkpoints

    if config.register and config.name == "openai":
        raise EncoderFormatError(
            "--name openai is the stock encoder, with which results are compared; give another name"
        )
    for file in (config.data, config.dev):
        if file is not None and file.is_dir():
            raise DataFormatError(f"{file} is a folder; a file of OHD-Caps rows is expected: give one that lies in it")
        if file is not None and not file.is_file():
            raise DataFormatError(
                f"{file} does not exist; make it with scripts/build_ohd_caps.py, or give another file"
            )
    source = tower.check(tower.resolve(config.encoder))
    settings = _settings(config, source.path)
    check_trackers(config.report_to)
    if not _made_with(config.out, settings):
        _refuse_other(config.out, settings)
        _train(config, settings, source)
    if is_first():
        remove_checkpoints(config.out)
        if config.register:
            tower.register(config.title, config.out / "encoder")
    return config.out / "encoder"


def _settings(config: FinetuneConfig, source: Path) -> dict[str, Any]:
    """Returns all that the weights depend on, JSON-able; it marks checkpoints; `effective`, it is in ohd.json."""
    from llava_ohd.tower.weights import weights_file

    record = {
        key: value for key, value in asdict(config).items() if key not in ("out", "name", "register", "report_to")
    }
    record |= {key: str(path.resolve()) if path else None for key, path in record.items() if isinstance(path, Path)}
    record |= {"encoder_sha256": sha256_file(weights_file(source)), "data_sha256": sha256_file(config.data)}
    record |= {"dev_sha256": sha256_file(config.dev) if config.dev else None}
    if config.deepspeed:
        record["deepspeed"] = read_json(Path(config.deepspeed))
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # each has --batch_size images: another number, another batch
    return record | ({"processes": processes} if processes > 1 else {})


def _made_with(out: Path, settings: dict[str, Any]) -> bool:
    """Says whether OUT holds an encoder made with these settings, and its curve."""
    from llava_ohd import tower

    try:
        tower.check(out / "encoder")
        record = read_json(out / "encoder" / "ohd.json")
        return effective(record.get("config", {})) == effective(settings) and bool(read_json(out / "curve.json"))
    except (EncoderNotFound, EncoderFormatError, DataFormatError):
        return False


def _changed(record: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    return differences(effective(record.get("config", {})), effective(settings))


def _refuse_other(out: Path, settings: dict[str, Any]) -> None:
    """Raises where OUT holds an encoder made with other settings, which would be lost."""
    record = out / "encoder" / "ohd.json"
    if record.is_file() and (changed := _changed(read_json(record), settings)):
        raise EncoderFormatError(
            f"{out / 'encoder'} was made with other settings: {'; '.join(changed[:4])}. Give another --out and --name, "
            "or remove it to make it again"
        )


def _train(config: FinetuneConfig, settings: dict[str, Any], source: "Encoder") -> None:
    from llava_ohd import tower
    from llava_ohd.clip.parameters import add_lora, freeze, merge_lora, what_trains
    from llava_ohd.clip.trainer import FineTuner, OhdObjective, curve, last_checkpoint

    arguments = _arguments(config)
    model = tower.load(source.path).train()
    freeze(model, config.freeze, config.train_layers)
    lora = add_lora(model, config.lora_rank, config.lora_alpha, config.seed) if config.lora_rank else None
    scale = model.logit_scale
    if config.deepspeed:
        scale.data = scale.data.view(1)  # DeepSpeed broadcasts bytes, and a scalar has no view of its bytes
    if is_first():
        print("\n".join(what_trains(model)), flush=True)
    data, select = _data(config, source.path)
    arguments.dataloader_drop_last = len(data) >= config.batch_size * arguments.world_size
    fingerprint = sha256_json(settings)
    with storage_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    rates = {"vision": config.vision_rate, "text": config.text_rate, "other": None}
    trainer = FineTuner(
        OhdObjective(model, loss_config(config), config.chunk_size, config.bf16),
        arguments,
        fingerprint,
        select,
        {tower: config.learning_rate if rate is None else rate for tower, rate in rates.items()},
        config.layer_decay,
        train_dataset=data,
        eval_dataset=data if select else None,  # the Trainer wants one; `select` has the rows
        data_collator=data.collate,
    )
    with arguments.main_process_first(desc="looking for checkpoints"):
        checkpoint = last_checkpoint(config.out, fingerprint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    scale.data = scale.data.view(())
    if trainer.is_world_process_zero():
        _write(config, settings, source, merge_lora(lora) if lora else model, curve(trainer.state.log_history))
    trainer.accelerator.wait_for_everyone()


def _write(
    config: FinetuneConfig, settings: dict[str, Any], source: "Encoder", model: Any, rows: list[dict[str, float]]
) -> None:
    from llava_ohd import tower
    from llava_ohd.clip.model_card import write_card

    write_json(config.out / "curve.json", rows)
    parents = [{"path": str(source.path), "digest": source.digest}]
    folder = config.out / "encoder"
    tower.write(model, folder, files_from=source.path, name=config.title, parents=parents, config=effective(settings))
    write_card(folder)


def _data(config: FinetuneConfig, source: Path) -> "tuple[OhdData, Callable[[CLIPModel], float] | None]":
    """Returns the training data, and what measures the dev accuracy of a model where there are dev rows."""
    from llava_ohd import tower
    from llava_ohd.clip.accuracy import accuracy, score
    from llava_ohd.clip.batching import OhdData, image_names
    from llava_ohd.clip.embedding import Images
    from llava_ohd.ohd_caps.readers import read_rows

    tokenizer, processor = tower.load_tokenizer(source), tower.load_processor(source)
    rows = read_rows(config.data)
    require_between(0, max(len(row.negatives) for row in rows), "negatives", config.negatives)
    pictures = Images(config.images, image_names(rows), processor)
    data = OhdData(rows, pictures, tokenizer, config.negatives, config.seed, config.chunk_size)
    if config.dev is None:
        return data, None
    dev = read_rows(config.dev)
    images = Images(config.images, image_names(dev), processor)
    return data, lambda model: accuracy(score(model, tokenizer, images, dev).cosines)


def _deepspeed(file: str) -> dict[str, Any]:
    """Returns DeepSpeed's settings, with what HF cannot fill in for two towers."""
    settings: dict[str, Any] = read_json(Path(file))
    zero = settings.get("zero_optimization", {})
    if zero.get("stage", 0) > 2:
        raise DataFormatError(
            f"--deepspeed {file} has ZeRO stage {zero['stage']}, which splits weights that the loss needs; at most "
            "2 is expected: give zero_configs/zero2.json"
        )
    if zero.get("reduce_bucket_size") == "auto":
        zero["reduce_bucket_size"] = 1024**2  # numbers; HF's rule, width², which it cannot apply to two towers
    return settings


def _arguments(config: FinetuneConfig) -> "TrainingArguments":
    on_gpu = has_gpu()
    if config.deepspeed:
        prepare_deepspeed(on_gpu)
    from transformers import TrainingArguments

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
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=2,  # the one before the last, should a kill spoil the last
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        report_to=config.report_to,
        ddp_find_unused_parameters=False,
        deepspeed=_deepspeed(config.deepspeed) if config.deepspeed else None,
        **(selection if config.dev else {}),
    )
