"""benchmarks/llava_train.py at toy size: all ways compute the same, a wrong way is refused, the result is whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd.errors import StageFailed
from llava_ohd.llava15 import mixture, speed
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.llava15.ways import GEOMETRIES, OURS, TRANSFORMERS, Stage, Way, batches

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llava_train.py"
PATCHES = GEOMETRIES["tiny"].image_tokens


def rows_of(stage: str) -> list[list[mixture.Row]]:
    return batches(mixture.draw(stage, 64, PATCHES), 4, 3)


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_the_ways_agree_and_ours_needs_less(stage: str) -> None:
    rows = rows_of(stage)
    made = Stage("tiny", stage, rows)
    for number in range(3):
        equality = speed.check_equal(made, [TRANSFORMERS, OURS], number)
        assert equality.loss["ours"] < 1e-6
        assert equality.gradients["ours"] < 1e-5
        assert equality.flops["ours"] < equality.flops["transformers"]


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_flops_by_hand_are_those_that_are_counted(stage: str) -> None:
    """The counter takes causal attention for whole."""
    rows = rows_of(stage)[:1]
    flops = speed.check_equal(Stage("tiny", stage, rows), [TRANSFORMERS, OURS], 0).flops
    plain = speed.needed_flops(GEOMETRIES["tiny"], stage, rows[0], padded=True)
    assert plain == pytest.approx(flops["transformers"], rel=0.06)
    floor = speed.needed_flops(GEOMETRIES["tiny"], stage, rows[0])
    half = GEOMETRIES["tiny"].layers * 7 * GEOMETRIES["tiny"].width * sum(len(ids) ** 2 for ids, _ in rows[0])
    assert flops["ours"] == pytest.approx(floor + half, rel=0.03)


def test_a_way_that_computes_something_else_is_refused() -> None:
    def wrong(stage: Stage, batch: dict[str, Any]) -> torch.Tensor:
        return OURS.loss(stage, batch | {"labels": batch["labels"].where(batch["labels"] != 50, IGNORE)})

    with pytest.raises(StageFailed, match="differ in loss"):
        speed.check_equal(Stage("tiny", "lora", rows_of("lora")), [TRANSFORMERS, Way("wrong", OURS.batch, wrong)], 0)


def test_rows_are_in_the_pattern_of_llava() -> None:
    rows = mixture.draw("lora", 2000, 576)
    assert rows == mixture.draw("lora", 2000, 576)
    assert rows != mixture.draw("lora", 2000, 576, seed=1)
    text = [ids for ids, _ in rows if IMAGE_TOKEN not in ids]
    assert 0.045 < len(text) / len(rows) < 0.075  # 40 of 664
    assert max(len(ids) for ids, _ in rows) <= 2048
    for ids, labels in rows:
        assert ids.count(IMAGE_TOKEN) in (0, 576)
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
        assert labels[-1] != IGNORE or len(ids) == 2048
    groups = batches(rows, 8, 4)
    assert [{IMAGE_TOKEN in ids for ids, _ in group} for group in groups] == [{True}, {True}, {True}, {False}]


def test_a_real_json(tiny_llama_dir: Path, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nA ball?"}, {"from": "gpt", "value": "Yes"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": 1, "image": "1.png", "conversations": said}] * 3))
    rows = mixture.read(tmp_path / "rows.json", "lora", 5, load_tokenizer(tiny_llama_dir), PATCHES)
    assert [ids.count(IMAGE_TOKEN) for ids, _ in rows] == [PATCHES] * 3


def test_the_command(tmp_path: Path) -> None:
    stage = "lora"
    command = f"--geometry tiny --stage {stage} --out {tmp_path} --repetitions 2 --peak_tflops 1 --checkpointing"
    done = subprocess.run([sys.executable, SCRIPT, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / f"tiny-{stage}-checkpointing.json").read_text())
    assert done.stdout.splitlines()[-1] == f"speedup {record['speedup'][record['against']]['wall']:.2f}"
    assert {name: len(steps) for name, steps in record["steps"].items()}["ours"] == 2
    assert record["memory"]["ours"]["peak"] > record["memory"]["ours"]["above"] > 0
    assert "| ours |" in (tmp_path / f"tiny-{stage}-checkpointing.md").read_text()


def test_another_folder_is_no_checkout(tmp_path: Path) -> None:
    command = ["--geometry", "tiny", "--repo", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no checkout of haotian-liu/LLaVA" in done.stderr
