"""Comparisons on the published sets: RePOPE beside POPE, POPEv2's single split, CHAIR on COCO's prepared objects."""

import random
from pathlib import Path

import pytest

from llava_ohd.evals import chair, chair_run, pope, pope_sets
from llava_ohd.evals.answers import read_answers
from llava_ohd.evals.chair_protocol import Protocol
from llava_ohd.files import write_jsonl
from llava_ohd.report import breakdown, comparison, gallery
from llava_ohd.report.runs import Truth, read_truth
from llava_ohd.results import read_results, write_results

DATA = Path(__file__).resolve().parents[3] / "shared/data"
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
