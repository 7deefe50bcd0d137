"""The three forms of OHD-Caps, on small files of our own and on the authors' files where they lie at hand."""

import json
from collections import Counter
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.records import UNKNOWN, Negative, OhdRow

REAL = Path(__file__).parents[3] / "shared" / "data" / "ohd_caps"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the authors' files are not at {REAL}")

ANNOTATION = {
    "file_path": "a.jpg",
    "positive_sample": "A cat on\na mat.",
    "ground_truth": ["cat", "mat"],
    "random_samples": {"dog": "A cat and a dog\non a mat."},
    "popular_samples": {"dog, cup": "A cat, a dog and a cup on a mat."},
    "adversarial_samples": {"cup": "A cat with a cup on a mat."},
    "delete_samples": {"cat": "Just a mat.", "cat, sofa": "A bird on a branch."},
}
FLAT = {"image": "a.jpg", "caption": ["###", "a dog", "a cat", "##z#"], "valid_caption": [0, 1, 1, 0], "label": 2}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_annotation_form(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "a.json", ANNOTATION))
    assert row == OhdRow(
        "a.jpg",
        "A cat on a mat.",
        (
            Negative("A cat and a dog on a mat.", "random", ("dog",)),
            Negative("A cat, a dog and a cup on a mat.", "popular", ("dog", "cup")),
            Negative("A cat with a cup on a mat.", "adversarial", ("cup",)),
            Negative("Just a mat.", "removal", ("cat",)),
            Negative("A bird on a branch.", "alteration", ("cat", "sofa")),
        ),
        ("cat", "mat"),
    )


def test_flat_form_puts_the_label_first_and_drops_fillers(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "f.json", FLAT))
    assert row == OhdRow("a.jpg", "a cat", (Negative("a dog", UNKNOWN, ()),), ())


def test_our_form_survives_writing_and_reading(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.json", ANNOTATION, ANNOTATION))
    write_rows(tmp_path / "ours.jsonl", rows)
    assert read_rows(tmp_path / "ours.jsonl") == rows


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image": "a.jpg"}, "none of"),
        ({**ANNOTATION, "positive_sample": ""}, "a text is expected"),
        ({key: ANNOTATION[key] for key in ANNOTATION if key != "random_samples"}, "random_samples"),
        ({**FLAT, "label": 4}, "an index from 0 to 3"),
        ({**FLAT, "label": 0}, "filler"),
        ({**FLAT, "valid_caption": [1]}, "1 entries for 4"),
        ({"image": "a", "caption": "b", "negatives": [], "objects": []}, "no negative caption"),
        (
            {"image": "a", "caption": "b", "negatives": [{"caption": "c", "strategy": "odd", "objects": []}]},
            "strategy 'odd'",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, record: object, said: str) -> None:
    path = write(tmp_path / "wrong.json", ANNOTATION, record)
    with pytest.raises(DataFormatError, match="row 2") as error:
        read_rows(path)
    assert said in str(error.value)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataFormatError, match="is empty"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(DataFormatError, match="no rows"):
        write_rows(tmp_path / "out.jsonl", [])
    assert not (tmp_path / "out.jsonl").exists()


@needs_real
@pytest.mark.parametrize(("name", "n_annotations", "removals"), [("coco", 500, 414), ("nocaps", 565, 293)])
def test_the_authors_two_forms_agree(name: str, n_annotations: int, removals: int) -> None:
    annotations = read_rows(REAL / "test" / f"{name}_annotations.json")
    flat = read_rows(REAL / "test" / f"{name}_out_label.json")
    assert (len(annotations), len(flat)) == (n_annotations, 500)
    for ours, theirs in zip(annotations, flat, strict=False):
        assert (ours.image, ours.caption) == (theirs.image, theirs.caption)
        assert Counter(ours.captions) == Counter(theirs.captions)
    strategies = Counter(negative.strategy for row in annotations for negative in row.negatives)
    assert strategies["removal"] == removals
    assert strategies["random"] == strategies["popular"] == strategies["adversarial"] == 7 * n_annotations


@needs_real
def test_dev_file_has_full_and_compositional_rows() -> None:
    rows = read_rows(REAL / "dev" / "dev_data.json")
    assert Counter(len(row.negatives) for row in rows) == {27: 990, 4: 467, 3: 453, 2: 70}
    assert not any("##" in caption for row in rows for caption in row.captions)
