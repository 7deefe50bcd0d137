"""The card says what files say, of this encoder only, and names what nobody measured."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd import tower
from llava_ohd.clip.model_card import outcome, write_card
from llava_ohd.errors import DataFormatError
from llava_ohd.records import Metric
from llava_ohd.results import write_results

ROOT = Path(__file__).resolve().parents[2]


def test_a_card_holds_results_of_its_own_encoder_only(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder_dir, tmp_path / "encoder")
    with pytest.raises(DataFormatError, match="was not fine-tuned or interpolated here"):
        write_card(tmp_path / "encoder")
    record = json.loads((tmp_path / "encoder/ohd.json").read_text())
    parents = [{"path": str(tiny_encoder_dir), "digest": record["digest"]}]
    (tmp_path / "encoder/ohd.json").write_text(json.dumps(record | {"parents": parents}))
    card = write_card(tmp_path / "encoder").read_text()
    for name in ("ohd_caps", "zero_shot", "pope", "chair"):
        assert f"| {name} | | | not measured | |" in card
    assert "## Training\n\nnot measured" in card

    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25, "eval_accuracy": 0.75}]
    (tmp_path / "curve.json").write_text(json.dumps(rows))
    digest = tower.check(tmp_path / "encoder").digest
    metrics = [Metric("accuracy", 0.8125, 16, "higher"), Metric("accuracy_low95", 0.6, 16, "none")]
    for name, whose in (("mine", digest), ("other", "0" * 64)):
        more = {"evaluation": "ohd_caps" if name == "mine" else "pope", "rule": "r", "data_set": f"set of {name}"}
        encoder = {"name": name, "digest": whose}
        write_results(tmp_path / "eval" / name / "results.json", metrics, **more, n=16, encoder=encoder)  # type: ignore[arg-type]
    command = [sys.executable, str(ROOT / "scripts/model_card.py"), "--encoder", str(tmp_path / "encoder")]
    subprocess.run([*command, "--results", str(tmp_path / "eval")], check=True, cwd=ROOT)
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "2 steps; loss 2.5000 at the first, 1.2500 at the last; best accuracy on dev 0.7500 at step 2" in card
    assert "| 2 | 0.7500 |" in card
    assert "| ohd_caps | set of mine | accuracy | 0.8125 | 16 |" in card
    assert "low95" not in card
    assert "set of other" not in card
    assert "| pope | | | not measured | |" in card
    assert tower.check(tmp_path / "encoder").digest == digest


def test_the_outcome_names_the_first_of_the_best() -> None:
    rows: list[dict[str, float]] = [{"step": step, "loss": 4.0 / step} for step in (1, 2, 4)]
    assert outcome(rows) == "3 steps; loss 4.0000 at the first, 1.0000 at the last"
    for row, accuracy in zip(rows, (0.25, 0.75, 0.75), strict=True):
        row["eval_accuracy"] = accuracy
    assert outcome(rows).endswith("; best accuracy on dev 0.7500 at step 2, whose weights these are")
