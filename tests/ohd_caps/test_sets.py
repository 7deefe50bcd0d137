"""Folders of test and dev rows: the authors' layout, ours, and where dev rows are found."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.ohd_caps.sets import dev_file, read_dev, read_test_sets

REAL = Path(__file__).parents[3] / "shared" / "data" / "ohd_caps"
FLAT = {"image": "a.jpg", "caption": ["###", "a\ndog", "a cat", "##z#"], "valid_caption": [0, 1, 1, 0], "label": 2}


def test_the_training_file_is_read_from_its_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all_train.zip", "w") as archive:
        archive.writestr("all_train.json", json.dumps([FLAT, FLAT]))
        archive.writestr("__MACOSX/._all_train.json", "x")
    rows = read_rows(tmp_path / "all_train.zip")
    assert [(row.caption, [n.caption for n in row.negatives]) for row in rows] == [("a cat", ["a dog"])] * 2
    assert read_rows(tmp_path / "all_train.zip", verbatim=True)[0].negatives[0].caption == "a\ndog"
    with zipfile.ZipFile(tmp_path / "all_train.zip", "a") as archive:
        archive.writestr("more.json", "[]")
    with pytest.raises(DataFormatError, match="archive with one"):
        read_rows(tmp_path / "all_train.zip")


def test_our_folder(tmp_path: Path) -> None:
    row = OhdRow("a", "b", (Negative("c", "random", ("d",)),), ())
    for name in ("train", "test", "test_more"):
        write_rows(tmp_path / f"{name}.jsonl", [row])
    assert read_test_sets(tmp_path) == {"test": [row], "test_more": [row]}
    assert read_test_sets(tmp_path / "test.jsonl") == {"test": [row]}
    assert dev_file(tmp_path) == dev_file(tmp_path / "test.jsonl") == tmp_path / "train.jsonl"
    assert dev_file(tmp_path / "train.jsonl") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFormatError, match="no test file"):
        read_test_sets(tmp_path / "empty")


def test_dev_rows_may_lack_some_negatives_but_not_most(tmp_path: Path) -> None:
    negatives = tuple(Negative(f"a cat and a dog {n}", "random", ("dog",)) for n in range(27))
    rows = [OhdRow(f"{count}.jpg", "a cat", negatives[:count], ("cat",)) for count in (27, 26, 20, 14, 13, 4, 2)]
    write_rows(tmp_path / "dev.jsonl", rows)
    assert read_dev(tmp_path / "dev.jsonl") == rows[:4]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the authors' files are not at {REAL}")
def test_the_authors_folder() -> None:
    sets = read_test_sets(REAL)
    assert {name: len(rows) for name, rows in sets.items()} == {"coco": 500, "flickr": 500, "nocaps": 500}
    assert Counter(n.strategy for n in sets["nocaps"][0].negatives)["random"] == 7  # known from the annotations
    assert dev_file(REAL) == dev_file(REAL / "test/coco_out_label.json") == REAL / "dev/coco_annotations.json"
    assert len(read_dev(REAL / "dev/dev_data.json", limit=2000)) == 990  # compositional rows are left out
