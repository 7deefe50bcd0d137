"""The prepared objects of COCO 2014: what is annotated and what the reference captions name, in one file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.chair_data import open_set, read_ground_truth, read_objects
from llava_ohd.evals.chair_prepare import SPLITS, prepared_objects
from llava_ohd.evals.chair_words import read_synonyms

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text("dog, puppy\nknife\ncup, mug\n")
    for number, split in enumerate(SPLITS):
        images = [{"id": 10 * number + i, "file_name": f"COCO_{split}_{10 * number + i:012d}.jpg"} for i in (1, 2)]
        instances = {
            "images": images,
            "categories": [{"id": 7, "name": "cup"}],
            "annotations": [{"id": 1, "image_id": images[0]["id"], "category_id": 7}],
        }
        captions = {
            "images": images,
            "annotations": [{"id": 1, "image_id": images[0]["id"], "caption": "Two knives and a puppy."}],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(instances))
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(captions))
    return tmp_path


def test_both_splits_are_what_scoring_reads_from_the_annotations(coco: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/prepare_chair.py"), "--annotations", str(coco)]
    command += ["--synonyms", str(coco / "synonyms.txt"), "--out", str(coco / "objects.json")]
    subprocess.run(command, check=True, capture_output=True)
    vocabulary = read_synonyms(coco / "synonyms.txt")
    found = read_objects(coco / "objects.json", vocabulary)
    assert found == {"1": {"cup", "dog", "knife"}, "2": set(), "11": {"cup", "dog", "knife"}, "12": set()}
    files = (coco / f"{kind}_val2014.json" for kind in ("instances", "captions"))
    expected = read_ground_truth(*files, vocabulary, rule="pattern")
    assert {key: found[key] for key in ("11", "12")} == {key: expected[key] for key in ("11", "12")}


def test_without_the_file_it_is_said_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_OHD_DATA", str(tmp_path))
    with pytest.raises(DataFormatError, match=r"does not exist; `python scripts/prepare_chair\.py --annotations DIR`"):
        open_set("coco")


def test_both_splits_are_needed(coco: Path) -> None:
    (coco / "captions_val2014.json").unlink()
    with pytest.raises(DataFormatError, match=r"captions_val2014.json does not exist; give the annotations of COCO"):
        prepared_objects(coco, coco / "synonyms.txt")
