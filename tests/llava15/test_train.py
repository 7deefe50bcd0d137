"""Both stages of LLaVA-1.5 as users run them: by three launchers, two ranks on the CPU, no compiler, resumed, equal."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.train import train
from tests.llava15.conftest import CHECKOUT, losses

SCRIPT = str(CHECKOUT / "scripts/finetune_llava.py")


class Runs:
    """Starts scripts/finetune_llava.py on two ranks under ZeRO-2, as users do."""

    def __init__(self, folder: Path, command: Callable[..., list[str]]) -> None:
        self.folder, self.home, self._command = folder, folder / "home", command
        self.environment = os.environ | {
            "LLAVA_OHD_HOME": str(self.home),
            "LLAVA_OHD_PROGRESS": str(folder / "progress.json"),
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
            "OMP_NUM_THREADS": "1",
            "PATH": str(Path(sys.executable).parent),  # a compiler could not be found
        }

    def arguments(self, stage: str, out: str) -> list[str]:
        more = ["--evaluation_strategy", "no", "--per_device_train_batch_size", "2"]
        if stage == "lora":
            more += ["--pretrain_mm_mlp_adapter", str(self.folder / "projector"), "--lora_dropout", "0.05"]
            more += ["--group_by_modality_length", "True"]
        return self._command(stage, self.folder / out, *more)

    def __call__(self, stage: str, out: str, launcher: str) -> subprocess.CompletedProcess[str]:
        binary = Path(sys.executable).parent
        start = {
            "deepspeed": [str(binary / "deepspeed"), "--num_gpus", "2", "--master_port", "29617"],
            "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
            "accelerate": [str(binary / "accelerate"), *ACCELERATE],
        }[launcher]
        zero = ["--deepspeed", str(CHECKOUT / "zero_configs/zero2.json")]
        command = [*start, SCRIPT, *self.arguments(stage, out), *zero]
        environment = self.environment
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=600)


ACCELERATE = ["launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
ACCELERATE += ["--dynamo_backend=no"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., list[str]]) -> tuple[Runs, str, str]:
    """Stage projector by deepspeed, stage lora by accelerate launch, two ranks each; returns what they printed."""
    made = Runs(tmp_path_factory.mktemp("runs"), command)
    printed = []
    for stage, launcher in (("projector", "deepspeed"), ("lora", "accelerate")):
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


@pytest.mark.slow
def test_the_slurm_file_trains(runs: tuple[Runs, str, str], tmp_path: Path) -> None:
    """With stand-ins for `srun`, which would start the line on every node, and `scontrol`, which names the nodes."""
    made, _, _ = runs
    for name, line in (("srun", 'exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "9641", "NNODES": "1", "GPUS_ON_NODE": "2", "CPUS_PER_TASK": "2", "JOB_NODELIST": "node1"}
    environment = made.environment | {f"SLURM_{name}": value for name, value in job.items()}
    environment["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment.pop("OMP_NUM_THREADS")
    zero = ["--deepspeed", "zero_configs/zero2.json"]
    command = ["bash", "scripts/finetune_llava.sbatch", *made.arguments("projector", "slurm"), *zero]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CHECKOUT, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(made.folder / "slurm") == losses(made.folder / "projector")
