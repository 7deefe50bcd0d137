"""The audit: every finding on rows of our own, and the counts on the authors' files; the cleaned copy has none left."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ohd.ohd_caps.audit import audit, clean, overlaps
from llava_ohd.ohd_caps.audit_report import write_clean
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow

ROOT = Path(__file__).parents[2]
REAL = Path(__file__).parents[3] / "shared" / "data" / "ohd_caps"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the authors' files are not at {REAL}")
CAPTION = "A cat on a mat."
ROW = OhdRow(
    "COCO_val2014_000000000001.jpg",
    CAPTION,
    (
        Negative("A cat and a dog on a mat.", "random", ("dog",)),
        Negative("A cat and a dog on a mat.", "popular", ("dog",)),
        Negative(CAPTION, "removal", ("cat",)),
        Negative("Sure, here is it: a cup on a mat.", "adversarial", ("cup",)),
        Negative('"A cat\nwith a hat on a mat."', "adversarial", ("hat",)),
        Negative("A cat on a rug.", "adversarial", ("sofa",)),
        Negative("Cats on a mat with a mat.", "random", ("mat",)),
        Negative("word " * 61, "alteration", ("cat",)),
    ),
    ("cat", "mat"),
)


def test_every_finding_is_counted() -> None:
    found = audit([ROW])
    assert (found.rows, found.images, found.negatives) == (1, 1, 8)
    assert (found.repeated_rows, found.repeated, found.equal_rows, found.equal) == (1, 1, 1, 1)
    assert (found.chatter, found.newlines, found.quoted, found.long) == (1, 1, 1, 1)
    assert (found.inserted, found.missing, found.present) == (6, 1, 1)


def test_the_cleaned_copy_has_none_of_it() -> None:
    [row] = clean([ROW])
    assert [n.caption for n in row.negatives] == ["A cat and a dog on a mat.", "A cat with a hat on a mat."]
    assert clean([ROW], excluded={"000000000001"}) == []
    found = audit([row])
    assert not any((found.repeated, found.equal, found.chatter, found.newlines, found.quoted, found.missing))


def test_images_in_common_whatever_their_names() -> None:
    other = OhdRow("train2017/000000000001.jpg", "a", (Negative("b", "random", ()),), ())
    assert overlaps({"a": [ROW], "b": [other], "c": [OhdRow("x.jpg", "a", other.negatives, ())]}) == {("a", "b"): 1}


@needs_real
@pytest.mark.parametrize(
    ("file", "repeated", "equal", "chatter", "newlines", "quoted", "missing", "present", "long"),
    [  # facts of the data: counted once, by other code
        ("dev/coco_annotations", 582, 7, 13, 25, 466, 1.0, 0.5, 1),
        ("dev/dev_data", 586, 133, 13, 43, 466, None, None, 1),
        ("test/coco_annotations", 297, 0, 4, 10, 218, 1.5, 0.1, 5),
        ("test/flickr_annotations", 279, 2, 3, 9, 203, 0.8, 0.5, 26),
        ("test/nocaps_annotations", 240, 2, 2, 6, 254, 1.1, 0.8, 2),
        ("test/nocaps_out_label", 206, 2, 2, 0, 232, None, None, 2),
    ],
)
def test_counts_on_the_authors_files(
    file: str,
    repeated: int,
    equal: int,
    chatter: int,
    newlines: int,
    quoted: int,
    missing: float | None,
    present: float | None,
    long: int,
) -> None:
    found = audit(read_rows(REAL / f"{file}.json", verbatim=True))
    assert (found.repeated_rows, found.equal_rows, found.chatter, found.newlines, found.quoted, found.long) == (
        repeated,
        equal,
        chatter,
        newlines,
        quoted,
        long,
    )
    if missing is not None:
        assert round(100 * found.missing / found.inserted, 1) == missing
        assert round(100 * found.present / found.inserted, 1) == present


@needs_real
def test_nine_compositional_dev_images_are_test_images() -> None:
    dev = read_rows(REAL / "dev/dev_data.json")
    files = {"compositional": dev[:990], "dev": dev[990:], "test": read_rows(REAL / "test/coco_out_label.json")}
    assert overlaps(files)["compositional", "test"] == 9
    assert ("dev", "test") not in overlaps(files)


def test_training_files_are_told_from_test_files_by_a_word(tmp_path: Path) -> None:
    other = replace(ROW, image="other.jpg")
    rows = {"latest/train": [ROW, other], "contest/dev": [ROW, other], "ohd_caps/coco_test2014": [ROW]}
    kept = {path.stem: count for path, count, _ in write_clean(rows, tmp_path, lambda text: False)}
    assert kept == {"train": 1, "dev": 1, "coco_test2014": 1}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "scripts" / "audit_ohd_caps.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_command_prints_counts_and_writes_clean_copies(tmp_path: Path) -> None:
    for name in ("dev/dev.jsonl", "test/test.jsonl"):
        write_rows(tmp_path / "data" / name, [ROW, OhdRow(name, "a", (Negative("b", "removal", ()),), ())])
    done = command("--data", tmp_path / "data", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 images are in both dev/dev and test/test" in done.stdout
    assert len(read_rows(tmp_path / "out/dev/dev.jsonl")) == 1  # the other row's image is a test image
    assert len(read_rows(tmp_path / "out/test/test.jsonl")) == 2
    record = json.loads((tmp_path / "out/audit.json").read_text())
    assert record["files"]["test/test"]["chatter"] == 1
    assert command("--help").returncode == 0
    wrong = command("--data", tmp_path / "nowhere.json")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
