"""What the tests of training share: data, flags, and runs in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

KINDS = ("ball", "box", "cone", "cup")
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images, captions and conversations about them; every third conversation is text only."""
    folder = tmp_path_factory.mktemp("llava_data")
    captions, questions = [], []
    for number in range(24):
        name, kind = f"{number:02d}.png", KINDS[number % 4]
        Image.new("RGB", (32 + number, 40), (10 * number, 80, 200)).save(folder / name)
        said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a red {kind}"}]
        captions.append({"id": number, "image": name, "conversations": said})
        asked = f"Is there a {kind} in the image?"
        row: dict[str, Any] = {"id": f"row-{number}"}
        if number % 3:
            row["image"], asked = name, f"<image>\n{asked}"
        texts = [asked, "Yes", "A key?", "No"]
        row["conversations"] = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]
        questions.append(row)
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


_LORA = "--lora_enable True --lora_r 4 --lora_alpha 8 --lora_dropout 0 --learning_rate 1e-2 --mm_projector_lr 1e-3"
_RANDOM = "--pretrain_mm_mlp_adapter random"
STAGES = {
    "projector": "--version plain --tune_mm_mlp_adapter True --learning_rate 1e-2",
    "lora": f"{_LORA} {_RANDOM}",
    "qlora": f"{_LORA} {_RANDOM} --bits 4",
    "bf16": f"{_LORA} {_RANDOM} --bf16 True",
    "full": f"--learning_rate 1e-3 {_RANDOM}",
    "unfrozen": f"--learning_rate 1e-3 {_RANDOM} --unfreeze_mm_vision_tower True --mm_vision_tower_lr 1e-4",
}
"""Flags of each stage; "unfrozen" is full with the tower, "bf16" lora in that type."""


@pytest.fixture(scope="session")
def command(training_data: Path, tiny_encoder_dir: Path, tiny_llama_dir: Path) -> Callable[..., list[str]]:
    """Gives the flags of a run of a stage: 2 epochs of 24 rows, four a step, a checkpoint every four steps."""

    def command(stage: str, out: Path, *more: str) -> list[str]:
        rows = "captions" if stage == "projector" else "questions"
        flags: dict[str, Any] = {
            "model_name_or_path": tiny_llama_dir,
            "vision_tower": tiny_encoder_dir,
            "data_path": training_data / f"{rows}.json",
            "image_folder": training_data,
            "image_aspect_ratio": "pad",
            "num_train_epochs": 2,
            "warmup_ratio": 0.1,
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 4,
            "save_steps": 4,
            "model_max_length": 200,
            "output_dir": out,
        }
        return [part for name, value in flags.items() for part in (f"--{name}", str(value))] + [
            *STAGES[stage].split(),
            *more,
        ]

    return command


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "curve.json").read_text())]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., list[str]]) -> dict[str, Path]:
    """The folder of every stage, trained by one process."""
    from llava_ohd.llava15.train import train

    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_OHD_HOME", str(root / "home"))
        for stage in STAGES:
            train(command(stage, root / stage))
    return {stage: root / stage for stage in STAGES}
