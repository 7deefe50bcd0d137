"""MME's rule on hand-made answer files, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import mme
from llava_ohd.files import read_json

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder, task, answers, images=mme.IMAGES):
    """Answers (to the yes question, to the no question) repeat over the images."""
    rows = []
    for number in range(images):
        pair = answers[number % len(answers)]
        for label, said in zip(("Yes", "No"), pair, strict=True):
            rows.append(f"{number}.jpg\tIs it {label}? Please answer yes or no.\t{label}\t{said}")
    (folder / f"{task}.txt").write_text("\n".join(rows) + "\n")


def scores(folder):
    return {metric.name: metric.value for metric in mme.score(mme.read_answers(folder))}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", True),
        ("No.", False),
        ("yes, it is", True),
        ("Not there", False),
        ("Know", False),
        (" yes", True),
        ("  yes", None),
        ("**Yes**", None),
        ("Maybe", None),
        ("", None),
    ],
)
def test_the_first_four_characters(text, verdict):
    assert mme.first_four(text) is verdict


def test_points(tmp_path):
    """Existence all right; count one of two right; position a third of the images right; color nothing."""
    for task, answers in {
        "existence": [("Yes", "No")],
        "count": [("yes", "Yes")],
        "position": [("Yes", "no"), ("no", "yes"), ("Yes", "Other")],
        "color": [("Unsure", "Unsure")],
    }.items():
        write(tmp_path, task, answers)
    found = scores(tmp_path)
    assert [found[f"{task}/score"] for task in mme.TASKS] == pytest.approx([200, 50, 50 + 100 / 3, 0])
    assert found["count/accuracy_plus"] == 0
    assert found["score"] == pytest.approx(300 + 100 / 3)
    assert found["always_yes/score"] == found["always_no/score"] == 200
    assert found["unparsed"] == pytest.approx((60 + 10) / 240)


def test_lines_of_an_image_need_not_stand_together(tmp_path):
    write(tmp_path, "count", [("Yes", "No"), ("No", "No")])
    before = scores(tmp_path)
    lines = (tmp_path / "count.txt").read_text().splitlines()
    (tmp_path / "count.txt").write_text("\r\n".join(sorted(lines, reverse=True)))
    assert scores(tmp_path) == before
    assert before["count/score"] == 75 + 50
    assert "score" not in before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("1.jpg\tq\tYes", DataFormatError, "line 1 is .* with a tab between"),
        ("1.jpg\tq\tYes\tYes\tit is", DataFormatError, "with a tab between them and none inside"),
        ("1.jpg\tq\tTrue\tYes", DataFormatError, "Yes or No"),
        ("1.jpg\tq\tYes\tYes\n1.jpg\tq\tYes\tNo", AnswersMismatch, "line 2 answers 1.jpg: 'q' once more"),
        ("1.jpg\tq\tYes\tYes", AnswersMismatch, "1.jpg has 1"),
        ("1.jpg\tq\tYes\tYes\n1.jpg\tr\tyes\tYes", AnswersMismatch, "both of 1.jpg are a Yes .1 such images"),
        ("1.jpg\tq\tNo\tYes\n1.jpg\tr\tNO\tYes", AnswersMismatch, "both of 1.jpg are a No"),
        ("", DataFormatError, "is empty"),
    ],
)
def test_what_is_refused(tmp_path, text, error, message):
    (tmp_path / "color.txt").write_text(text)
    with pytest.raises(error, match=message):
        mme.read_answers(tmp_path)


def test_too_many_images_and_no_task(tmp_path):
    with pytest.raises(DataFormatError, match=r"none of existence\.txt"):
        mme.read_answers(tmp_path)
    with pytest.raises(DataFormatError, match=r"nothere does not exist; give the folder that has existence.txt, count"):
        mme.read_answers(tmp_path / "nothere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFormatError, match=r"file is a file; give the folder that has existence.txt"):
        mme.read_answers(tmp_path / "file")
    write(tmp_path, "color", [("Yes", "No")], images=31)
    with pytest.raises(AnswersMismatch, match="31 images; MME's color has 30"):
        mme.read_answers(tmp_path)


def test_answers_that_cannot_be_read_are_said_aloud(tmp_path):
    write(tmp_path, "color", [("Yes", "No")] * 14 + [("**Yes**", "Unsure")])
    (note,) = mme.notes(mme.read_answers(tmp_path))
    assert note.startswith('UNREAD: 4 of 60 answers (6.7 %) are without "yes" and "no" in the first four characters')
    assert "first: color: 14.jpg: Is it Yes? Please answer yes or no.: '**Yes**'; they count as wrong" in note
    write(tmp_path, "color", [("Yes", "No")])
    assert mme.notes(mme.read_answers(tmp_path)) == []


def test_command(tmp_path):
    for task in mme.TASKS:
        write(tmp_path, task, [("Yes", "No"), ("Yes", "Yes")])
    command = [sys.executable, "eval/mme.py", "--answers", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    record = read_json(tmp_path / "out/results.json")
    assert record["metrics"]["score"]["value"] == 4 * (75 + 50)
    assert record["complete"]
    assert "500.0 points" in done.stdout
    (tmp_path / "count.txt").unlink()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "count: 0 of 30 images answered (NOT COMPLETE)" in done.stdout
    assert not read_json(tmp_path / "out/results.json")["complete"]
