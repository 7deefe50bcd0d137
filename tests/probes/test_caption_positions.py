"""Where captions name the largest object, counted by hand."""

import json
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.caption_positions import largest_position, read_areas, read_texts

AREAS = {"1": {"dog": 9.0, "cat": 4.0, "cup": 1.0}, "2": {"cat": 5.0, "dog": 2.0}, "3": {"cat": 1.0}}
NAMES = ("dog", "cat", "cup", "hot dog")


def test_ranks_by_hand() -> None:
    texts = {
        "1": ["a dog and a cat", "a cup, a dog and a cat", "a cat", "a cat near a hot dog"],
        "2": ["two dogs behind a cat"],
        "3": ["a cat"],  # one object: no question
    }
    found = largest_position(texts, AREAS, NAMES)
    assert (found.named.value, found.named.n, found.named.independent) == (3 / 5, 5, 2)
    assert [e.value for e in found.ranks[2]] == [0.5, 0.5]
    assert [e.value for e in found.ranks[3]] == [0.0, 1.0, 0.0]
    assert found.relative.value == pytest.approx((0.25 + 1.0) / 2)  # image 1: mean of 0 and 1/2
    assert found.captions == 3


def test_no_bias_and_full_bias() -> None:
    areas = {str(i): {"dog": 2.0, "cat": 1.0} for i in range(400)}
    mixed = {str(i): ["a dog and a cat" if i % 2 else "a cat and a dog"] for i in range(400)}
    assert largest_position(mixed, areas, NAMES).p == pytest.approx(1.0)
    biased = largest_position({str(i): ["a dog and a cat"] for i in range(400)}, areas, NAMES)
    assert biased.relative.value == 0.0
    assert (biased.p or 1.0) < 1e-80  # normal, z = 20
    # many captions of few images prove little
    few = largest_position({str(i): ["a dog and a cat"] * 1000 for i in range(3)}, areas, NAMES)
    assert 0.05 < (few.p or 0.0) < 0.15


def test_readers(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "categories": [{"id": 7, "name": "Dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "area": 3},
            {"image_id": 1, "category_id": 7, "area": 5},
            {"image_id": 1, "category_id": 8, "area": 4},
            {"image_id": 2, "category_id": 8, "area": 4, "iscrowd": 1},
        ],
    }
    (tmp_path / "i.json").write_text(json.dumps(instances))
    assert read_areas(tmp_path / "i.json") == ({"1.jpg": {"dog": 5.0, "cat": 4.0}}, ["dog", "cat"])
    captions = {"images": instances["images"], "annotations": [{"image_id": 1, "caption": "a  dog"}]}
    (tmp_path / "c.json").write_text(json.dumps(captions))
    assert read_texts(tmp_path / "c.json") == {"1.jpg": ["a dog"]}
    (tmp_path / "c.jsonl").write_text('{"image": "1.jpg", "text": "a dog"}\n{"image": "1.jpg", "caption": "a cat"}\n')
    assert read_texts(tmp_path / "c.jsonl") == {"1.jpg": ["a dog", "a cat"]}
    (tmp_path / "c.jsonl").write_text('{"image": "1.jpg"}\n')
    with pytest.raises(DataFormatError, match=r"row 1 has \['image'\]; "):
        read_texts(tmp_path / "c.jsonl")
    (tmp_path / "i.json").write_text("[]")
    with pytest.raises(DataFormatError, match="no COCO instances file"):
        read_areas(tmp_path / "i.json")
    with pytest.raises(DataFormatError, match="no image of these captions has objects of different area"):
        largest_position({"9": ["a dog"]}, AREAS, NAMES)
