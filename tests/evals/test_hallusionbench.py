"""HallusionBench's two ways of counting, on rows made by hand and on the published questions."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import hallusionbench as bench
from llava_ohd.files import read_json, write_json, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY.parent / "shared/data/hallusionbench/HallusionBench.json"


def row(category, visual, figure, asked, answer, prediction):
    keys = dict(zip(("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id"),
                    (category, "map", visual, "0", figure, asked), strict=True))  # fmt: skip
    return keys | {"question": f"q{asked}?", "gt_answer": answer, "filename": None, "model_prediction": prediction}


# VS: not shown (unsure), shown (one of two right), altered (both right); VD: two questions on one figure, one right
ROWS = [
    row("VS", "0", "0", "0", "1", "Uncertain"),
    row("VS", "0", "0", "1", "0", "Yes"),
    row("VS", "1", "1", "0", "1", "Yes."),
    row("VS", "1", "1", "1", "0", "Yes"),
    row("VS", "2", "2", "0", "0", "No"),
    row("VS", "2", "2", "1", "1", "1"),
    row("VD", "1", "0", "0", "1", "yes, it does"),
    row("VD", "1", "0", "1", "0", "2"),
]


def found(tmp_path, rule, rows=ROWS):
    write_json(tmp_path / "a.json", rows)
    questions = bench.read_questions(tmp_path / "a.json")
    return {
        metric.name: metric.value for metric in bench.score(questions, bench.read_answers(tmp_path / "a.json"), rule)
    }


def test_vlmevalkit_counts_what_has_an_image(tmp_path):
    values = found(tmp_path, "vlmevalkit")
    assert values["a_acc"] == 4 / 6
    assert values["f_acc"] == 1 / 3  # of VS figures 1, 2 and VD figure 0 only the second is right
    assert values["q_acc"] == 2 / 4  # VS question 0 and VD question 0
    assert values["VS/q_acc"] == values["VD/q_acc"] == 0.5
    assert values["always_yes/a_acc"] == 0.5
    assert values["unparsed"] == 1 / 6


def test_official_counts_no_verdict_as_right_where_nothing_is_shown(tmp_path):
    values = found(tmp_path, "official")
    assert values["a_acc"] == 5 / 8
    assert values["f_acc"] == 1 / 3
    assert values["q_acc"] == 2 / 4
    assert values["VS/a_acc"] == 4 / 6


def test_ids_and_texts_do_as_well(tmp_path):
    write_json(tmp_path / "q.json", ROWS)
    questions = bench.read_questions(tmp_path / "q.json")
    answers = [{"question_id": q.id, "text": r["model_prediction"]} for q, r in zip(questions, ROWS, strict=True)]
    write_jsonl(tmp_path / "ids.jsonl", answers)
    assert questions[2].id == "VS_map_1_0_1_0"
    values = {m.name: m.value for m in bench.score(questions, bench.read_answers(tmp_path / "ids.jsonl"))}
    assert values == found(tmp_path, "vlmevalkit")
    write_jsonl(tmp_path / "ids.jsonl", answers[2:])  # those without an image need no answer
    assert values == {m.name: m.value for m in bench.score(questions, bench.read_answers(tmp_path / "ids.jsonl"))}
    write_jsonl(tmp_path / "ids.jsonl", answers[3:])
    with pytest.raises(AnswersMismatch, match=r"5 of 6 questions answered\. 1 missing, first: 'VS_map_1_0_1_0'"):
        bench.score(questions, bench.read_answers(tmp_path / "ids.jsonl"))


@pytest.mark.parametrize("rule", bench.RULES)
def test_answers_about_no_image_are_checked_as_well(tmp_path, rule):
    """By vlmevalkit they do not count; doubled or to another question they are still no answers to this set."""
    write_json(tmp_path / "q.json", ROWS)
    questions = bench.read_questions(tmp_path / "q.json")
    write_json(tmp_path / "a.json", [*ROWS, ROWS[0]])
    with pytest.raises(AnswersMismatch, match="1 answered more than once, first: 'VS_map_0_0_0_0'"):
        bench.score(questions, bench.read_answers(tmp_path / "a.json"), rule)
    write_json(tmp_path / "a.json", [ROWS[0] | {"question": "?"}, *ROWS[1:]])
    with pytest.raises(AnswersMismatch, match="1 to a different question, first: 'VS_map_0_0_0_0'"):
        bench.score(questions, bench.read_answers(tmp_path / "a.json"), rule)


def test_answers_that_cannot_be_read_are_said_aloud(tmp_path):
    write_json(tmp_path / "a.json", ROWS)
    answers = bench.read_answers(tmp_path / "a.json")
    (note,) = bench.notes(answers)
    assert note.startswith("UNREAD: 2 of 8 answers (25.0 %) are no plain yes or no, first: VS_map_0_0_0_0: 'Uncertain'")
    assert bench.notes(answers, "official")[0].endswith("as wrong, and as right where no figure is shown")
    assert bench.notes(answers[1:7]) == []


@pytest.mark.parametrize("changes", [{"gt_answer": "2"}, {"gt_answer": None}])
def test_bad_questions(tmp_path, changes):
    write_json(tmp_path / "q.json", [ROWS[0] | changes])
    with pytest.raises(DataFormatError, match="row 1 is not a question of HallusionBench"):
        bench.read_questions(tmp_path / "q.json")


def test_bad_answers(tmp_path):
    write_json(tmp_path / "a.json", [{"question_id": "x"}])
    with pytest.raises(DataFormatError, match=r"row 1 has the keys \['question_id'\]"):
        bench.read_answers(tmp_path / "a.json")


@pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is not there")
@pytest.mark.parametrize(("rule", "n"), [("vlmevalkit", 951), ("official", 1129)])
def test_command_on_the_published_questions(tmp_path, rule, n):
    """346 figures and 455 questions over all their figures, as the paper says."""
    rows = [row | {"model_prediction": row["gt_answer"]} for row in read_json(FILE)]
    write_json(tmp_path / "a.json", rows)
    command = [sys.executable, "eval/hallusionbench.py", "--answers", tmp_path / "a.json", "--data", FILE]
    subprocess.run([*command, "--rule", rule, "--out", tmp_path], cwd=REPOSITORY, capture_output=True, check=True)
    metrics = read_json(tmp_path / "results.json")["metrics"]
    assert {name: metrics[name]["n"] for name in ("a_acc", "f_acc", "q_acc")} == {
        "a_acc": n,
        "f_acc": 346,
        "q_acc": 455,
    }
    assert metrics["a_acc"]["value"] == metrics["f_acc"]["value"] == metrics["q_acc"]["value"] == 1.0
