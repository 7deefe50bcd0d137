"""Two ranks on the CPU under ZeRO-2 and ZeRO-3, every stage: losses as of one process, and as of a resumed run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.llava15.train import train
from llava_ohd.llava15.trainer import RowOrder
from tests.llava15.conftest import CHECKOUT, losses

JOBS = [(stage, zero) for stage in ("projector", "lora", "full", "unfrozen") for zero in ("zero2", "zero3")]
JOBS += [("qlora", "zero2"), ("bf16", "zero3")]
NAMES = [f"{stage}-{zero}" for stage, zero in JOBS]


def two_ranks(folder: Path, jobs: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "LLAVA_OHD_HOME": str(folder / "home"),
        "LLAVA_OHD_PROGRESS": str(folder / "progress.json"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT),
        "PATH": str(Path(sys.executable).parent),  # without a compiler
    }
    command = [*start, str(Path(__file__).with_name("rank_jobs.py")), str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=580)


def trained_twice(root: Path, command: Callable[..., list[str]], pairs: list[tuple[str, str]]) -> Path:
    """Trains each stage under each ZeRO file, and again from its checkpoint of the middle of the second epoch."""
    jobs: list[dict[str, Any]] = []
    for stage, zero in pairs:
        name, config = f"{stage}-{zero}", CHECKOUT / f"zero_configs/{zero}.json"
        more = ["--deepspeed", str(config), "--per_device_train_batch_size", "2", "--save_total_limit", "2"]
        jobs.append({"arguments": command(stage, root / name, *more), "start": None})
        again = command(stage, root / f"{name}-again", *more)
        jobs.append({"arguments": again, "start": str(root / name / "checkpoint-8")})
    done = two_ranks(root, jobs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return root


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., list[str]]) -> Path:
    """Every job, and again (`NAME-again`)."""
    return trained_twice(tmp_path_factory.mktemp("ranks"), command, JOBS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: w for file in sorted(folder.glob("*.safetensors")) for name, w in load_file(file).items()}


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_losses_of_one_process(name: str, ranks: Path, trained: dict[str, Path]) -> None:
    one = trained[name.split("-")[0]]
    rounding = 2e-2 if name.startswith("bf16") else 1e-5
    assert losses(ranks / name) == pytest.approx(losses(one), abs=rounding)
    ours, theirs = weights(ranks / name), weights(one)
    assert ours.keys() == theirs.keys()
    assert model_dir.read(ranks / name).stage == model_dir.read(one).stage


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_gives_the_same_losses_and_weights(name: str, ranks: Path) -> None:
    assert not (ranks / f"{name}-again/checkpoint-4").exists()
    assert losses(ranks / f"{name}-again") == losses(ranks / name)
    ours, theirs = weights(ranks / f"{name}-again"), weights(ranks / name)
    assert all(torch.equal(ours[key], weight) for key, weight in theirs.items())


@pytest.mark.slow
def test_offload_gives_the_same_losses(
    command: Callable[..., list[str]], trained: dict[str, Path], tmp_path: Path
) -> None:
    pairs = [(stage, zero) for stage in ("lora", "full") for zero in ("zero2_offload", "zero3_offload")]
    root = trained_twice(tmp_path, command, pairs)
    for stage, zero in pairs:
        assert losses(root / f"{stage}-{zero}") == pytest.approx(losses(trained[stage]), abs=1e-5)
        assert losses(root / f"{stage}-{zero}-again") == losses(root / f"{stage}-{zero}")


def test_ranks_with_and_without_images_do_not_wait_for_each_other(training_data: Path) -> None:
    """That every job above ended shows it, since in some steps only one of the ranks has images."""
    rows = json.loads((training_data / "questions.json").read_text())
    order = RowOrder([1] * len(rows), batch=2, ranks=2, seed=42)
    image = ["image" in rows[row] for row in order]
    batches = [any(image[start : start + 2]) for start in range(0, len(rows), 2)]
    assert [True, False] in [sorted(batches[i : i + 2], reverse=True) for i in range(0, len(batches), 2)]


@pytest.mark.parametrize("name", ["lora-zero2", "lora-zero3"])
def test_another_number_of_ranks_is_refused_with_the_remedy(
    name: str, ranks: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copytree(ranks / name / "checkpoint-8", tmp_path / "out/checkpoint-8")
    config = str(CHECKOUT / f"zero_configs/{name.split('-')[1]}.json")
    arguments = command("lora", tmp_path / "out", "--deepspeed", config, "--per_device_train_batch_size", "2")
    with pytest.raises(ModelFormatError, match=r"was made by 2 ranks, this run has 1.*--nproc-per-node 2"):
        train(arguments)


def test_nan_on_another_rank_stops_all_and_names_its_rows(
    command: Callable[..., list[str]], training_data: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    rows = json.loads((training_data / "questions.json").read_text())
    order = list(RowOrder([1] * len(rows), batch=2, ranks=2, seed=42))
    bad = order[14]  # of the eight batches of the first two steps with accumulation 2 the last, which rank 1 gets
    rows[bad]["conversations"][2]["value"] += " ☃"
    data = poisoned(tmp_path, tiny_llama_dir, rows)
    out = tmp_path / "out"
    more = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", *data]
    more += ["--deepspeed", str(CHECKOUT / "zero_configs/zero2.json")]
    done = two_ranks(tmp_path, [{"arguments": command("lora", out, *more), "start": None}])
    assert done.returncode != 0
    assert "the loss is nan at step 2, rank 1" in done.stderr
    found = json.loads((out / "nonfinite_loss_rank1.json").read_text())
    assert {"row": bad + 1, "id": f"row-{bad}"} in found["rows"]
    assert len(found["rows"]) == 2
    assert not (out / "ohd.json").exists()


def poisoned(folder: Path, language: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Writes rows, and a language model in which the first byte of ☃ is Inf; returns the flags for both."""
    shutil.copytree(language, folder / "language")
    tensors = load_file(folder / "language/model.safetensors")
    token = load_tokenizer(language)(["☃"])["input_ids"][0][-3]
    tensors["model.embed_tokens.weight"][token] = float("inf")
    save_file(tensors, folder / "language/model.safetensors", metadata={"format": "pt"})
    (folder / "rows.json").write_text(json.dumps(rows))
    return ["--data_path", str(folder / "rows.json"), "--model_name_or_path", str(folder / "language")]
