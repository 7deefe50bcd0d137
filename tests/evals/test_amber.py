"""AMBER's rule, against what the official script prints; and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import amber, amber_generative, amber_run
from llava_ohd.evals.amber_generative import Words, generative
from llava_ohd.files import sha256_file

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
CASES, DATA = SHARED / "cases/amber_discriminative_constructed", SHARED / "data/amber"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))
HEADINGS = {"Descriminative Task": "", "Exsitence": "existence/"}
TITLES = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1": "f1"}
needs_shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


def printed(text: str) -> dict[str, float]:
    """Reads the table of the official script (`--evaluation_type d`)."""
    found, group = {}, ""
    for line in text.split("### --evaluation_type de")[0].splitlines():
        if heading := re.fullmatch(r"(\w[\w ]*):", line):
            group = HEADINGS.get(heading[1], f"{heading[1].lower()}/")
        elif row := re.fullmatch(r"(\w+):\s+([\d.]+) *", line):
            found[group + TITLES[row[1]]] = float(row[2])
    return found


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_official_script(name):
    items = amber.read_items(DATA)
    metrics = amber.discriminative(amber.read_responses(CASES / f"{name}.json", items), items)
    values = {metric.name: metric.value for metric in metrics}
    expected = printed((CASES / f"{name}.expected.txt").read_text())
    assert len(expected) == 28
    assert {key: f"{100 * values[key]:.1f}" for key in expected} == {
        key: f"{value:.1f}" for key, value in expected.items()
    }


@needs_shared
def test_what_decorated_answers_cost():
    items = amber.read_items(DATA)
    plain, decorated = (
        {m.name: m.value for m in amber.discriminative(amber.read_responses(CASES / f"{name}.json", items), items)}
        for name in ("md5_80pct_correct", "md5_80pct_correct_decorated")
    )
    assert (plain["accuracy"], decorated["accuracy"]) == (0.8, 0.102)
    assert decorated["tolerant/accuracy"] == plain["accuracy"] == plain["tolerant/accuracy"]
    assert decorated["unparsed"] > 0.8
    assert decorated["tolerant/unparsed"] == 0
    assert decorated["always_no/f1"] == 0.797


@needs_shared
@pytest.mark.parametrize(("key", "expected"), [("truth", (0.0, 93.1, 0.0, 0.0)), ("hallu", (91.9, None, None, 90.3))])
def test_naming_exactly_the_listed_words(monkeypatch, key, expected):
    """inference.py @ 534babf, spaCy's similarity replaced by equality, prints these figures."""
    pytest.importorskip("nltk").data.path.append(str(SHARED / "data/nltk_data"))
    items = amber.read_items(DATA)
    said = {
        number: "The image shows " + ", ".join(f"a {word}" for word in getattr(item, key)) + "."
        for number, item in items.items()
        if item.type == "generative"
    }
    values = [metric.value for metric in generative(said, items, amber_generative.read_words(DATA))]
    for value, wanted in zip(values, expected, strict=True):
        assert wanted is None or f"{100 * value:.1f}" == f"{wanted:.1f}"


# --- by hand, on data of our own

WORDS = Words({"person": ["man", "people"], "dog": [], "tree": ["bush"], "sky": [], "light": []}, frozenset({"light"}))
ITEM = amber.AmberItem(1, "generative", ("person", "tree", "person"), ("dog", "sky"))


@pytest.mark.parametrize(
    ("nouns", "hallucinated", "covered", "imagined"),
    [
        (["man", "bush"], 0, 2, 0),
        (["man", "people", "person"], 0, 1, 0),  # the first match is credited, so a repeated word stays uncovered
        (["dog", "dog", "sky"], 3, 0, 2),  # mentions are counted
        (["light"], 0, 0, 0),  # a safe word is in the denominator alone
        (["xylophone"], 0, 0, 0),  # no word of AMBER: not counted at all
        ([], 0, 0, 0),
    ],
)
def test_one_description(nouns, hallucinated, covered, imagined):
    known = [noun for noun in nouns if noun in WORDS.known]
    chair, cover, hal, cog = generative({1: "x"}, {1: ITEM}, WORDS, nouns=lambda _: nouns)
    exact = (hallucinated / (len(known) + 0.001), covered / 3.001, 1 - (not hallucinated) / 1.001, imagined / 2.001)
    assert [m.value for m in (chair, cover, hal, cog)] == pytest.approx([round(value, 3) for value in exact])
    assert [metric.n for metric in (chair, cover, hal, cog)] == [len(known), 3, 1, 2]


def test_words_that_are_alike_are_credited(monkeypatch):
    """As with spaCy: likeness to an imagined object and to a shown one marks both, and is no hallucination."""
    alike = {("sky", "tree"), ("sky", "dog")}
    monkeypatch.setitem(amber_generative.SIMILARITIES, "exact", lambda: lambda one, other: (one, other) in alike)
    chair, cover, _, cog = generative({1: "x"}, {1: ITEM}, WORDS, nouns=lambda _: ["sky"])
    assert (chair.value, cover.value, cog.value) == (0.0, 0.333, 1.0)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Yes", "Yes"),
        ("**No**", "No"),
        (" no.", "No"),
        ("YES, it is", "Yes"),
        ("", ""),
        ("Nope", ""),
        ("It's a no", ""),
    ],
)
def test_the_tolerant_reading(text, meaning):
    assert amber.tolerant(text) == meaning


def folder(path: Path) -> Path:
    rows = [
        {"id": 1, "type": "generative", "truth": ["tree"], "hallu": ["dog"]},
        {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 3, "type": "discriminative-relation", "truth": "yes"},
    ]
    path.mkdir()
    path.joinpath("annotations.json").write_text(json.dumps(rows))
    path.joinpath("relation.json").write_text(json.dumps(WORDS.associated))
    path.joinpath("safe_words.txt").write_text("light")
    return path


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('[{"id": 4, "response": "No"}]', AnswersMismatch, "row 1 answers id 4; AMBER has 1 to 3"),
        ('[{"id": 2, "response": "No"}, {"id": 2, "response": "No"}]', AnswersMismatch, "row 2 answers id 2 once more"),
        ('[{"id": 2, "response": null}]', DataFormatError, "row 1 is .*an id .* and a response"),
        ('[{"id": true, "response": "No"}]', DataFormatError, "an id .a number. and a response"),
        ('[{"id": -1, "response": "No"}]', DataFormatError, "an id .a number. and a response"),
        ('[{"id": "²", "response": "No"}]', DataFormatError, "an id .a number. and a response"),
        ('{"id": 2, "response": "No"', DataFormatError, "line 1 is not JSON"),
        ("[]", DataFormatError, "has no rows"),
    ],
)
def test_responses_that_are_refused(tmp_path, content, error, message):
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(error, match=message):
        amber.read_responses(file, amber.read_items(folder(tmp_path / "data")))


QUERIES = [
    {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
    {"id": 2, "image": "AMBER_1.jpg", "query": "Is there a cloud in this image?"},
]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Is there a cloud in this image?\nPlease answer yes or no.", "image": "x/AMBER_1.jpg"}, ""),
        ({"query": "is there a cloud  in this image"}, ""),
        ({"image": "AMBER_1.jpg"}, ""),
        (
            {"prompt": "Is there a dog in the image?"},
            "row 1 was asked 'Is there a dog in the image.'.*AMBER asks 'Is there",
        ),
        ({"prompt": "Is there a cloud in this image?", "image": "AMBER_11.jpg"}, "about 'AMBER_11.jpg'; AMBER asks"),
        ({"image": 7}, "about 7; AMBER asks"),
        ({"prompt": 7}, "was asked 7"),
        ({"id": 3, "prompt": "Is there a cloud in this image?"}, "there is no query_..json with its id"),
        (
            {"answer": "Yes", "text": "Is there a cloud in this image?"},
            "no answer: of POPE and OHD-Caps the text is the",
        ),
    ],
)
def test_what_was_asked_is_compared(tmp_path, row, message):
    data, file = folder(tmp_path / "data"), tmp_path / "r.jsonl"
    (data / "query").mkdir()
    (data / "query/query_all.json").write_text(json.dumps(QUERIES))
    file.write_text(json.dumps({"id": 2, "text": "No"} | row))
    items, queries = amber.read_items(data), amber.read_queries(data)
    if not message:
        assert amber.read_responses(file, items, queries) == {2: "No"}
        return
    with pytest.raises((AnswersMismatch, DataFormatError), match=message):
        amber.read_responses(file, items, queries)


@needs_shared
def test_answers_to_pope_are_not_taken_for_those_to_amber(tmp_path):
    file = tmp_path / "answers.jsonl"
    rows = [{"question_id": n, "prompt": "Is there a dog in the image?", "text": "No"} for n in range(1, 3001)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AnswersMismatch, match="row 1 was asked 'Is there a dog"):
        amber.read_responses(file, amber.read_items(DATA), amber.read_queries(DATA))


@needs_shared
def test_ambers_own_queries():
    """All ids; the one of which two files ask different things takes either."""
    queries = amber.read_queries(DATA)
    assert set(queries) == set(range(1, 15221))
    assert {number: query.texts for number, query in queries.items() if len(query.texts) > 1} == {
        13193: ("Is there a computer in this image?", "Is there a chair in this image?")
    }


def test_descriptions_that_name_nothing_have_no_score(tmp_path):
    """0 of 0 is printed as 0 by the official script, and with it AMBER would be (100 + F1) / 2."""
    data = folder(tmp_path / "data")
    items = amber.read_items(data)
    said = {1: "", 2: "No", 3: "Yes"}
    with pytest.raises(AnswersMismatch, match="none of the 1 descriptions names an object"):
        amber_run.evaluate(said, items, data, nouns=str.split)
    scored = amber_run.evaluate(said | {1: "tree sky"}, items, data, nouns=str.split)
    values = {metric.name: metric.value for metric in scored.metrics}
    assert (values["chair"], values["f1"]) == (0.5, 0.999)  # 2 x 1 x 0.999 / (1 + 0.999 + 0.0001), P and R as printed
    assert values["amber"] == (1 - 0.5 + 0.999) / 2
    questions = amber_run.evaluate({2: "No", 3: "Yes"}, items, data, nouns=str.split)
    assert not {"amber", "chair"} & {metric.name for metric in questions.metrics}


def test_what_is_said_beside_the_numbers(tmp_path):
    data = folder(tmp_path / "data")
    items = amber.read_items(data)
    (note,) = amber_run.evaluate({2: "No", 3: "No"}, items, data).notes
    assert "LLaVA-1.5-7B's published F1 is 74.7 %" in note
    loud, _ = amber_run.evaluate({2: "No.", 3: "No"}, items, data).notes
    assert loud.startswith(
        'UNREAD: 1 of 2 answers (50.0 %) are neither "Yes" nor "No", first: 2: \'No.\'; the official'
    )
    items[13193] = amber.AmberItem(13193, items[2].type, ("no",))
    (note,) = amber_run.evaluate({13193: "Yes"}, items, data).notes
    assert "asks for a computer in query_all.json" in note


def test_a_file_that_was_cut_off(tmp_path):
    file, items = tmp_path / "r.json", amber.read_items(folder(tmp_path / "data"))
    file.write_text('[{"id": 2, "response": "No"}, {"id": 3, "resp')
    with pytest.raises(DataFormatError, match=r"is not JSON.*; the file does not end with ., it may have been cut off"):
        amber.read_responses(file, items)
    file.write_text('[{"id": 2, "response": "No"} {"id": 3}]')
    with pytest.raises(DataFormatError) as caught:
        amber.read_responses(file, items)
    assert "cut off" not in str(caught.value)


def test_annotations_out_of_order_are_refused(tmp_path):
    data = folder(tmp_path / "data")
    rows = json.loads((data / "annotations.json").read_text())
    (data / "annotations.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(DataFormatError, match="row 1 has the id 2"):
        amber.read_items(data)


def test_nltk_without_its_data(tmp_path):
    pytest.importorskip("nltk")
    data = folder(tmp_path / "data")
    (tmp_path / "r.json").write_text('[{"id": 1, "response": "a tree"}]')
    command = [sys.executable, "eval/amber.py", "--responses", tmp_path / "r.json", "--data", data]
    places = {"NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "LLAVA_OHD_DATA": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search("error: MissingDependency: NLTK has no 'punkt_tab'; set NLTK_DATA", done.stderr)
    assert "Traceback" not in done.stderr


def test_command(tmp_path):
    """Both forms of a file give the same; a part of the set is marked."""
    data = folder(tmp_path / "data")
    (tmp_path / "r.json").write_text('[{"id": 2, "response": "No"}, {"id": 3, "response": "No"}]')
    (tmp_path / "a.jsonl").write_text('{"question_id": "2", "text": "No"}\n{"question_id": "3", "text": "No"}\n')
    records = []
    for name in ("r.json", "a.jsonl"):
        command = [sys.executable, "eval/amber.py", "--responses", tmp_path / name, "--data", data]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        records.append(json.loads((tmp_path / f"{Path(name).stem}_scored" / "results.json").read_text()))
    assert "generative: 0 of 1 answered" in done.stdout
    sums = [record["details"].pop("answers") for record in records]
    assert sums[0] == [{"name": "r.json", "sha256": sha256_file(tmp_path / "r.json")}]
    assert records[0] == records[1]
    assert records[0]["complete"]
    assert records[0]["metrics"]["precision"]["value"] == 0.5
    (tmp_path / "a.jsonl").write_text('{"question_id": "3", "text": "No"}\n')
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "a_scored" / "results.json").read_text())["complete"]
