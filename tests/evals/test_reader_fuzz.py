"""Files of all five evaluations with one fault: refused in one sentence, or scored as what they say."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import amber, chair, hallusionbench, mme, pope
from llava_ohd.evals.answers import read_answers
from llava_ohd.evals.chair_protocol import read_image_list
from llava_ohd.records import Metric

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed (extra dev)")
st = pytest.importorskip("hypothesis.strategies")

REFUSED = (AnswersMismatch, DataFormatError)
SETTINGS = hypothesis.settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
LABELS = (True, False, True, True, False, False)
WORDS = {True: "Yes", False: "No"}
Row = dict[str, Any]

POPE = [
    pope.PopeQuestion(f"random/{n}", f"{n}.png", f"Is there a cup in {n}?", "random", WORDS[label].lower())
    for n, label in enumerate(LABELS)
]
TRUTH = {str(n): frozenset({"cup"}) for n in range(1, 5)}
VOCABULARY = chair.Vocabulary({("cup",): "cup", ("dog",): "dog"}, 1)
ITEMS = {
    n: amber.AmberItem(n, "discriminative-attribute-state", (WORDS[label].lower(),))
    for n, label in enumerate(LABELS, 1)
}
HALLUSION = [
    hallusionbench.HallusionQuestion(f"VD_map_1_0_{n}_0", "", f"{n}?", "VD", f"{n}", "0", True, True, label)
    for n, label in enumerate(LABELS)
]


def pope_score(path: Path) -> list[Metric]:
    return pope.evaluate(POPE, read_answers(path)).metrics


def chair_score(path: Path) -> list[Metric]:
    return chair.score(chair.read_captions(path), TRUTH, VOCABULARY)


def amber_score(path: Path) -> list[Metric]:
    return amber.discriminative(amber.read_responses(path, ITEMS), ITEMS)


def hallusion_score(path: Path) -> list[Metric]:
    return hallusionbench.score(HALLUSION, hallusionbench.read_answers(path))


def mme_score(path: Path) -> list[Metric]:
    return mme.score(mme.read_answers(path.parent))


def as_json(rows: list[Row]) -> str:
    return json.dumps(rows)


def as_lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def by_tabs(rows: list[Row]) -> str:
    return "".join("\t".join(str(value) for value in row.values()) + "\n" for row in rows)


@dataclass(frozen=True)
class Form:
    """A form of files: valid rows, how they are written and scored, which key is the answer, whether a part will do."""

    rows: list[Row]
    score: Callable[[Path], list[Metric]]
    said: str
    main: str
    part: bool = False
    write: Callable[[list[Row]], str] = as_lines
    file: str = "answers.json"

    def metrics(self, path: Path) -> dict[str, float] | None:
        """Returns what the file gets, None if it is refused in one sentence."""
        try:
            return {metric.name: metric.value for metric in self.score(path)}
        except REFUSED as error:
            message = str(error)
        assert 20 < len(message.replace(str(path), "")) < 2000, message
        assert "\n" not in message
        return None

    def of(self, folder: Path, content: str | bytes) -> dict[str, float] | None:
        content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / self.file).write_bytes(content)
        return self.metrics(folder / self.file)


FORMS = {
    "pope": Form(
        [{"question_id": q.id, "image": q.image, "prompt": q.prompt, "text": q.label.capitalize()} for q in POPE],
        pope_score, "text", "random/accuracy",
    ),
    "chair": Form(
        [{"image_id": n, "caption": f"a {word}"} for n, word in enumerate(("cup", "cup", "dog", "cup"), 1)],
        chair_score, "caption", "chair_s", part=True,
    ),
    "amber": Form(
        [{"id": n, "response": WORDS[label]} for n, label in enumerate(LABELS, 1)],
        amber_score, "response", "accuracy", part=True, write=as_json,
    ),
    "hallusionbench": Form(
        [{"question_id": q.id, "prompt": q.prompt, "text": WORDS[q.label]} for q in HALLUSION],
        hallusion_score, "text", "a_acc",
    ),
    "mme": Form(
        [{"image": f"{n // 2}.jpg", "question": f"{n}?", "label": WORDS[n % 2 == 0], "said": "Yes"} for n in range(6)],
        mme_score, "said", "color/accuracy", write=by_tabs, file="color.txt",
    ),
}  # fmt: skip
FULL = {"pope": 1.0, "chair": 0.25, "amber": 1.0, "hallusionbench": 1.0, "mme": 0.5}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_json = pytest.mark.parametrize("name", [name for name, form in FORMS.items() if name != "mme"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_as_they_are(tmp_path, name):
    form = FORMS[name]
    assert form.of(tmp_path, form.write(form.rows))[form.main] == FULL[name]


@every_form
@SETTINGS
@hypothesis.given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes(tmp_path, form, content):
    assert form.of(tmp_path, content) is None


@every_form
@SETTINGS
@hypothesis.given(st.data())
def test_a_torn_file(tmp_path, form, data):
    """What is left is refused, or is whole rows where a part will do; MME's last answer has no end to be missed."""
    content = form.write(form.rows).encode()
    cut = data.draw(st.integers(0, len(content) - 1))
    found = form.of(tmp_path, content[:cut])
    if found is None:
        return
    left = content[:cut].decode().splitlines()
    if form.write is by_tabs:
        assert len(left) in (2, 4, 6)
        assert [line.count("\t") for line in left] == [3] * len(left)
    else:
        assert [json.loads(line) for line in left] == form.rows[: len(left)]
        assert found == form.of(tmp_path, form.write(form.rows[: len(left)]))
        assert form.part or len(left) == len(form.rows)


@every_form
@pytest.mark.parametrize("change", ["drop", "double"])
def test_rows_missing_or_doubled(tmp_path, form, change):
    for position in range(len(form.rows)):
        rows = list(form.rows)
        row = rows.pop(position)
        rows += [row, row] if change == "double" else []
        found = form.of(tmp_path, form.write(rows))
        assert (found is not None) == (change == "drop" and form.part)


@every_form
@SETTINGS
@hypothesis.given(st.data(), VALUES)
def test_any_value_in_any_field(tmp_path, form, data, value):
    """Only another answer, or the same value in another type, can change a field and still be scored."""
    rows = [dict(row) for row in form.rows]
    row = data.draw(st.sampled_from(rows))
    key = data.draw(st.sampled_from(sorted(row)))
    before, row[key] = row[key], value
    found = form.of(tmp_path, form.write(rows))
    if found is None:
        return
    text = isinstance(value, str) or form.write is by_tabs or (form is FORMS["hallusionbench"] and value in (0, 1, 2))
    same = str(value).strip().lower() == str(before).lower() and not isinstance(value, bool)
    not_asked = value is None and key in ("image", "prompt")  # a row need not say what was asked
    other_question = form.write is by_tabs and key == "question"  # MME's files are all that says what was asked
    assert (key == form.said and text) or same or not_asked or other_question


@every_json
@SETTINGS
@hypothesis.given(st.data())
def test_a_key_twice(tmp_path, name, data):
    form = FORMS[name]
    position = data.draw(st.integers(0, len(form.rows) - 1))
    key = data.draw(st.sampled_from(sorted(form.rows[position])))
    plain = json.dumps(form.rows[position])
    twice = f'{{"{key}": {json.dumps(data.draw(VALUES))}, {plain[1:]}'
    content = form.write(form.rows)
    assert plain in content
    assert form.of(tmp_path, content.replace(plain, twice, 1)) is None


@every_json
@pytest.mark.parametrize(
    "value",
    ["\ud800", "9" * 5000, "x" * 3_000_000, "\u00b2", "-1", "1.0", " 1 ", "1" + "0" * 20, "\x00\n"],
    ids=range(9),
)
def test_ids_that_are_none(tmp_path, name, value):
    form = FORMS[name]
    rows = [dict(row) for row in form.rows]
    rows[0][next(iter(rows[0]))] = value
    assert form.of(tmp_path, form.write(rows)) is None


@every_json
@pytest.mark.parametrize("number", ["9" * 5000, "NaN", "1e999", "-1", "1.0"])
def test_numbers_that_are_no_ids(tmp_path, name, number):
    form = FORMS[name]
    key, value = next(iter(form.rows[0].items()))
    assert (
        form.of(tmp_path, form.write(form.rows).replace(f'"{key}": {json.dumps(value)}', f'"{key}": {number}')) is None
    )


@every_json
def test_half_a_character_is_no_answer(tmp_path, name):
    form = FORMS[name]
    rows = [*form.rows[:-1], form.rows[-1] | {form.said: "\ud800 No"}]
    assert form.of(tmp_path, form.write(rows)) is None


@every_json
@pytest.mark.parametrize("row", [{"x" * 3_000_000: 1}, {"imgToEval": {"1": 3}}, {"imgToEval": {}}, {"imgToEval": []}])
def test_other_objects(tmp_path, name, row):
    assert FORMS[name].of(tmp_path, json.dumps(row)) is None


@SETTINGS
@hypothesis.given(st.text(max_size=8) | st.sampled_from(["9" * 5000, "x" * 3_000_000, "1\n" * 2, "1 2"]))
def test_an_image_list(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content.encode())
    try:
        images = read_image_list(tmp_path / "list.txt")
    except DataFormatError as error:
        message = str(error)
    else:
        message = ""
        assert images == content.replace("\ufeff", "").split()
        assert all(int(image) >= 0 for image in images)
    assert len(message) < 1000
