"""scripts/ladder.py on a world of twelve images, with models that trained for two steps on each of two encoders."""

import json
import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.train import train
from llava_ohd.results import read_results
from llava_ohd.stages import Stage, fingerprints
from llava_ohd.world.ladder_job import RUNGS, LadderConfig, find_rungs, ladder_stages, trainings
from llava_ohd.world.main_job import JobConfig, main_job
from tests.report.conftest import write_data

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _train(home: Path, encoder: str, language: Path) -> None:
    """Trains both stages for two steps."""
    common = f"--model_name_or_path {language} --vision_tower {encoder} --data_path {home}/rows.json --max_steps 2"
    common += f" --image_folder {home}/world/images --per_device_train_batch_size 4 --image_aspect_ratio pad"
    common += " --model_max_length 200 --save_strategy no --learning_rate 1e-2"
    first, second = (home / f"llava/llava-v1.5-{encoder}-{stage}" for stage in ("projector", "lora"))
    train(f"{common} --tune_mm_mlp_adapter True --output_dir {first}".split())
    lora = f"--lora_enable True --lora_r 4 --lora_alpha 8 --pretrain_mm_mlp_adapter {first}/mm_projector.bin"
    train(f"{common} {lora} --output_dir {second}".split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_dir: Path, tiny_llama_dir: Path) -> Path:
    """A home as the quickstart leaves it."""
    home = tmp_path_factory.mktemp("home")
    write_data(home / "world", images=12)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        said = [{"from": "human", "value": "<image>\nA ball?"}, {"from": "gpt", "value": "Yes" if number % 2 else "No"}]
        rows.append({"id": number, "image": f"test/{number:06d}.png", "conversations": said})
    (home / "rows.json").write_text(json.dumps(rows))
    clip = tower.load(tiny_encoder_dir)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clip.vision_model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random), alpha=0.1)
    tower.write(clip, home / "ours", files_from=tiny_encoder_dir, name="ours", parents=[], config={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_OHD_HOME", str(home))
        for name, place in (("openai", tiny_encoder_dir), ("ours", home / "ours")):
            tower.register(name, place)
            _train(home, name, tiny_llama_dir)
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVA_OHD_HOME", str(made))
    return made


def _ladder(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[str]:
    """Runs the command with its stages in this process; returns their names."""
    ran: list[str] = []

    def in_process(stages: Sequence[Stage], folder: Path) -> None:
        fingerprints(stages)
        for stage in stages:
            ran.append(stage.name)
            for _, *command in stage.commands:
                with monkeypatch.context() as patch:
                    patch.setattr(sys, "argv", command)
                    runpy.run_path(command[0], run_name="__main__")
            assert (stage.output / stage.proof).exists()

    monkeypatch.setattr("llava_ohd.stages.run_stages", in_process)
    short = ("--pope", "--max_new_tokens 2", "--chair", "--max_new_tokens 8", "--resamples", 50)
    monkeypatch.setattr(sys, "argv", ["ladder.py", *map(str, (*short, *arguments))])
    runpy.run_path(str(ROOT / "scripts/ladder.py"), run_name="__main__")
    return ran


def test_five_rungs_are_made_measured_and_compared(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "ladder"
    ran = _ladder(monkeypatch, "--out", out)
    assert ran == [
        *("pope-stock", "chair-stock", "make-swap", "pope-swap", "chair-swap", "make-refit", "pope-refit"),
        *("chair-refit", "make-stage1", "pope-stage1", "chair-stage1", "pope-both", "chair-both"),
    ]
    shown = capsys.readouterr().out
    assert (out / "table.md").read_text() in shown
    assert "swapped: llava-v1.5-refit-lora was trained on" in shown
    record = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in record["rungs"]] == list(RUNGS.values())
    digests = [row["encoder"]["digests"] for row in record["rungs"]]
    assert digests[0] == [tower.check(tower.resolve("openai")).digest]
    assert digests[1:] == 4 * [[tower.check(home / "ours").digest]]
    ways = [[model.get("swapped", {}).get("projector") for model in row["models"]] for row in record["rungs"]]
    assert [way[0] for way in ways] == [None, "kept", "re-fitted", "of stage projector", None]
    for row in record["rungs"]:
        stated = read_results(out / "eval" / row["rung"] / "pope/results.json")["metrics"]["f1_macro"]["value"]
        assert row["metrics"]["pope/f1_macro"]["value"]["value"] == pytest.approx(stated)
    trained = [row["cost"]["trained"] for row in record["rungs"]]
    lora = 2 * 4 * (4 * 2 * 32 + 3 * (32 + 64))
    assert trained == [0, 0, 0, 2112, 2112 + lora]
    assert all(row["cost"]["seconds"] > 0 for row in record["rungs"][2:])
    assert "<svg" in (out / "ladder.svg").read_text()
    stage1 = model_dir.read(out / "models/llava-v1.5-stage1-lora")
    assert stage1.swapped["source"]["digest"] == model_dir.read(tower.model_for("openai")).digest


def test_the_same_encoder_answers_as_the_stock_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = _ladder(monkeypatch, "--out", tmp_path, "--encoder", "openai", "--untrained", "True")
    assert not [name for name in ran if "stage1" in name or "both" in name]
    for evaluation in ("pope", "chair"):
        texts = []
        for rung in ("stock", "swap"):
            lines = (tmp_path / "eval" / rung / evaluation / "answers.jsonl").read_text().splitlines()
            texts.append([(row["question_id"], row["text"]) for row in map(json.loads, lines)])
        assert texts[0] == texts[1]
    record = json.loads((tmp_path / "results.json").read_text())
    assert all(metric["difference"]["value"] == 0 for metric in record["rungs"][1]["metrics"].values())


def test_models_that_differ_in_more_than_the_encoder_are_refused(home: Path, tmp_path: Path) -> None:
    altered = tmp_path / "llava-other-lora"
    shutil.copytree(tower.model_for("ours"), altered)
    record = json.loads((altered / "ohd.json").read_text())
    record["config"]["seed"] = 7
    (altered / "ohd.json").write_text(json.dumps(record))
    config = LadderConfig(model=altered)
    with pytest.raises(ModelFormatError, match="not trained alike: seed was 42, is 7"):
        find_rungs(config)
    assert find_rungs(replace(config, other_recipe=True))[1] == ["seed was 42, is 7"]
    start = home / "llava/llava-v1.5-openai-projector/mm_projector.bin"
    record["config"] |= {"seed": 42, "pretrain_mm_mlp_adapter": str(start)}
    (altered / "ohd.json").write_text(json.dumps(record))
    with pytest.raises(ModelFormatError, match="was trained again since"):
        find_rungs(config)
    record["config"]["pretrain_mm_mlp_adapter"] = str(tmp_path / "gone.bin")
    (altered / "ohd.json").write_text(json.dumps(record))
    with pytest.raises(ModelNotFound, match="give it as --projector"):
        find_rungs(config)


def test_another_model_makes_every_rung_anew(home: Path, tmp_path: Path) -> None:
    stock = tmp_path / "llava-stock-lora"
    shutil.copytree(tower.model_for("openai"), stock)
    config = LadderConfig(out=tmp_path / "out", stock_model=stock)
    rungs, _ = find_rungs(config)
    before = fingerprints(ladder_stages(config, rungs))
    assert before == fingerprints(ladder_stages(config, rungs))
    with (stock / "ohd.json").open("a") as file:
        file.write("\n")
    after = fingerprints(ladder_stages(config, rungs))
    assert {name for name in before if before[name] != after[name]} == before.keys() - {"pope-both", "chair-both"}


def test_the_worlds_models_are_trained_by_the_main_jobs_own_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder_dir: Path
) -> None:
    monkeypatch.setenv("LLAVA_OHD_HOME", str(tmp_path))
    config = LadderConfig()
    job = {stage.name: stage for stage in main_job(JobConfig(tmp_path.resolve()))}
    stages = trainings(config)
    assert [stage.name for stage in stages][-1] == "lora-ours"
    seen: set[str] = set()
    for stage in stages:  # those of the quickstart, whole, with all that they need
        assert stage == job[stage.name]
        assert seen.issuperset(stage.needs)
        seen.add(stage.name)
    with pytest.raises(ModelNotFound, match="no LLaVA is registered for 'openai'; give --stock_model"):
        trainings(LadderConfig(encoder="mine"))
    assert trainings(LadderConfig(stock_model=tmp_path, model=tmp_path)) == []
    for name in ("openai", "ours"):
        tower.register(name, tiny_encoder_dir, tmp_path)
    assert trainings(config) == []
