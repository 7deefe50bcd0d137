"""The image-free controls: small cases by hand, and the numbers counted on the authors' files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava_ohd.ohd_caps.blind import fitting_rows, table
from llava_ohd.ohd_caps.controls import accuracies, accuracy, chance, longest, medoid, outlier, shortest
from llava_ohd.ohd_caps.fitted import KINDS, cross_fitted, fit
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.ohd_caps.sets import read_test_sets

ROOT = Path(__file__).parents[2]
REAL = Path(__file__).parents[3] / "shared" / "data" / "ohd_caps"


def row(caption: str, *negatives: str) -> OhdRow:
    return OhdRow("a.png", caption, tuple(Negative(text, "random", ()) for text in negatives), ())


def test_chance_ties_everything() -> None:
    assert chance(["a", "b", "c"]) == [0, 1, 2]
    assert accuracy([row("a", "b", "c", "d")], chance) == 0.25


def test_shortest_counts_tokens_not_characters() -> None:
    assert shortest(["A ball, a cup.", "extraordinarily red ball", "a ball and a cup"]) == [1]
    assert shortest(["two words", "also two!", "these are three"]) == [0, 1]


def test_medoid_is_the_middle_of_the_edits() -> None:
    # Dice by hand: (0,1) 2·3/(3+5), (0,2) 2·3/(3+5), (1,2) 2·3/(5+5): the first has 1.5, the others 1.35.
    assert medoid(["red ball", "red ball cup", "red ball hat"]) == [0]


def test_equal_captions_share_the_place() -> None:
    assert medoid(["red ball", "red ball", "green cup"]) == [0, 1]
    assert accuracy([row("red ball", "red ball", "green cup")], medoid) == 0.5


def test_captions_without_a_word_do_not_divide_by_zero() -> None:
    assert medoid(["!", "?"]) == [0, 1]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the authors' files are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "expected_shortest", "expected_medoid"),
    [("coco", 3.7, 73.2), ("flickr", 4.8, 87.2), ("nocaps", 4.9, 80.6)],
)
def test_the_authors_test_files(name: str, expected_shortest: float, expected_medoid: float) -> None:
    found = accuracies(read_rows(REAL / "test" / f"{name}_out_label.json"))
    assert {key: round(100 * value, 1) for key, value in found.items()} == {
        "chance": 3.6,
        "shortest": expected_shortest,
        "medoid": expected_medoid,
    }


def test_opposites() -> None:
    captions = ["red ball", "red ball cup hat", "green star"]
    assert (longest(captions), outlier(captions)) == ([1], [2])


def test_a_fitted_control_learns_what_gives_captions_away() -> None:
    rows = [row(f"a {kind} here", f"a {kind} there", f"the {kind} there") for kind in ("cup", "ball", "key", "hat")]
    control = fit(rows, *KINDS["bag_of_ngrams"])
    assert control(["the lamp there", "a lamp here", "a lamp there"]) == [1]
    assert control(["x", "y"]) == [0, 1]  # nothing known: a tie
    parts = cross_fitted(rows, *KINDS["bag_of_ngrams"], folds=2)
    assert sorted(index for _, part in parts for index in part) == [0, 1, 2, 3]


def test_the_fit_is_at_the_minimum() -> None:
    rows = [row("red ball", "red ball, a cup"), row("cup", "a cup", "a red cup"), row("a hat", "hat")]
    features, penalty = KINDS["bag_of_ngrams"]
    control = fit(rows, features, penalty)

    def loss(weights: np.ndarray) -> float:  # written out slowly
        total = 0.0
        for one in rows:
            scores = control.features.matrix(one.captions) @ weights
            total += np.log(np.exp(scores).sum()) - scores[0]
        return total / len(rows) + penalty / 2 * weights @ weights

    best, rng = loss(control.weights), np.random.default_rng(0)
    assert all(loss(control.weights + 0.05 * rng.normal(size=len(control.weights))) > best for _ in range(20))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the authors' files are not at {REAL}")
def test_fitted_controls_on_the_authors_files() -> None:
    sets = read_test_sets(REAL)
    dev = fitting_rows(REAL, sets)
    assert dev.source == "990 rows of dev/coco_annotations.json"
    controls = {kind: fit(dev.rows, *KINDS[kind]) for kind in ("style", "bag_of_ngrams")}
    style, grams = ([100 * accuracy(rows, control) for rows in sets.values()] for control in controls.values())
    # counted before by other code, whose n-grams were cut a little differently
    assert style == pytest.approx([22.4, 8.8, 32.6], abs=0.7)
    assert grams == pytest.approx([41.2, 31.0, 52.4], abs=4.0)
    assert sum(grams) / 3 == pytest.approx(41.5, abs=1.7)


def test_controls_are_not_fitted_on_rows_that_are_measured(tmp_path: Path) -> None:
    rows = [replace(row(f"a {kind}", f"a {kind} cup"), image=f"{kind}.jpg") for kind in "abcdef"]
    write_rows(tmp_path / "test.jsonl", rows[:4])
    write_rows(tmp_path / "train.jsonl", rows[2:])
    measured = read_test_sets(tmp_path / "test.jsonl")
    fitting = fitting_rows(tmp_path / "test.jsonl", measured)
    assert [one.image for one in fitting.rows] == ["e.jpg", "f.jpg"]
    assert fitting.source.endswith("train.jsonl, without 2 whose images are measured")
    assert fitting_rows(tmp_path, measured, tmp_path / "test.jsonl").rows == ()


def test_table() -> None:
    rows = {"one": [row("a", "b")], "two": [row("a", "b")] * 2}
    text = table({"one": {"chance": 0.5}, "two": {"chance": 0.25}}, rows, "title")
    assert [line.split() for line in text.splitlines()] == [
        ["title", "one", "two", "mean"],
        ["rows", "1", "2"],
        ["chance", "50.0", "25.0", "37.5"],
    ]


def test_controls_need_neither_torch_nor_encoder(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [row(f"a {kind}", f"a {kind} cup", f"the {kind}") for kind in "abcdef"])
    code = (
        "import runpy, sys; sys.argv = ['x', '--controls-only', '--data', sys.argv[1]]\n"
        "runpy.run_path('eval/ohd_caps.py', run_name='__main__')\nassert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "medoid of the captions" in done.stdout
    assert "the other rows of the set" in done.stdout
