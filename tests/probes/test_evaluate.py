"""The command on a tiny encoder: every file that it promises, the same numbers in all of them, and what it refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.classification import Classification
from llava_ohd.probes.estimates import Estimate, pooled, share_of, wilson
from llava_ohd.probes.evaluate import check_digest, read_rows
from llava_ohd.probes.figures import AXES
from llava_ohd.probes.rows import SECTIONS, _by_size
from llava_ohd.probes.tables import as_table
from llava_ohd.world.multi_object import SceneSetConfig, write_scene_set

ROOT = Path(__file__).resolve().parents[2]


def test_wilson_and_pooling() -> None:
    # Wilson 1927 for 1 of 4, as in tests/clip/test_accuracy.py
    assert wilson(0.25, 4) == (pytest.approx(0.045587, abs=1e-5), pytest.approx(0.699358, abs=1e-5))
    assert share_of([1, 0, 0, 0]) == Estimate(0.25, *wilson(0.25, 4), 4, 4)
    assert share_of([1, 0, 0, 0], ["a", "a", "b", "b"]) == Estimate(0.25, *wilson(0.25, 2), 4, 2)
    assert share_of([]) == Estimate(None, None, None, 0, 0)
    parts = [share_of([1, 1, 0, 1]), share_of([0, 0])]
    assert pooled(parts, same_items=False) == Estimate(0.5, *wilson(0.5, 6), 6, 6)
    assert pooled(parts, same_items=True) == Estimate(0.5, *wilson(0.5, 4), 6, 4)


def test_slots_of_one_layout_are_of_the_same_pictures() -> None:
    """Two layouts of 40 pictures each, three slots: 80 pictures were asked, not 240."""

    def read(accuracy: float) -> Classification:
        hits = [1.0] * round(40 * accuracy) + [0.0] * round(40 * (1 - accuracy))
        return Classification(("UL", "Middle", "BR"), (share_of(hits),) * 3, 0.2, 160)

    large, small = _by_size("ioc", {"a": read(0.5), "b": read(1.0)}, {"a": "UL", "b": "Middle"})
    assert (large.label, large.estimate) == ("large", Estimate(0.75, *wilson(0.75, 80), 80, 80))
    assert (small.label, small.estimate) == ("small", Estimate(0.75, *wilson(0.75, 80), 160, 80))


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["multi_object.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "eval/multi_object.py"), run_name="__main__")


def test_the_command(
    tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene_set(tmp_path / "set", SceneSetConfig(rounds=1))
    names = ["a ball and a cup", "a cup", "a key, a ball and a star"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"image": "1", "text": text}) + "\n" for text in names))
    kinds = [{"id": 1, "name": "ball"}, {"id": 2, "name": "cup"}]
    found = [{"image_id": 1, "category_id": k, "area": k, "bbox": [0, 0, k, k]} for k in (1, 2)]
    record = {"images": [{"id": 1, "file_name": "1"}], "categories": kinds, "annotations": found}
    (tmp_path / "i.json").write_text(json.dumps(record))
    small = ("--pictures", 2, "--text_captions", 40, "--data", tmp_path / "set", "--captions", "list")
    captions = ("--caption_file", tmp_path / "c.jsonl", "--instances", tmp_path / "i.json")
    _run(monkeypatch, "--encoder", tiny_encoder_dir, *small, *captions, "--out", tmp_path / "out")
    shown = capsys.readouterr().out
    name, rows = read_rows(tmp_path / "out")
    assert name == str(tiny_encoder_dir)
    assert {row.section for row in rows} == set(SECTIONS)
    assert as_table({name: rows}) in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in rows:
        metric = results["metrics"].get(f"{row.section}/{row.group}/{row.label}")
        assert (metric and metric["value"]) == row.estimate.value
    assert results["n"] == 14 * 20
    for section in AXES:
        picture = (tmp_path / "out" / f"{section}.svg").read_text()
        assert AXES[section].split(",")[0] in picture
    trials = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    whole = [row for row in trials if row["cell"]["design"] == "scenario 1"]
    share = sum("whole" in row["won_by"] for row in whole) / len(whole)
    stated = next(r for r in rows if (r.section, r.group, r.label) == ("mitigation", "scenario 1", "whole"))
    assert stated.estimate.value == pytest.approx(share)
    assert (stated.estimate.n, stated.estimate.independent) == (len(whole), 8)
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    assert len(details["probes"]["attention_slots"]) == 14
    # beside others: their numbers unchanged; an encoder twice is refused
    (tmp_path / "out" / "details.json").write_text(json.dumps(details | {"encoder": "other"}))
    beside = ("--beside", tmp_path / "out")
    _run(monkeypatch, "--encoder", tiny_encoder_dir, *small, *captions, *beside, "--out", tmp_path / "second")
    assert f"| other | {tiny_encoder_dir} |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        _run(
            monkeypatch,
            "--encoder",
            tiny_encoder_dir,
            *small,
            *captions,
            "--beside",
            tmp_path / "second",
            "--out",
            "no",
        )
    assert "which is measured now; give those of other encoders" in capsys.readouterr().err
    # nor do others stand beside that were measured otherwise, or on an encoder that no longer bears their name
    for more, message in (
        (("--pictures", 3), "cannot stand beside: settings was"),
        (("--data", tmp_path / "second_set"), "cannot stand beside: set was"),
    ):
        with pytest.raises(SystemExit):
            _run(
                monkeypatch, "--encoder", tiny_encoder_dir, *small, *captions, *more, *beside, "--out", tmp_path / "no"
            )
        assert message in capsys.readouterr().err
    check_digest(tmp_path, results, str(tiny_encoder_dir))
    check_digest(tmp_path, results, "gone")
    with pytest.raises(DataFormatError, match=r"measured on an encoder of digest 00, .* today; measure it again"):
        check_digest(tmp_path, {"encoder": {"digest": "00"}}, str(tiny_encoder_dir))


def test_what_is_missing_is_said(
    tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (("--data", tmp_path / "no"), "is not a folder; expected is a folder with OneObject/"),
        (("--images", tmp_path), "--images go with --instances"),
        (("--beside", tmp_path), "details.json"),
    ):
        with pytest.raises(SystemExit):
            _run(monkeypatch, "--encoder", tiny_encoder_dir, *arguments, "--out", tmp_path / "out")
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_linear_probes_read_the_published_captions_on_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, forms in (
        (["--data", "set"], ("bare", "articles")),
        ([], ("list", "list")),
        (["--data", "set", "--captions", "bare"], ("bare", "bare")),
    ):
        monkeypatch.setattr(sys, "argv", ["multi_object.py", *arguments])
        given = runpy.run_path(str(ROOT / "eval/multi_object.py"), run_name="eval")["parse"]()
        assert (given.form, given.probe_form) == forms
