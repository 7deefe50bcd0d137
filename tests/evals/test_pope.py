"""POPE's rule, against what the official scorer prints."""

import json
import re
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals.answers import RecordedAnswer, read_answers
from llava_ohd.evals.pope import SPLITS, SUFFIX, PopeQuestion, confusion, read_questions, says_yes, score
from llava_ohd.files import read_json, write_json, write_jsonl
from llava_ohd.records import Answer

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
OWN = read_json(Path(__file__).parent / "cases" / "pope.json")
NAMES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def golden(name: str):
    path = SHARED / "cases" / name / "cases.json"
    return read_json(path) if path.exists() else []


def make_questions(labels, split="random"):
    return [
        PopeQuestion(f"{split}/{n}", f"{n}.png", f"Is there a ball in {n}?", split, x) for n, x in enumerate(labels)
    ]


def make_answers(texts, split="random"):
    return [Answer(f"{split}/{n}", text) for n, text in enumerate(texts)]


@pytest.mark.parametrize("row", golden("pope_parser"), ids=lambda row: str(row["index"]))
def test_answer_rule_is_the_official_one(row):
    assert says_yes(row["text"]) == (row["pope_official"] == "yes")


@pytest.mark.parametrize(("name", "case"), golden("pope_edge").items() if golden("pope_edge") else [])
def test_degenerate_inputs(name, case):
    """The five numbers and the counts as printed; no number where the original divides by zero."""
    texts, labels = (
        ([row[i] for row in case["rows"]] for i in (0, 1)) if "rows" in case else (case["texts"], case["labels"])
    )
    if len(texts) != len(labels):
        with pytest.raises(AnswersMismatch):
            score(make_questions(labels), make_answers(texts))
        return
    counts = confusion(texts, labels)
    printed = case["stdout"].splitlines()
    assert f"{counts.tp}\t{counts.fp}\t{counts.tn}\t{counts.fn}" == printed[1]
    values = {m.name.removeprefix("random/"): m for m in score(make_questions(labels), make_answers(texts))}
    if "ZeroDivisionError" in case["stdout"]:
        assert values["precision"].value == values["f1"].value == 0.0
        assert values["precision"].n == counts.tp + counts.fp
    else:
        expected = [float(line.split(": ")[1]) for line in printed[2:7]]
        assert [values[key].value for key in NAMES] == expected


@pytest.mark.parametrize("case", OWN, ids=lambda case: case["name"])
def test_own_cases(case):
    found = {m.name: m for m in score(make_questions(case["labels"]), make_answers(case["answers"]))}
    assert {name: found[f"random/{name}"].value for name in NAMES} == case["expected"]
    assert {name: found[f"random/{name}"].n for name in NAMES} == case["n"]
    assert found["random/yes_ratio"].better == "none"


def test_macro_and_pooled_differ():
    questions = make_questions(["yes", "no"]) + make_questions(["yes", "yes", "yes", "no"], "popular")
    answers = make_answers(["Yes", "Yes"]) + make_answers(["Yes", "Yes", "No", "No"], "popular")
    found = {m.name: m.value for m in score(questions, reversed(answers))}
    assert found["random/f1"] == pytest.approx(2 / 3)
    assert found["popular/f1"] == pytest.approx(0.8)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["f1_pooled"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["accuracy_macro"] == pytest.approx((0.5 + 0.75) / 2)


@pytest.fixture(scope="module")
def trap():
    answers = read_answers(SHARED / "cases" / "pope_label_mismatch_trap" / "answers_all_correct_2910.jsonl")

    def questions(folder, rows=None):
        return [q for q in read_questions(SHARED / "data" / "pope" / folder) if q.split == "random"][:rows]

    return answers, questions


@needs_shared
def test_answers_to_the_2910_questions_score_with_their_labels(trap):
    answers, questions = trap
    found = {m.name: m.value for m in score(questions("coco_llava_e3e39262"), answers)}
    expected = read_json(SHARED / "cases" / "pope_label_mismatch_trap" / "expected.json")
    right = expected["right_labels: pope/coco_llava_e3e39262/coco_pope_random.json"]
    assert {name: found[f"random/{name}"] for name in NAMES} == {name: right[name] for name in NAMES}


@needs_shared
@pytest.mark.parametrize(("rows", "answered"), [(None, "2910 of 3000"), (2910, "2910 of 2910")])
def test_answers_to_the_2910_questions_are_refused_with_other_labels(trap, rows, answered):
    answers, questions = trap
    with pytest.raises(AnswersMismatch) as caught:
        score(questions("coco_official_08d957b", rows), answers)
    assert answered in str(caught.value)
    assert "2816 to a different question, first: 'random/18'" in str(caught.value)


@needs_shared
def test_llava_answers_to_all_three_splits():
    """LLaVA's own question file, every answer right: its ids find their splits."""
    questions = read_questions(SHARED / "data" / "pope" / "coco_llava_e3e39262")
    labels = {(q.split, q.image, q.prompt): q.label for q in questions}
    asked = (SHARED / "data" / "pope" / "coco_llava_e3e39262" / "llava_pope_test.jsonl").read_text().splitlines()
    answers = []
    for row in map(json.loads, asked):
        text = labels[row["category"], row["image"], row["text"].removesuffix(SUFFIX)].capitalize()
        answers.append(RecordedAnswer(str(row["question_id"]), text, row["image"], row["text"]))
    assert {m.value for m in score(questions, answers) if m.better == "higher"} == {1.0}


def test_a_bare_number_without_a_prompt_is_not_guessed():
    with pytest.raises(AnswersMismatch, match=r"0 of 1 questions answered.*'0' \(score them"):
        score(make_questions(["yes"], "adversarial"), [Answer("0", "Yes")])


def test_no_questions():
    with pytest.raises(ValueError, match="no questions"):
        score([], [])


ROW = {"question_id": 1, "image": "1.png", "text": "Is there a ball in the image?", "label": "yes"}


def write_set(folder: Path, rows=(ROW,), prefix="world", array=False) -> Path:
    for split in SPLITS:
        write = write_json if array else write_jsonl
        write(folder / f"{prefix}_pope_{split}.json", list(rows))
    return folder


@pytest.mark.parametrize("array", [False, True])
def test_a_set_of_questions_is_read(tmp_path, array):
    questions = read_questions(write_set(tmp_path, array=array))
    assert [q.id for q in questions] == ["random/1", "popular/1", "adversarial/1"]
    assert questions[0] == PopeQuestion("random/1", "1.png", "Is there a ball in the image?", "random", "yes")


def test_several_sets_need_a_prefix(tmp_path):
    write_set(write_set(tmp_path), prefix="coco")
    assert len(read_questions(tmp_path, "coco")) == 3
    with pytest.raises(DataFormatError, match=r"found: coco_pope_random.json, world_pope_random.json"):
        read_questions(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, ROW), "a question_id occurs twice"),
        (({"question_id": 1, "image": "1.png", "text": "?"},), "world_pope_random.json row 1 lacks 'label'"),
        (({**ROW, "text": None},), "row 1: image, text and label must be text"),
    ],
)
def test_bad_question_files(tmp_path, rows, message):
    with pytest.raises(DataFormatError, match=message):
        read_questions(write_set(tmp_path, rows))


def test_a_missing_split(tmp_path):
    (write_set(tmp_path) / "world_pope_popular.json").unlink()
    with pytest.raises(DataFormatError, match=re.escape("one file *_pope_popular.json; found: none")):
        read_questions(tmp_path)
