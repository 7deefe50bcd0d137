"""benchmarks/clip_finetune.py at toy size: both ways compute the same, a wrong way is refused, the result is whole."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip import speed
from llava_ohd.clip.ways import SLOTS, WAYS, Stage, read_mixture
from llava_ohd.errors import DataFormatError, StageFailed

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "clip_finetune.py"
COLORS = ("red", "green", "blue", "yellow", "black", "white")
KINDS = ("ball", "box", "cone", "cup", "star", "ring", "key", "lamp")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows in the form of the authors' flat files: four with 28 captions, one with 3, the rest filler."""
    captions = [f"a {color} {kind}" for color in COLORS for kind in KINDS]
    rows = [
        {"image": f"{i}.jpg", "caption": captions[i : i + 28], "valid_caption": [1] * 28, "label": i} for i in range(4)
    ]
    filler = {"caption": [*captions[:3], *["###"] * 25], "valid_caption": [1] * 3 + [0] * 25, "label": 1}
    rows.append({"image": "4.jpg", **filler})
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


@pytest.fixture
def stage(data: Path, tiny_encoder_dir: Path) -> Stage:
    return Stage("tiny", read_mixture(data, "rows.json", 5), tower.load_tokenizer(tiny_encoder_dir), 5)


def test_both_ways_agree_with_filler_in_the_batch(stage: Stage) -> None:
    assert stage.padded(0)["input_ids"].shape == (5 * SLOTS, 77)
    equality = speed.check_equal(stage)
    assert equality.loss < 1e-6
    assert equality.gradients < 1e-5
    assert equality.flops["ours"] < equality.flops["released"] / 5
    assert equality.vision["ours"] < equality.vision["released"]


def test_flops_are_those_counted_by_hand(stage: Stage) -> None:
    """Released vision tower: 17 tokens, width 32, 3 layers; 24 C² a token and layer, 4 L C for attention."""
    layers = 3 * 17 * (24 * 32**2 + 4 * 17 * 32)
    patches, projection = 16 * 2 * 32 * 3 * 8**2, 2 * 32**2
    batch = stage.tree(0)
    with speed.FlopCounterMode(display=False, custom_mapping=speed.CPU_ATTENTION) as counter:
        WAYS[0].images(stage.model, batch)
    assert counter.get_total_flops() == 5 * (layers + patches + projection)


def test_a_way_that_computes_something_else_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        return WAYS[1].texts(model, batch) * 1.001 + 0.001

    monkeypatch.setattr(speed, "WAYS", (WAYS[0], WAYS[1]._replace(texts=wrong)))
    with pytest.raises(StageFailed, match="differ"):
        speed.check_equal(stage)


def test_too_few_rows(data: Path) -> None:
    with pytest.raises(DataFormatError, match="5 rows, 6 are needed"):
        read_mixture(data, "rows.json", 6)


def test_the_command(data: Path, tiny_encoder_dir: Path) -> None:
    command = f"--geometry tiny --data {data} --file rows.json --tokenizer {tiny_encoder_dir} --out {data / 'out'}"
    command += " --batch_size 2 --repetitions 2 --peak_tflops 1"
    done = subprocess.run([sys.executable, SCRIPT, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((data / "out" / "tiny-rows.json").read_text())
    assert done.stdout.splitlines()[-1] == f"speedup {record['speedup']['wall']:.2f}"
    assert [len(record["steps"][way.name]) for way in WAYS] == [2, 2]
    assert record["versions"]["torch"]
    assert record["memory"]["ours"]["peak"] > record["memory"]["ours"]["above"] > 0
    assert "| ours |" in (data / "out" / "tiny-rows.md").read_text()


@pytest.mark.parametrize("geometry", ["vit-b-32", "vit-l-14-336"])
def test_help_and_docs_state_the_memory_that_was_measured(geometry: str) -> None:
    record = json.loads((SCRIPT.parent / "results" / "clip_finetune" / f"{geometry}.json").read_text())
    peak = f"{max(memory['peak'] for memory in record['memory'].values()) / 2**30:.1f} GiB"
    [stated] = re.findall(rf"{geometry} about (\d+) minutes and ([\d.]+ GiB)", SCRIPT.read_text())
    [documented] = re.findall(
        rf"--geometry {geometry} .*# (\d+) minutes.*, ([\d.]+ GiB)", (SCRIPT.parents[1] / "docs/encoder.md").read_text()
    )
    assert stated == documented
    assert stated[1] == peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch_size 0", "--batch_size 0: a number of at least 1 is expected"),
        ("--repetitions 0", "--repetitions 0: a number of at least 1 is expected"),
        ("--tokenizer nowhere", "--tokenizer nowhere: the folder of CLIP's tokenizer"),
        ("--device cuda", "--device cuda: a GPU that torch sees is expected"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    tiny_encoder_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["clip_finetune.py", "--geometry", "tiny", "--data", "nowhere", "--tokenizer", str(tiny_encoder_dir)]
    monkeypatch.setattr(sys, "argv", argv + arguments.split())
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().err.startswith(f"error: OptionError: {message}")
