"""Trains a stage of LLaVA-1.5: from a language model and an encoder to a model folder.

stage projector   --tune_mm_mlp_adapter True        captions, template plain; the projector trains
stage lora        --lora_enable True                instructions, template v1; adapters on the language model train too
stage qlora       --lora_enable True --bits 4       the same on a language model in 4 or 8 bits
stage full        neither                           instructions, template v1; the language model itself trains

One process, or one per GPU (deepspeed, torchrun); without GPU the ranks talk by gloo and nothing is compiled.

Source: haotian-liu/LLaVA train/train.py @ c121f04; arXiv 2310.03744.
"""

import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llava_ohd.errors import LlavaOhdError
from llava_ohd.files import locked, sha256_file, sha256_json, storage_errors, write_json
from llava_ohd.llava15.flags import check_paths, prepare, translate
from llava_ohd.llava15.run_record import (
    identity,
    llava_config,
    name_note,
    projector_sha256,
    refuse_other_run,
    with_projector,
)
from llava_ohd.training.launch import has_gpu, prepare_deepspeed, quiet, said_once
from llava_ohd.training.trackers import check_trackers

if TYPE_CHECKING:
    import torch

    from llava_ohd.llava15.arguments import DataArguments, ModelArguments, TrainingArguments
    from llava_ohd.llava15.trainer import LlavaTrainer
    from llava_ohd.tower import Encoder

__all__ = ["train"]


def train(arguments: list[str], description: str = "") -> Path | None:
    """Trains one stage and writes its model folder; all stages but the first register it for its encoder.

    Goes on from the last whole checkpoint of the same run; does nothing but register where the folder is finished.

    Args:
        arguments: Command line without the program: flags of LLaVA's train.py.
        description: What `--help` says first.

    Returns:
        The model folder on rank 0, None on the others.

    Raises:
        LlavaOhdError: any of its kinds; the message says what mends it.
    """
    with said_once():
        arguments, prepared = prepare(arguments)
        check_paths(arguments)
        cuda = has_gpu()
        arguments, notes = translate(arguments, cuda)
        prepare_deepspeed(cuda)
        quiet()
        from llava_ohd.llava15.arguments import parse

        parsed = parse(arguments, description)
        check_trackers(parsed[2].report_to or [])
        run = Run(*parsed)
        for note in [*prepared, *notes]:
            run.say(note)
        run.go()
        return run.folder if run.first else None


class Run:
    """One run of one stage.

    Args:
        model: Parsed flags.
        data: Parsed flags.
        training: Parsed flags.
    """

    def __init__(self, model: "ModelArguments", data: "DataArguments", training: "TrainingArguments") -> None:
        from llava_ohd import tower
        from llava_ohd.llava15.model import language_model_folder, without_zero3

        self.model, self.data, self.training = with_projector(model, training.stage), data, training
        self.folder = Path(str(training.output_dir)).resolve()
        self.first = training.process_index == 0
        self.base = language_model_folder(model.model_name_or_path)
        with without_zero3():
            self.encoder: Encoder = tower.check(tower.resolve(model.vision_tower))
        self.record = self._record()
        self.fingerprint = sha256_json(identity(self.record))

    def say(self, line: str) -> None:
        """Prints on rank 0."""
        if self.first:
            print(line, flush=True)

    def go(self) -> None:
        """Trains and writes, unless that is done already."""
        with locked(self.folder / "train", wait=False) if self.first else nullcontext():
            self._go()
        if self.first and self.training.stage != "projector":
            from llava_ohd.llava15.registration import register_model

            self.say(register_model(self.folder, self.model.vision_tower, self.encoder, self.training.register))
        if note := name_note(self.folder, self.training.stage):
            self.say(note)

    def _go(self) -> None:
        from llava_ohd.llava15.model_dir import read

        refuse_other_run(self.folder, self.record, self.training.world_size)
        if (self.folder / "ohd.json").is_file():
            read(self.folder)
            self.say(f"{self.folder} is finished already")
        else:
            if self.training.deepspeed and "RANK" not in os.environ:
                raise LlavaOhdError(
                    "--deepspeed needs a launcher: `deepspeed --num_gpus 1 scripts/finetune_llava.py`, or torchrun"
                )
            trainer = self._trainer()
            self._train(trainer)

    def _record(self) -> dict[str, Any]:
        """Returns what ohd.json says of the run: everything that its weights depend on."""
        from llava_ohd.llava15.arguments import flags
        from llava_ohd.llava15.model_dir import base_sha256

        config = flags(self.model, self.data, self.training)
        config["data_sha256"] = sha256_file(self.data.data_path)
        start = self.model.pretrain_mm_mlp_adapter
        if start is not None:
            layer = self.model.mm_vision_select_layer
            config["pretrain_mm_mlp_adapter_sha256"] = projector_sha256(Path(start), self.encoder, layer)
        return {
            "stage": self.training.stage,
            "encoder": {"path": str(self.encoder.path), "digest": self.encoder.digest, "name": self.encoder.name},
            "base": {"path": str(self.base), "sha256": base_sha256(self.base)},
            "config": config,
        }

    def _trainer(self) -> "LlavaTrainer":
        from llava_ohd import tower
        from llava_ohd.llava15.audit import audit
        from llava_ohd.llava15.averaging import averaging
        from llava_ohd.llava15.data_policy import left_out
        from llava_ohd.llava15.dataset import Batches, Pixels, TrainingRows, distinct_images, read_rows
        from llava_ohd.llava15.examination import Checks
        from llava_ohd.llava15.model import image_tokens
        from llava_ohd.llava15.tokenizer import load_tokenizer
        from llava_ohd.llava15.trainer import LlavaTrainer

        patches, places = image_tokens(self.encoder), (self.data.data_path, self.data.image_folder)
        checks = Checks(*places, self.model.version, self.base, patches, self.training.model_max_length)
        skipped = left_out(checks, self.data.data_policy, self.data.data_manifest, self.folder, self.say)
        rows = read_rows(self.data.data_path, self.model.version, skipped)
        processor = tower.load_processor(self.encoder.path)
        pad = self.data.image_aspect_ratio == "pad"
        pixels: Any = Pixels(self.data.image_folder, processor, pad, distinct_images(rows))
        tokenizer, collator = load_tokenizer(self.base), cast("Any", Batches(patches, self.encoder.image_size))
        examples = TrainingRows(self.model.version, tokenizer, pixels, patches, self.training.model_max_length)
        dataset = examples.dataset(rows)
        for line in (*audit(examples, rows, self.training.stage), averaging(self.training)):
            self.say(line)
        model = self._model()  # minutes for a large one: after all that may be wrong with the data
        if self.training.feature_cache:
            from llava_ohd.llava15.feature_cache import cached

            settings = (self.data.image_aspect_ratio, self.training, self.encoder)
            pixels, collator = cached(pixels, collator, chain.from_iterable(rows["images"]), model, *settings)
            dataset = rows.with_transform(replace(examples, pixels=pixels))
        return LlavaTrainer(
            model=model,
            args=self.training,
            train_dataset=dataset,
            data_collator=collator,
            write=self._write,
            fingerprint=self.fingerprint,
            ids=self._ids,
            lengths=rows["words"][:],
        )

    def _model(self) -> Any:
        import torch

        from llava_ohd.llava15.model import build
        from llava_ohd.llava15.model_dir import load_projector, read_projector
        from llava_ohd.llava15.packed_step import packed
        from llava_ohd.llava15.quantization import Quantization
        from llava_ohd.llava15.stages import trainable, what_trains

        if self.training.deepspeed and not torch.cuda.is_available():
            import deepspeed

            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        flags = self.training
        quantization = None
        if flags.bits != 16:
            quantization = Quantization(flags.bits, flags.quant_type, flags.double_quant)
        model: Any = build(
            self.base,
            self.encoder,
            feature_layer=self.model.mm_vision_select_layer,
            dtype=torch.bfloat16 if flags.bf16 else torch.float32,
            seed=flags.seed,
            quantization=quantization,
            attention=flags.attn_implementation,
        )
        if self.model.pretrain_mm_mlp_adapter is not None:
            start = Path(self.model.pretrain_mm_mlp_adapter)
            load_projector(model, read_projector(start), start)
        lora: dict[str, Any] = {"r": flags.lora_r, "lora_alpha": flags.lora_alpha}
        lora |= {"lora_dropout": flags.lora_dropout, "bias": flags.lora_bias}
        unfrozen = {"tower": self.model.unfreeze_mm_vision_tower, "projector": not flags.freeze_mm_mlp_adapter}
        model = trainable(packed(model), flags.stage, lora, flags.seed, **unfrozen, float32=not flags.deepspeed)
        self.say(f"stage {flags.stage}")
        for line in what_trains(model):
            self.say(line)
        return model

    def _train(self, trainer: "LlavaTrainer") -> None:
        from llava_ohd.llava15.trainer import curve, last_checkpoint

        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"nonfinite_loss_rank{self.training.process_index}.json").unlink(missing_ok=True)
        checkpoint = last_checkpoint(self.folder, self.fingerprint, self.say)
        if checkpoint is not None:
            self.say(f"going on from {checkpoint}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.first:
            write_json(self.folder / "curve.json", curve(trainer.state.log_history))
        trainer.save_state()
        trainer.save_model()

    def _write(self, folder: Path, weights: "dict[str, torch.Tensor]") -> None:
        from llava_ohd.llava15.model import without_zero3
        from llava_ohd.llava15.model_dir import write

        with without_zero3():  # a trained tower is put into an encoder here, on one rank alone
            write(folder, weights, self.record, llava_config(self.base, self.encoder, self.record["config"]))

    def _ids(self, numbers: list[int]) -> list[Any]:
        from llava_ohd.llava15.row_files import records

        found = {number: row.get("id") for number, row in records(self.data.data_path) if number in numbers}
        return [found[number] for number in numbers]
