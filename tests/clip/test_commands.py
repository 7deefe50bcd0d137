"""The commands as a user calls them: fine-tune, then measure by name; numbers in the files agree with each other."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd import tower
from llava_ohd.clip.model_card import outcome
from llava_ohd.home import home
from llava_ohd.ohd_caps import controls
from llava_ohd.ohd_caps.readers import read_rows

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def read_lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_finetune_then_measure_by_name(
    tiny_encoder_dir: Path,
    ohd: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, folder = ohd
    data = ("--data", file, "--images", folder)
    training = ("--max_steps", 2, "--batch_size", 4, "--name", "mine", "--encoder", tiny_encoder_dir)
    run(monkeypatch, "scripts/finetune_clip.py", *data, *training, "--out", tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"encoder: {tmp_path / 'run' / 'encoder'}",
        f"curve:   {tmp_path / 'run' / 'curve.json'}",
        f"result:  {outcome(json.loads((tmp_path / 'run' / 'curve.json').read_text()))}",
    ]
    out = home() / "eval" / "mine" / "ohd_caps"
    run(monkeypatch, "eval/ohd_caps.py", "--encoder", "mine", *data, "--out", out)
    assert capsys.readouterr().out.splitlines()[-1] == f"results: {out / 'results.json'}"
    record, rows = json.loads((out / "results.json").read_text()), read_lines(out / "predictions.jsonl")
    metrics = {name: row["value"] for name, row in record["metrics"].items()}
    assert record["encoder"] == {"name": "mine", "digest": tower.check(tmp_path / "run" / "encoder").digest}
    assert (record["eval"], record["n"], len(rows)) == ("ohd_caps", 24, 24)
    assert metrics["accuracy"] == pytest.approx(sum(bool(row["correct"]) for row in rows) / 24)
    assert metrics["accuracy_shuffled"] == pytest.approx(sum(bool(row["correct_shuffled"]) for row in rows) / 24)
    assert metrics["accuracy_mean_image"] == pytest.approx(sum(bool(row["correct_mean_image"]) for row in rows) / 24)
    assert metrics["accuracy_low95"] < metrics["accuracy"] + 1e-9 < metrics["accuracy_high95"]
    for name, value in controls.accuracies(read_rows(file)).items():
        assert metrics[f"control_{name}"] == pytest.approx(value)


def test_zero_shot_writes_one_row_per_image(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ohd
    kinds = ["ball", "cup", "key"]
    instances = tmp_path / "instances.json"
    record = {
        "images": [{"id": i, "file_name": f"{i:03}.png"} for i in range(6)],
        "annotations": [{"id": i, "image_id": i % 6, "category_id": i // 6 + i % 2} for i in range(7)],
        "categories": [{"id": i, "name": kind} for i, kind in enumerate(kinds)],
    }
    instances.write_text(json.dumps(record))
    out = tmp_path / "zero_shot"
    arguments = ("--encoder", tiny_encoder_dir, "--instances", instances, "--images", folder, "--out", out)
    run(monkeypatch, "eval/zero_shot.py", *arguments)
    single, several = read_lines(out / "predictions.jsonl"), read_lines(out / "predictions_several.jsonl")
    metrics = json.loads((out / "results.json").read_text())["metrics"]
    assert ([row["image"] for row in several], metrics["accuracy_present"]["n"]) == (["000.png"], 1)
    assert metrics["accuracy"]["value"] == pytest.approx(sum(bool(row["correct"]) for row in single) / 5)


def test_what_bitsandbytes_says_of_optional_kernels_is_left_out() -> None:
    """A Trainer loads it through peft; each encoder command calls `quiet` first."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    program = "from llava_ohd.training.launch import quiet; quiet(); import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    for script in ("finetune_clip", "ablate", "interpolate", "model_card"):
        assert "\n    quiet()\n" in (ROOT / "scripts" / f"{script}.py").read_text(), script
    for script in ("ohd_caps", "zero_shot", "pairs"):
        assert "\n    quiet()\n" in (ROOT / "eval" / f"{script}.py").read_text(), script


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("eval/ohd_caps.py", ("--data", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        ("eval/zero_shot.py", ("--instances", "nowhere.json"), "nowhere.json does not exist"),
        ("scripts/finetune_clip.py", ("--data", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        ("eval/ohd_caps.py", ("--encoder", "/nowhere"), "no folder /nowhere"),
    ],
)
def test_a_wrong_path_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(monkeypatch, script, *arguments)
    assert exit_info.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    kind = "EncoderNotFound" if "--encoder" in arguments else "DataFormatError"
    assert line.startswith(f"error: {kind}: ")
    assert message in line
