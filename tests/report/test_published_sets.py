"""Comparisons on the published sets: RePOPE beside POPE, POPEv2's single split, CHAIR on COCO's prepared objects."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.evals import amber, chair, chair_run, mme, pope, pope_sets
from llava_ohd.evals.amber_generative import Counts
from llava_ohd.evals.answers import read_answers
from llava_ohd.evals.chair_protocol import Protocol
from llava_ohd.evals.counted import of_amber
from llava_ohd.files import write_jsonl
from llava_ohd.records import Metric
from llava_ohd.report import breakdown, comparison, gallery
from llava_ohd.report.runs import Truth, read_truth
from llava_ohd.results import read_results, write_results

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs POPE's and CHAIR's files in ../shared/data")
SIDES = {"ours": 0.05, "stock": 0.25}  # share of absent objects affirmed


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_OHD_DATA", str(DATA))


def answer(out: Path, name: str) -> None:
    questions = pope_sets.read_set(name)
    for side, share in SIDES.items():
        draw, folder = random.Random(side), out / side / "pope"
        rows = [
            {
                "question_id": question.id,
                "image": question.image,
                "prompt": question.prompt,
                "text": "Yes" if question.label == "yes" or draw.random() < share else "No",
            }
            for question in questions
        ]
        write_jsonl(folder / "answers.jsonl", rows)
        scored = pope.evaluate(questions, read_answers(folder / "answers.jsonl"), name)
        facts = {"evaluation": "pope", "rule": pope.RULE, "data_set": name, "n": len(rows)}
        write_results(folder / "results.json", scored.metrics, **facts)


def compared(out: Path, truth: Truth) -> tuple[comparison.Pairs, dict]:
    pairs = comparison.read_pairs([out / "ours"], [out / "stock"], truth)
    return pairs, comparison.compare(pairs, resamples=100)


def test_every_rate_of_pope_and_repope_has_an_interval(tmp_path: Path) -> None:
    answer(tmp_path, "coco")
    pairs, record = compared(tmp_path, read_truth(Path("coco"), "val2014", "coco"))
    rows = record["benchmarks"]["pope"]["metrics"]
    for name in ("accuracy_pooled", "repope/f1_macro", "repope/adversarial/precision", "random/recall"):
        row, values = rows[name], [read_results(tmp_path / f"{s}/pope/results.json")["metrics"][name] for s in SIDES]
        assert [row["ours"]["value"], row["stock"]["value"]] == pytest.approx([value["value"] for value in values])
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
        assert row["p"] is not None
    assert {row["headline"] for name, row in rows.items() if name.startswith("repope/")} == {False}
    together = breakdown.breakdown(pairs, read_truth(Path("coco"), "val2014", "coco"))["pope"]["together"]
    assert {"object", "beside", "gone", "came"} <= set(together[0])
    assert sum(row["gone"] for row in together) > sum(row["came"] for row in together)
    assert gallery.cards(pairs, read_truth(Path("coco"), "val2014", "coco"), tmp_path / "no-photos") == {}


def test_popev2_has_one_split(tmp_path: Path) -> None:
    answer(tmp_path, "popev2")
    rows = compared(tmp_path, read_truth(tmp_path, "val2014", "popev2"))[1]["benchmarks"]["pope"]["metrics"]
    assert rows["counterfactual/accuracy"]["difference"]["low"] > 0
    assert rows["f1_macro"]["ours"] == rows["counterfactual/f1"]["ours"]


def test_chair_on_cocos_prepared_objects_has_intervals(tmp_path: Path) -> None:
    truth = read_truth(Path("coco"), "val2014")
    images = sorted(truth.objects or {})[:60]
    for side, share in SIDES.items():
        draw, folder = random.Random(side), tmp_path / side / "chair"
        said = [
            {"image": f"COCO_val2014_{int(i):012d}.jpg", "text": "a zebra." if draw.random() < share else "a field."}
            for i in images
        ]
        write_jsonl(folder / "answers.jsonl", said)
        data, rule = chair_run.choose("coco", "pattern", "test", True)
        captions = chair.read_captions(folder / "answers.jsonl")
        chair_run.evaluate(captions, data, rule, Protocol(), 500).write(folder / "results.json", {})
    _, record = compared(tmp_path, truth)
    row = record["benchmarks"]["chair"]["metrics"]["chair_s"]
    assert row["difference"]["high"] < 0
    assert row["mcnemar"][0]["p"] < 0.05
    assert "CHAIR: values only" not in " ".join(record["missing"])
    write_jsonl(tmp_path / "ours/chair/answers.jsonl", said[:-1])  # no longer those that were scored
    assert not comparison.read_pairs([tmp_path / "ours"], [tmp_path / "ours"], truth).runs["chair"][0][0].images


def test_amber_has_intervals(tmp_path: Path) -> None:
    """The questions alone, and the score over both parts from counts made by hand."""
    items, queries = amber.read_items(DATA / "amber"), amber.read_queries(DATA / "amber")
    for side, share in SIDES.items():
        draw, folder = random.Random(side), tmp_path / side / "amber"
        said = {
            number: item.truth[0].capitalize() if draw.random() >= share else "Maybe"
            for number, item in items.items()
            if item.type != amber.GENERATIVE
        }
        judged = {n: Counts(5, draw.random() < share, 4, 3, 6, 1, 1, draw.random() < 0.9) for n in range(1, 300)}
        said |= dict.fromkeys(judged, "described")
        total = sum(judged.values(), Counts())
        metrics = [*total.metrics(), *amber.discriminative(said, items)]
        values = {metric.name: metric.value for metric in metrics}
        metrics.append(Metric("amber", (1 - values["chair"] + values["f1"]) / 2, len(said), "higher"))
        formulas = of_amber(said, items, judged, queries).write(folder / "counts.jsonl")
        facts = {"evaluation": "amber", "rule": amber.RULE, "data_set": "amber", "n": len(said)}
        write_results(folder / "results.json", metrics, details={"formulas": formulas}, **facts)
    record = compared(tmp_path, Truth())[1]["benchmarks"]["amber"]
    assert record["images"] == 1004
    for name in ("amber", "chair", "hal", "f1", "relation/precision"):
        row = record["metrics"][name]
        for side in SIDES:
            reported = read_results(tmp_path / side / "amber/results.json")["metrics"][name]["value"]
            assert row[side]["value"] == pytest.approx(reported, abs=2e-3)
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
    assert record["metrics"]["amber"]["p"] < 0.05
    rows = (tmp_path / "ours/amber/counts.jsonl").read_text().splitlines()
    (tmp_path / "ours/amber/counts.jsonl").write_text("\n".join(rows[:500]))
    with pytest.raises(DataFormatError, match=r"counts\.jsonl beside it gives"):
        compared(tmp_path, Truth())


def test_mme_has_intervals(tmp_path: Path) -> None:
    for side, share in SIDES.items():
        draw, folder = random.Random(side), tmp_path / side / "mme"
        for task in mme.TASKS:
            rows = (
                f"{n}.jpg\tIs {label} right?\t{label}\t{label if draw.random() >= share else 'Yes'}\n"
                for n in range(30)
                for label in ("Yes", "No")
            )
            (folder / f"{task}.txt").parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{task}.txt").write_text("".join(rows))
        command = [sys.executable, str(ROOT / "eval/mme.py"), "--answers", str(folder), "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    row = compared(tmp_path, Truth())[1]["benchmarks"]["mme"]["metrics"]["score"]
    for side in SIDES:
        reported = read_results(tmp_path / side / "mme/results.json")["metrics"]["score"]["value"]
        assert row[side]["value"] == pytest.approx(reported)
    assert row["difference"]["low"] < row["difference"]["high"]
    assert row["unit"] == "points"
