"""Both stages end to end as users run them: two ranks on the CPU under ZeRO-2, no compiler, resumed and equal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.train import train

CHECKOUT = Path(__file__).parents[2]
KINDS = ("ball", "box", "cone", "cup")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images, captions and conversations about them; every sixth conversation is text only."""
    folder = tmp_path_factory.mktemp("llava_data")
    captions, questions = [], []
    for number in range(24):
        name, kind = f"{number:02d}.png", KINDS[number % 4]
        Image.new("RGB", (32 + number, 40), (10 * number, 80, 200)).save(folder / name)
        said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a red {kind}"}]
        captions.append({"id": number, "image": name, "conversations": said})
        asked = f"Is there a {kind} in the image?"
        row: dict[str, Any] = {"id": str(number)}
        if number % 6:
            row["image"], asked = name, f"<image>\n{asked}"
        texts = [asked, "Yes", "A key?", "No"]
        row["conversations"] = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]
        questions.append(row)
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


class Runs:
    """Starts scripts/finetune_llava.py with what all runs have in common."""

    def __init__(self, folder: Path, data: Path, encoder: Path, language: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._environment = os.environ | {
            "LLAVA_OHD_HOME": str(self.home),
            "LLAVA_OHD_PROGRESS": str(folder / "progress.json"),
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
            "OMP_NUM_THREADS": "1",
        }
        flags = {
            "model_name_or_path": language,
            "vision_tower": encoder,
            "image_folder": data,
            "image_aspect_ratio": "pad",
            "num_train_epochs": 2,
            "warmup_ratio": 0.1,
            "evaluation_strategy": "no",
            "lr_scheduler_type": "cosine",
            "save_steps": 4,
            "model_max_length": 200,
        }
        self._common = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        projector = f"--version plain --tune_mm_mlp_adapter True --learning_rate 1e-2 --data_path {data}/captions.json"
        lora = f"--lora_enable True --lora_r 4 --lora_alpha 8 --learning_rate 1e-2 --data_path {data}/questions.json"
        lora += f" --mm_projector_lr 1e-3 --group_by_modality_length True --pretrain_mm_mlp_adapter {folder}/projector"
        self._stage = {"projector": projector.split(), "lora": lora.split()}

    def arguments(self, stage: str, out: str) -> list[str]:
        return [*self._common, *self._stage[stage], "--output_dir", str(self.folder / out)]

    def __call__(self, stage: str, out: str, launcher: str) -> subprocess.CompletedProcess[str]:
        binary = Path(sys.executable).parent
        two = ["--deepspeed", str(CHECKOUT / "zero_configs/zero2.json"), "--per_device_train_batch_size", "2"]
        start, ranks = {
            "deepspeed": ([str(binary / "deepspeed"), "--num_gpus", "2", "--master_port", "29617"], two),
            "torchrun": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], two),
            "python": ([sys.executable], ["--per_device_train_batch_size", "4"]),
        }[launcher]
        script = str(CHECKOUT / "scripts/finetune_llava.py")
        command = [*start, script, *self.arguments(stage, out), *ranks]
        environment = dict(self._environment)
        if launcher != "python":  # a compiler could not be found
            environment["PATH"] = f"{binary}"
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=600)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "curve.json").read_text())]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_encoder_dir: Path, tiny_llama_dir: Path
) -> tuple[Runs, str, str]:
    """Stage projector by deepspeed, stage lora by torchrun, two ranks each; returns what they printed."""
    made = Runs(tmp_path_factory.mktemp("runs"), data, tiny_encoder_dir, tiny_llama_dir)
    printed = []
    for stage, launcher in (("projector", "deepspeed"), ("lora", "torchrun")):
        done = made(stage, stage, launcher)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout)
    return made, printed[0], printed[1]


def test_both_stages_write_what_they_trained(runs: tuple[Runs, str, str], tiny_encoder_dir: Path) -> None:
    made, first, second = runs
    assert "--evaluation_strategy: is --eval_strategy in transformers 5" in first
    assert "projector: 2,112 weights train" in first
    assert "language model: " in first
    assert "adapter: " in second
    assert "tower: 32,480 weights, frozen" in second
    projector, lora = model_dir.read(made.folder / "projector"), model_dir.read(made.folder / "lora")
    assert (projector.stage, lora.stage) == ("projector", "lora")
    assert lora.encoder["digest"] == tower.check(tiny_encoder_dir).digest
    for folder in (projector.path, lora.path):
        assert len(losses(folder)) == 12
        assert losses(folder)[-1] < losses(folder)[0]
        assert model_dir.read(folder / "checkpoint-8").stage  # every checkpoint is a whole model folder
    assert not (made.folder / "extensions").exists()  # nothing was compiled
    assert json.loads((made.folder / "progress.json").read_text())["done"] == 12
    registered = json.loads((made.home / "encoders.json").read_text())
    assert registered["tiny"]["model"] == str(lora.path)


def test_the_projector_starts_from_stage_projector_with_its_own_rate(runs: tuple[Runs, str, str]) -> None:
    made, _, _ = runs
    start = model_dir.read_projector(made.folder / "projector")
    end = load_file(made.folder / "lora/non_lora_trainables.safetensors")
    for name, weight in start.items():
        moved = (end[f"base_model.model.model.{name}"] - weight).abs().max().item()
        assert (
            0 < moved < 1.2e-2
        )  # at most the rate 1e-3 in each of 12 steps of Adam; with the other rate ten times that


def test_a_killed_run_goes_on_with_the_same_losses(runs: tuple[Runs, str, str]) -> None:
    made, _, _ = runs  # 6 steps an epoch: it goes on in the middle of the second
    for checkpoint in ("checkpoint-8", "checkpoint-12"):
        shutil.copytree(made.folder / "lora" / checkpoint, made.folder / "resumed" / checkpoint)
    torn = made.folder / "resumed/checkpoint-12/adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    done = made("lora", "resumed", "torchrun")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{made.folder}/resumed/checkpoint-12 is half-written: passed over" in done.stdout
    assert f"going on from {made.folder}/resumed/checkpoint-8" in done.stdout
    assert losses(made.folder / "resumed") == losses(made.folder / "lora")
    for name in ("adapter_model.safetensors", "non_lora_trainables.safetensors"):
        ours, theirs = load_file(made.folder / "resumed" / name), load_file(made.folder / "lora" / name)
        assert all(torch.equal(ours[key], weight) for key, weight in theirs.items())


def test_one_process_gives_the_same_losses(runs: tuple[Runs, str, str]) -> None:
    made, _, _ = runs
    done = made("projector", "single", "python")
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(made.folder / "single") == pytest.approx(losses(made.folder / "projector"), abs=1e-5)


@pytest.mark.parametrize("flag", ["learning_rate", "seed"])
def test_other_settings_do_not_go_on_in_the_same_folder(flag: str, runs: tuple[Runs, str, str]) -> None:
    made, _, _ = runs
    with pytest.raises(ModelFormatError, match=f"was made by another run: .*{flag} was "):
        train([*made.arguments("projector", "projector"), f"--{flag}", "5"])


def test_a_projector_of_another_encoder_is_refused(
    runs: tuple[Runs, str, str], tiny_encoder_dir: Path, tmp_path: Path
) -> None:
    made, _, _ = runs
    clip = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    tower.write(clip, tmp_path / "other", files_from=tiny_encoder_dir, name="other", parents=[], config={})
    arguments = [*made.arguments("lora", "other"), "--vision_tower", str(tmp_path / "other")]
    with pytest.raises(ModelFormatError, match="run stage projector for this encoder"):
        train(arguments)
