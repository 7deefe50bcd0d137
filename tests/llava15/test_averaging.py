"""Over what two ranks average their losses, with and without `--average_tokens_across_devices`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd.llava15.arguments import parse
from llava_ohd.llava15.averaging import averaging
from llava_ohd.llava15.flags import prepare, translate
from llava_ohd.llava15.model_dir import read_projector
from llava_ohd.llava15.train import train
from llava_ohd.llava15.trainer import RowOrder
from tests.llava15.conftest import CHECKOUT, losses

RECIPES = sorted((CHECKOUT / "scripts/recipes").glob("*.yaml"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Four captions of unlike length."""
    found = []
    for number, words in enumerate((1, 3, 9, 20)):
        Image.new("RGB", (32, 32), (60 * number, 80, 200)).save(folder / f"{number}.png")
        said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " ".join(["a red ball"] * words)}]
        found.append({"id": number, "image": f"{number}.png", "conversations": said})
    return found


def command(folder: Path, name: str, batch: int, encoder: Path, language: Path, *more: str) -> list[str]:
    """One step of plain gradient descent, so that weights are linear in the gradient."""
    flags: dict[str, Any] = {"model_name_or_path": language, "vision_tower": encoder, "image_folder": folder}
    flags |= {"data_path": folder / f"{name}.json", "version": "plain", "tune_mm_mlp_adapter": True}
    flags |= {"output_dir": folder / "out" / ("-".join([name, *more]).replace("--", "")), "max_steps": 1}
    flags |= {"per_device_train_batch_size": batch, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    flags |= {"optim": "sgd", "max_grad_norm": 0, "save_strategy": "no", "model_max_length": 200}
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))] + list(more)


def test_ranks_average_as_the_flag_says(tmp_path: Path, tiny_encoder_dir: Path, tiny_llama_dir: Path) -> None:
    models = (tiny_encoder_dir, tiny_llama_dir)
    all_rows = rows(tmp_path)
    order = list(RowOrder([1] * 4, batch=2, ranks=2, seed=42))
    parts = {"all": all_rows, "first": [all_rows[i] for i in order[:2]], "second": [all_rows[i] for i in order[2:]]}
    for name, some in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(some))
        train(command(tmp_path, name, len(some), *models))
    ways = (("--average_tokens_across_devices", "False"), ("--average_tokens_across_devices", "True"))
    jobs = [{"arguments": command(tmp_path, "all", 2, *models, *way), "start": None} for way in ways]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(CHECKOUT / "tests/llava15/rank_jobs.py"), str(tmp_path / "jobs.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss: mean over 2 ranks of the mean over their trained tokens, as LLaVA" in done.stdout

    def weights(name: str) -> dict[str, torch.Tensor]:
        return read_projector(tmp_path / "out" / name)

    def loss(name: str) -> float:
        return losses(tmp_path / "out" / name)[0]

    apart, together = (f"all-average_tokens_across_devices-{value}" for value in ("False", "True"))
    assert loss(together) == pytest.approx(loss("all"), rel=1e-5)
    assert loss(apart) == pytest.approx((loss("first") + loss("second")) / 2, rel=1e-5)
    assert abs(loss(apart) - loss(together)) > 2e-4  # else the test could not tell them apart
    for name, weight in weights(apart).items():
        middle = (weights("first")[name] + weights("second")[name]) / 2
        assert torch.allclose(weight, middle, rtol=0, atol=1e-6)
        assert torch.allclose(weights(together)[name], weights("all")[name], rtol=0, atol=1e-6)
    moved = (weights(apart)["mm_projector.2.weight"] - weights(together)["mm_projector.2.weight"]).abs().max()
    assert float(moved) > 1e-5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_average_as_llava(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    flags, _ = translate(prepare([str(recipe)])[0], cuda=False)
    for dropped in ("--bf16", "--deepspeed"):
        place = flags.index(dropped)
        del flags[place : place + 2]
    training = parse(flags, "")[2]
    assert (training.average_tokens_across_devices, training.optim) == (False, "adamw_torch")
    assert training.gradient_accumulation_steps == 1  # with which that is LLaVA's way


@pytest.mark.parametrize(
    ("ranks", "batches", "across", "said"),
    [
        (1, 1, True, "as LLaVA"),
        (1, 4, True, "LLaVA on 4.37 takes the mean of the means"),
        (8, 1, True, "--average_tokens_across_devices False takes the ranks' own"),
        (8, 1, False, "as LLaVA on transformers 4.37"),
        (8, 2, False, "of 2 accumulated batches together; LLaVA"),
    ],
)
def test_one_line_says_how_a_run_averages(ranks: int, batches: int, across: bool, said: str) -> None:
    training = SimpleNamespace(
        world_size=ranks, gradient_accumulation_steps=batches, average_tokens_across_devices=across
    )
    assert said in averaging(training)
