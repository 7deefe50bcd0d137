"""Whatever a file of answers to POPE holds: the right score or one clear error, never another file's score.

The readers of all evaluations, on valid rows with one fault: test_reader_fuzz.py.
"""

import json
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import pope
from llava_ohd.evals.answers import read_answers
from llava_ohd.evals.pope_questions import ImageObjects, build_questions
from llava_ohd.records import Answer

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed (extra dev)")
st = pytest.importorskip("hypothesis.strategies")

REFUSED = (AnswersMismatch, DataFormatError)
SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
OBJECTS = ("cup", "apple", "dog", "ball", "tree", "key", "lamp", "ring")
IMAGES = [ImageObjects(f"{n}.png", (OBJECTS[n], OBJECTS[n + 1], OBJECTS[(n + 4) % 8])) for n in range(6)]
QUESTIONS = [
    pope.PopeQuestion(f"{split}/{row['question_id']}", row["image"], row["text"], split, row["label"])
    for split, rows in build_questions(IMAGES, n_images=5, seed=0).items()
    for row in rows
]
GIVEN = [Answer(question.id, question.label.capitalize()) for question in QUESTIONS]
PERFECT = {metric.name: metric.value for metric in pope.score(QUESTIONS, GIVEN)}
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["Yes", "No", "no.", "", "\u2028", "\ufeffYes", "N\u043e", "Yes\r\n", "\0"]
)


def ours():
    return [
        {"question_id": q.id, "image": q.image, "prompt": q.prompt, "text": q.label.capitalize()} for q in QUESTIONS
    ]


def ohd():
    return [
        {"question_id": int(q.id.split("/")[1]), "image": q.image, "text": q.prompt, "answer": q.label.capitalize()}
        for q in QUESTIONS
    ]


def official():
    return [{"question": q.prompt, "answer": q.label.capitalize()} for q in QUESTIONS]


FORMS = st.sampled_from([ours, ohd, official])


def evaluate(path: Path) -> dict[str, float] | None:
    """Returns the score, or None if the file was refused in one sentence that names a row, a value or a remedy."""
    try:
        scored = pope.evaluate(QUESTIONS, read_answers(path))
    except REFUSED as error:
        message = str(error)
    else:
        message = ""
    assert not message or (20 < len(message) < 4000 and "\n" not in message)
    if message:
        return None
    return {metric.name: metric.value for metric in scored.metrics}


def write(path: Path, rows, end="\n", start="") -> Path:
    path.write_bytes((start + end.join(json.dumps(row) for row in rows) + end).encode())
    return path


@SETTINGS
@hypothesis.given(FORMS, st.sampled_from(["\n", "\r\n", "\n\n", "\r\n \r\n"]), st.sampled_from(["", "\ufeff", "\n"]))
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path, form, end, start):
    assert evaluate(write(tmp_path / "a", form(), end, start)) == PERFECT


@SETTINGS
@hypothesis.given(st.binary(max_size=200))
def test_any_bytes(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert evaluate(tmp_path / "a") is None


@SETTINGS
@hypothesis.given(FORMS, st.data())
def test_a_torn_file(tmp_path, form, data):
    """Cut anywhere: what is left is refused, or is the file but for its last line end."""
    content = write(tmp_path / "a", form()).read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "a").write_bytes(content[:cut])
    found = evaluate(tmp_path / "a")
    # what ends with a whole split is that split's score, without means over all
    assert found is None or found == PERFECT or "f1_macro" not in found
    assert found is None or all(
        value == PERFECT[name] for name, value in found.items() if "/" in name and "_" not in name
    )


@SETTINGS
@hypothesis.given(FORMS, st.integers(0, len(QUESTIONS) - 1), st.sampled_from(["drop", "double", "move"]))
def test_rows_missing_doubled_or_moved(tmp_path, form, position, change):
    rows = form()
    row = rows.pop(position)
    if change == "double":
        rows[position:position] = [row, row]
    if change == "move":
        rows.insert((position + 7) % len(rows), row)
    found = evaluate(write(tmp_path / "a", rows))
    if change == "move" and form is not official:
        assert found == PERFECT
    else:
        assert found is None


@SETTINGS
@hypothesis.given(FORMS, st.integers(0, len(QUESTIONS) - 1), TEXTS)
def test_any_text_is_scored_as_that_text(tmp_path, form, position, text):
    """The rule is applied to exactly what was said: no more than this question can change."""
    rows = form()
    rows[position]["text" if form is ours else "answer"] = text
    found = evaluate(write(tmp_path / "a", rows))
    question = QUESTIONS[position]
    wrong = pope.says_yes(text) != (question.label == "yes")
    n = sum(q.split == question.split for q in QUESTIONS)
    if found is not None:
        assert found[f"{question.split}/accuracy"] == pytest.approx(1 - wrong / n)
    else:
        assert form is ohd  # where a question of several splits has two answers, and no id says which is whose
        assert sum((q.image, q.prompt) == (question.image, question.prompt) for q in QUESTIONS) > 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@SETTINGS
@hypothesis.given(FORMS, st.integers(0, len(QUESTIONS) - 1), st.data(), JSON)
def test_any_value_in_any_field(tmp_path, form, position, data, value):
    rows = form()
    key = data.draw(st.sampled_from(sorted(rows[position])))
    before, rows[position][key] = rows[position][key], value
    found = evaluate(write(tmp_path / "a", rows))
    harmless = key in ("text", "answer") and isinstance(value, str)
    same = str(value) == str(before) and not isinstance(value, bool)
    ignored = form is ohd and key == "question_id" and isinstance(value, int | str) and not isinstance(value, bool)
    absent = value is None and key in ("image", "prompt") and form is ours  # a row need not say what was asked
    if found is not None:
        assert harmless or same or ignored or absent


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"question_id": ' + "9" * 5000 + ', "text": "Yes"}',
        '{"question_id": 1, "text": "Yes", "text": "No"}',
        '{"question_id": "random/1", "text": "\\ud800"}',
        '{"question_id": NaN, "text": "Yes"}',
        '{"question_id": "random/1", "text": "' + "Yes " * 2_000_000 + '"}',
        '{"question_id": "' + "9" * 100_000 + '", "text": "Yes", "prompt": "?"}',
        '{"question_id": "\u00b2", "text": "Yes", "prompt": "?"}',
        "null",
        "[]",
        "[1]",
        "\ufeff",
        "\0\0",
    ],
    ids=range(14),
)
def test_traps(tmp_path, content):
    (tmp_path / "a").write_text(content, encoding="utf-8")
    assert evaluate(tmp_path / "a") is None
