"""Fine-tunes an encoder on OHD-Caps: from an encoder folder to an encoder folder.

Source: arXiv 2410.03176, section 5 "Training Details"; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/run.sh.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ohd.clip.config import FinetuneConfig, loss_config
from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound
from llava_ohd.files import read_json, sha256_file, sha256_json, storage_errors, write_json
from llava_ohd.results import differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import CLIPModel, TrainingArguments

    from llava_ohd.clip.batching import OhdData
    from llava_ohd.tower import Encoder

__all__ = ["FinetuneConfig", "finetune"]


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
    objective = OhdObjective(model.train(), loss_config(config))
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
