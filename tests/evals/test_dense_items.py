"""Files of captions whose wrong words are known; the counts of the real ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense_items import read_items

REAL = Path(__file__).resolve().parents[3] / "shared/data/foil"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there: the published files")

FOIL = {
    "images": [{"id": 7, "file_name": "7.jpg"}],
    "annotations": [
        {
            "id": 1,
            "foil_id": 0,
            "image_id": 7,
            "caption": "A cat.",
            "target_word": "ORIG",
            "foil_word": "ORIG",
            "foil": False,
        },
        {
            "id": 1,
            "foil_id": 9,
            "image_id": 7,
            "caption": "A dog.",
            "target_word": "cat",
            "foil_word": "dog",
            "foil": True,
        },
    ],
}
VALSE = {
    "4": {"image_file": "4.jpg", "caption": "a cat", "foil": "a dog", "classes_foil": "dog", "mturk": {"caption": 2}},
    "5": {"image_file": "5.jpg", "caption": "a cup", "foil": "a key", "classes_foil": "key", "mturk": {"caption": 1}},
}
SEETRUE = {"image": "1.jpg", "image_caption": "A red cup", "caption_misalignment": "The cup is blue"}
RICH = {"image": "1.jpg", "prompt": 'a "red" cup, big', "labels": [1, 0, 1, 0], "score": 0.5}


def write(path: Path, content: Any) -> Path:
    lines = "\n".join(map(json.dumps, content)) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(lines)
    return path


def test_foil_in_its_own_format(tmp_path: Path) -> None:
    name, [right, foil] = read_items(write(tmp_path / "foil.json", FOIL))
    assert name == "foil"
    assert (right.right, right.wrong, right.image, right.pair) == (True, (), "7.jpg", "1")
    assert (foil.right, foil.wrong, foil.pair, foil.id) == (False, ("dog",), "1", "1/foil/9")


def test_a_foil_may_have_the_number_of_another_original(tmp_path: Path) -> None:
    first, foil = FOIL["annotations"]
    rows = [first, {**foil, "foil_id": 2}, {**first, "id": 2}, {**foil, "id": 2, "foil_id": 1}]
    _, items = read_items(write(tmp_path / "foil.json", {**FOIL, "annotations": rows}))
    assert len({item.id for item in items}) == 4
    assert [item.pair for item in items] == ["1", "1", "2", "2"]


def test_valse_keeps_rows_that_two_of_three_people_agree_on(tmp_path: Path) -> None:
    name, items = read_items(write(tmp_path / "valse.json", VALSE))
    assert (name, [item.id for item in items]) == ("foil", ["4/caption", "4/foil"])


def test_rows_of_text(tmp_path: Path) -> None:
    name, [item] = read_items(write(tmp_path / "s.jsonl", [SEETRUE]))
    assert (name, item.feedback, item.right) == ("seetrue", "The cup is blue", False)
    name, [item] = read_items(write(tmp_path / "r.jsonl", [RICH]))
    assert (name, item.wrong, item.score) == ("rich-hf", ("1_red", "3_big"), 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "format of none"),
        ({"a": 1}, "format of none"),
        ("text", "format of none"),
        (list(VALSE.values()), "format of none"),
        ([SEETRUE, {"image": "2.jpg"}], "a row of seetrue lacks 'caption_misalignment'"),
        ({"4": {**VALSE["4"], "mturk": {}}}, "a row of foil lacks 'caption'"),
        ({"5": VALSE["5"]}, "has no caption"),
        ({"images": [], "annotations": FOIL["annotations"]}, "a row of foil lacks 7"),
        ([{**RICH, "labels": [1]}], "a label for each of 4 words"),
    ],
)
def test_what_is_no_such_file(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_items(write(tmp_path / "file.json", content))


@real
def test_counts_of_the_published_files() -> None:
    name, items = read_items(REAL / "foil-it.json")
    assert (name, len(items)) == ("foil", 2 * 943)
    name, items = read_items(REAL / "nocaps-val-foil.json")
    foils = [item for item in items if not item.right]
    assert (name, len(items), len(foils)) == ("nocaps-foil", 5000, 2500)
    assert sum(len(item.wrong[0].split()) > 1 for item in foils) == 285
    assert Counter(item.group for item in foils) == {"in-domain": 245, "near-domain": 1494, "out-domain": 761}
    name, items = read_items(REAL / "hat-trainval.json")
    assert (name, len(items), sum(not item.right for item in items)) == ("hat", 400, 135)
    assert sum(len(item.wrong) for item in items) == 268
