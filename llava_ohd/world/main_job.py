"""The whole method as stages: each is a command that a user could type, in the order in which the paper goes.

On the embedded world, or on a folder of photos: the commands are the same, only data and sizes differ.
"""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ohd.stages import PORT, Stage
from llava_ohd.world import MINI_CLIP, MINI_LLAMA

__all__ = ["ENCODERS", "JobConfig", "main_job", "on_photos", "photos_job", "register_all", "script"]

CHECKOUT = Path(__file__).resolve().parent.parent.parent
ZERO2 = CHECKOUT / "zero_configs/zero2.json"
REPORT_PAGE = CHECKOUT / "llava_ohd/report/page.html"
ENCODERS = ("openai", "ours")


@dataclass(frozen=True)
class JobConfig:
    """What the main job does, and how long it trains.

    Attributes:
        home: Everything lies below this folder; also the registry of encoders.
        seed: Of negative captions and of every training.
        loss: `paper` or `released`, see scripts/finetune_clip.py.
        stock: Encoder that the fine-tuning starts from, and that is compared with.
        language_model: Llama folder.
        encoder_steps: Optimiser steps of the encoder's fine-tuning, 64 images with 14 captions each.
        projector_steps: Optimiser steps of stage projector.
        lora_steps: Optimiser steps of stage lora.
    """

    home: Path
    seed: int = 0
    loss: str = "paper"
    stock: Path = MINI_CLIP
    language_model: Path = MINI_LLAMA
    encoder_steps: int = 240
    projector_steps: int = 180
    lora_steps: int = 120

    def shortened(self, share: float) -> "JobConfig":
        """Returns the same job with a share of its training steps (at least two each); for trial runs."""
        names = ("encoder_steps", "projector_steps", "lora_steps")
        return replace(self, **{name: max(2, round(share * getattr(self, name))) for name in names})


def _python(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, *map(str, arguments))


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """Returns the command that runs a file of the checkout."""
    return _python(CHECKOUT / name, *arguments)


def _deepspeed(name: str, *arguments: object) -> tuple[str, ...]:
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside if beside.is_file() else shutil.which("deepspeed") or "deepspeed")
    return (launcher, "--num_gpus", "2", "--master_port", PORT, str(CHECKOUT / name), *map(str, arguments))


def _data(job: JobConfig, *commands: tuple[str, ...], reads: tuple[Path, ...]) -> Stage:
    """Writes the data folder, and makes the stock encoder known as `openai`."""
    register = _python("-m", "llava_ohd.tower", "register", "openai", job.stock)
    return Stage(
        "data", "making the data", (*commands, register), job.home / "world", reads=reads, seconds=20, proof="pope"
    )


def _captions(job: JobConfig, splits: tuple[str, ...]) -> Stage:
    data = job.home / "world"
    commands = [
        script(
            "scripts/build_ohd_caps.py",
            *("--instances", data / f"annotations/instances_{split}.json"),
            *("--captions", data / f"annotations/captions_{split}.json"),
            *("--out", data / f"ohd_caps/{split}.jsonl", "--seed", job.seed),
        )
        for split in splits
    ]
    label = "building OHD-Caps: 27 negative captions per image"
    return Stage("captions", label, tuple(commands), data / "ohd_caps", ("data",), seconds=12, proof="train.jsonl")


def _encoder(job: JobConfig) -> Stage:
    data, out = job.home / "world", job.home / "clip"
    command = script(
        "scripts/finetune_clip.py",
        *("--encoder", "openai", "--data", data / "ohd_caps/train.jsonl", "--images", data / "images"),
        *("--out", out, "--name", "ours", "--loss", job.loss, "--learning_rate", 8e-4),
        *("--batch_size", 64, "--negatives", 13, "--max_steps", job.encoder_steps, "--seed", job.seed),
    )
    label = "fine-tuning the encoder on OHD-Caps"
    return Stage("encoder", label, (command,), out, ("captions",), seconds=120, proof="encoder/ohd.json")


def _source(encoder: str) -> tuple[str, ...]:
    """The stages that make an encoder."""
    return ("encoder",) if encoder == "ours" else ("data",)


def _ohd_caps(job: JobConfig, encoder: str, rows: Path) -> Stage:
    data, out = job.home / "world", job.home / "eval" / encoder / "ohd_caps"
    command = script(
        "eval/ohd_caps.py",
        *("--encoder", encoder, "--data", rows, "--images", data / "images", "--out", out, "--seed", job.seed),
    )
    label = f"caption accuracy of {encoder}"
    needs = ("captions", *_source(encoder))
    return Stage(f"ohd_caps-{encoder}", label, (command,), out, needs, seconds=12, proof="results.json")


def _zero_shot(job: JobConfig, encoder: str) -> Stage:
    data, out = job.home / "world", job.home / "eval" / encoder / "zero_shot"
    command = script(
        "eval/zero_shot.py",
        *("--encoder", encoder, "--instances", data / "annotations/instances_zero_shot.json"),
        *("--images", data / "images", "--out", out),
    )
    label = f"zero-shot object recognition of {encoder}"
    needs = ("data", *_source(encoder))
    return Stage(f"zero_shot-{encoder}", label, (command,), out, needs, seconds=6, proof="results.json")


def _model(job: JobConfig, encoder: str, stage: str) -> Path:
    # LLaVA's own loader decides by the words "llava" and "lora" in the folder's name
    return job.home / "llava" / f"llava-v1.5-mini-{encoder}-{stage}"


def _projector(job: JobConfig, encoder: str) -> Stage:
    data, out = job.home / "world", _model(job, encoder, "projector")
    command = _deepspeed(
        "scripts/finetune_llava.py",
        *("--deepspeed", ZERO2),
        # LLaVA's own stage 1 takes captions in the form "plain", which this small language model has never read
        *("--model_name_or_path", job.language_model, "--version", "v1", "--vision_tower", encoder),
        *("--data_path", data / "llava/instruct.json", "--image_folder", data / "images"),
        *("--tune_mm_mlp_adapter", "True", "--output_dir", out, "--max_steps", job.projector_steps),
        *("--per_device_train_batch_size", 32, "--learning_rate", 3e-3, "--warmup_ratio", 0.03),
        *("--lr_scheduler_type", "cosine", "--train_sampling_strategy", "group_by_length"),
        *("--save_steps", 50, "--seed", job.seed),
    )
    label = f"LLaVA on {encoder}, stage projector (ZeRO-2, 2 ranks)"
    needs = ("data", *_source(encoder))
    return Stage(f"projector-{encoder}", label, (command,), out, needs, (ZERO2,), 80, threads=1, proof="ohd.json")


def _lora(job: JobConfig, encoder: str) -> Stage:
    data, out = job.home / "world", _model(job, encoder, "lora")
    command = _deepspeed(
        "scripts/finetune_llava.py",
        *("--deepspeed", ZERO2),
        *("--model_name_or_path", job.language_model, "--version", "v1", "--vision_tower", encoder),
        *("--data_path", data / "llava/instruct.json", "--image_folder", data / "images"),
        *("--pretrain_mm_mlp_adapter", _model(job, encoder, "projector") / "mm_projector.bin"),
        *("--lora_enable", "True", "--lora_r", 32, "--lora_alpha", 64, "--lora_dropout", 0, "--output_dir", out),
        *("--max_steps", job.lora_steps, "--per_device_train_batch_size", 32, "--learning_rate", 1e-3),
        *("--mm_projector_lr", 1e-3, "--warmup_ratio", 0.03, "--lr_scheduler_type", "cosine"),
        *("--train_sampling_strategy", "group_by_length", "--save_steps", 50, "--seed", job.seed),
    )
    label = f"LLaVA on {encoder}, stage lora (ZeRO-2, 2 ranks)"
    needs = (f"projector-{encoder}",)
    return Stage(f"lora-{encoder}", label, (command,), out, needs, (ZERO2,), 85, threads=1, proof="ohd.json")


def _answers(job: JobConfig, encoder: str, evaluation: str, *arguments: object, root: str = "eval") -> Stage:
    """Lets the LLaVA on an encoder answer, and scores it; `root` tells apart several sets of one evaluation."""
    out = job.home / root / encoder / evaluation
    command = script(f"eval/{evaluation}.py", "--encoder", encoder, *arguments, "--out", out)
    label = f"{evaluation.upper()} of LLaVA on {encoder}"
    name = evaluation if root == "eval" else f"{evaluation}-{root}"
    return Stage(f"{name}-{encoder}", label, (command,), out, (f"lora-{encoder}",), seconds=8, proof="results.json")


def _report(job: JobConfig, evaluations: tuple[str, ...], *arguments: object, root: str = "eval") -> Stage:
    out = job.home / ("report" if root == "eval" else f"report-{root}")
    curves = [f"encoder/ours={job.home / 'clip/curve.json'}"]
    curves += [f"{s}/{e}={_model(job, e, s) / 'curve.json'}" for s in ("projector", "lora") for e in ENCODERS]
    command = script(
        "scripts/compare.py",
        *("--ours", job.home / root / "ours", "--stock", job.home / root / "openai", "--data", job.home / "world"),
        *("--curves", *curves, "--commands", job.home / "commands.txt", "--out", out, *arguments),
    )
    needs = tuple(f"{evaluation}-{encoder}" for evaluation in evaluations for encoder in ENCODERS)
    label = "comparing, with intervals and significance"
    return Stage(out.name, label, (command,), out, needs, (REPORT_PAGE,), seconds=4, proof="report.html")


def main_job(job: JobConfig) -> list[Stage]:
    """Returns the stages of the main job on the embedded world."""
    rows = job.home / "world/ohd_caps/test.jsonl"
    stages = [
        _data(
            job, script("scripts/build_world.py", "--data", job.home / "world"), reads=(job.stock, job.language_model)
        ),
        _captions(job, ("train", "test")),
        _encoder(job),
        *(_ohd_caps(job, encoder, rows) for encoder in ENCODERS),
        *(_zero_shot(job, encoder) for encoder in ENCODERS),
    ]
    for encoder in ENCODERS:
        stages += [_projector(job, encoder), _lora(job, encoder)]
        stages += [_answers(job, encoder, evaluation) for evaluation in ("pope", "chair")]
    return [*stages, _report(job, ("ohd_caps", "zero_shot", "pope", "chair"))]


def register_all(job: JobConfig) -> None:
    """Makes both encoders and their models known again, where the register says something else after a finished job."""
    from llava_ohd import tower

    for name, place in (("openai", job.stock), ("ours", job.home / "clip/encoder")):
        model = _model(job, name, "lora")
        row = tower.registered().get(name, {})
        if (row.get("path"), row.get("model")) != (str(place.resolve()), str(model.resolve())):
            tower.register(name, place, model)


def on_photos(job: JobConfig) -> JobConfig:
    """Returns the job with the models that the first stage on photos trains, and a quarter of the steps.

    Steps on photographs cost more, and a thousand of them teach little in any number of steps.
    """
    models = job.home / "world/models"
    return replace(job, stock=models / "clip", language_model=models / "llama").shortened(0.25)


def photos_job(job: JobConfig, photos: Path, tokenizers: Path) -> list[Stage]:
    """Returns the same stages on a folder of photos, with the real tokenizers and models trained on these photos.

    Args:
        job: `on_photos`.
        photos: Layout as in `llava_ohd.world.photos`.
        tokenizers: Folder of the real tokenizers.
    """
    data, models = job.home / "world", job.home / "world/models"
    build = script(
        "scripts/build_photos.py",
        *("--photos", photos.resolve(), "--tokenizers", tokenizers.resolve()),
        *("--data", data, "--models", models, "--seed", job.seed),
    )
    rows = data / "ohd_caps_real/test.jsonl"
    sets = {"coco128": "eval", "aokvqa": "aokvqa"}
    stages = [_data(job, build, reads=(photos, tokenizers)), _captions(job, ("train",)), _encoder(job)]
    stages += [_ohd_caps(job, encoder, rows) for encoder in ENCODERS]
    for encoder in ENCODERS:
        stages += [_projector(job, encoder), _lora(job, encoder)]
        for name, root in sets.items():
            questions = ("--set", data / "pope" / name, "--images", data / "images")
            stages.append(_answers(job, encoder, "pope", *questions, root=root))
    stages.append(_report(job, ("ohd_caps", "pope"), "--questions", data / "pope/coco128"))
    aokvqa = ("--questions", data / "pope/aokvqa")
    return [*stages, _report(job, ("pope-aokvqa",), *aokvqa, root="aokvqa")]
