"""eval/chair.py on captions that are there."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.files import write_json

REPOSITORY = Path(__file__).resolve().parents[2]
SAID = [
    {"image_id": 1, "caption": "Two dogs on a bench"},
    {"image_id": "COCO_val2014_000000000002.jpg", "caption": "a dog. a bus, a toilet seat"},
]


@pytest.fixture
def data(tmp_path):
    """A folder as `$LLAVA_OHD_DATA`, of two images."""
    folder = tmp_path / "data/chair"
    folder.mkdir(parents=True)
    folder.joinpath("synonyms.txt").write_text("dog, puppy\nbus\nbench\nchair, seat\ntoilet\n")
    objects = {"categories": ["dog", "bus", "bench", "chair", "toilet"], "images": {"1": [0], "2": [1, 4], "3": []}}
    write_json(folder / "coco2014_gt_objects.json", objects)
    return folder.parent


def run(data, *arguments, status=0):
    command = [sys.executable, "eval/chair.py", *map(str, arguments)]
    places = {"LLAVA_OHD_DATA": str(data)}
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def captions(folder, rows=SAID):
    path = folder / "said.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_coco_by_pattern(data, tmp_path):
    printed = run(data, "--captions", captions(tmp_path), "--rule", "pattern", "--objects", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out/results.json").read_text())
    values = {name: row["value"] for name, row in record["metrics"].items()}
    assert values == {"chair_i": 0.5, "chair_s": 1.0, "recall": pytest.approx(2 / 3), "length": 6.0}
    assert record["rule"] == "pattern (LisaAnne/Hallucination@6e4d33c utils/chair.py)"
    assert (record["set"], record["n"], record["complete"]) == ("coco2014", 2, True)
    assert record["settings"]["image_list"]["images"] == 2
    assert record["details"]["published_length"] == 6.0
    objects = record["details"]["objects"]
    assert objects["dog"] == {"hallucinated": 1, "mentions": 2, "images": 1, "named": 1}
    assert objects["bench"] == {"hallucinated": 1, "mentions": 1, "images": 0, "named": 0}
    assert objects["bus"] == {"hallucinated": 0, "mentions": 0, "images": 1, "named": 0}  # singularised to "bu"
    assert list(objects)[:2] == ["bench", "dog"]
    assert [line.split() for line in printed.splitlines() if line.startswith("  dog ")] == [["dog", *"1211"]]


def test_protocol_options(data, tmp_path):
    (tmp_path / "list.txt").write_text("2\n")
    said = captions(tmp_path)
    run(data, "--captions", said, "--set", "coco", "--image_list", tmp_path / "list.txt", "--drop_unfinished")
    record = json.loads((tmp_path / "said_scored/results.json").read_text())
    assert record["rule"].startswith("pattern")
    assert record["n"] == 1
    assert record["metrics"]["chair_i"] == {"value": 1.0, "n": 1, "better": "lower"}
    assert record["settings"]["drop_unfinished"]


def test_all_rules_side_by_side(data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("nltk")
    folder = REPOSITORY.parent / "shared/data/nltk_data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    monkeypatch.setenv("LLAVA_OHD_DATA", str(data))
    arguments = ("--captions", captions(tmp_path), "--set", "coco", "--all-rules", "--nltk_data", folder)
    monkeypatch.setattr(sys, "argv", ["chair.py", *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "eval/chair.py"), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: row[1:] for row in rows if row[0] in ("pattern", "exact", "wordnet")}
    assert {rule: row[-1] for rule, row in table.items()} == {"pattern": "4", "exact": "5", "wordnet": "5"}
    assert table["wordnet"][:2] == ["40.00", "100.00"]
    other = json.loads((tmp_path / "said_scored/results.json").read_text())["details"]["other_rules"]
    assert other["exact"]["chair_i"] == 0.6


def test_a_folder_of_coco(data, tmp_path):
    """Reference captions are read by the rule that reads the captions; a part of the images is marked."""
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in (1, 2, 3)]
    record = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    write_json(tmp_path / "coco/annotations/instances_val2014.json", record)
    told = {"images": images, "annotations": [{"image_id": 1, "caption": "Dogs on benches."}]}
    write_json(tmp_path / "coco/annotations/captions_val2014.json", told)
    arguments = ("--captions", captions(tmp_path), "--set", tmp_path / "coco", "--split", "val2014")
    assert "NOT COMPLETE" in run(data, *arguments, "--rule", "pattern")
    scored = json.loads((tmp_path / "said_scored/results.json").read_text())
    assert scored["metrics"]["chair_i"] == {"value": 0.5, "n": 4, "better": "lower"}
    assert not scored["complete"]
    assert "NOT COMPLETE" not in run(data, *arguments, "--limit", "2")
    scored = json.loads((tmp_path / "said_scored/results.json").read_text())
    assert scored["metrics"]["recall"] == {"value": 0.0, "n": 0, "better": "higher"}  # exact: "dogs" is no dog


def test_one_image_by_its_id_and_by_another_name(data, tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    write_json(
        tmp_path / "set/annotations/instances_test.json", {"images": images, "categories": [], "annotations": []}
    )
    write_json(tmp_path / "set/annotations/captions_test.json", {"images": images, "annotations": []})
    rows = [{"image_id": 1, "caption": "a dog"}, {"image": "a.png", "caption": "a bus"}]
    arguments = ("--set", tmp_path / "set", "--out", tmp_path / "out")
    refused = run(data, "--captions", captions(tmp_path, rows), *arguments, status=2)
    assert "AnswersMismatch: 1 images have more than one caption, first: ['1']" in refused
    rows[1]["image"] = "b.png"
    run(data, "--captions", captions(tmp_path, rows), *arguments)
    assert json.loads((tmp_path / "out/results.json").read_text())["n"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image_id": 4, "caption": "a dog"}], "AnswersMismatch: 1 of 1 captions are of images without ground truth"),
        ([{"image_id": 4, "caption": "a dog"}], "--set coco or --rule pattern for COCO's images of 2014"),
        ([*SAID, {"image_id": 2, "caption": ""}], "AnswersMismatch: 1 images have more than one caption, first: ['2']"),
        ([{"image_id": 1}], "caption or text is missing, or no text"),
        ([{"question_id": 1, "text": "a dog"}], "the question_id is that of a question"),
        ([{"image_id": 1, "text": " \n"}, {"image_id": 2, "text": ""}], "AnswersMismatch: all 2 captions are empty"),
    ],
)
def test_captions_that_are_refused(data, tmp_path, rows, message):
    out = tmp_path / "out"
    assert message in run(data, "--captions", captions(tmp_path, rows), "--set", "coco", "--out", out, status=2)
    assert not out.exists()


def test_captions_that_name_nothing(data, tmp_path):
    rows = [{"image_id": 1, "caption": "a nice view"}]
    printed = run(data, "--captions", captions(tmp_path, rows), "--set", "coco", "--out", tmp_path / "out")
    assert "NO CAPTION NAMES AN OBJECT: chair_i is undefined" in printed
    unfinished = captions(tmp_path, [{"image_id": 1, "caption": "a dog"}])
    refused = run(data, "--captions", unfinished, "--set", "coco", "--drop_unfinished", status=2)
    assert "all 1 captions are empty (before their unfinished sentences were dropped some were not)" in refused


def test_objects_that_are_refused(data, tmp_path):
    said, path = captions(tmp_path), tmp_path / "objects.json"
    for content, message in (
        ({"categories": ["dog", "cow"], "images": {}}, "no line of the synonyms file begins with cow"),
        ({"categories": ["dog"], "images": {"1": [1]}}, "IndexError"),
        ({"categories": ["dog"], "images": {"1": [-1]}}, "a negative place"),
        ({"images": []}, "KeyError"),
    ):
        write_json(path, content)
        assert message in run(data, "--captions", said, "--set", path, "--rule", "pattern", status=2)


def test_without_data(tmp_path):
    said = captions(tmp_path)
    assert "give as --set coco (captions of COCO's images of 2014), world" in run("", "--captions", said, status=2)
    assert "CHAIR's ground truth is looked for in $LLAVA_OHD_DATA" in run(
        "", "--captions", said, "--rule", "pattern", status=2
    )
