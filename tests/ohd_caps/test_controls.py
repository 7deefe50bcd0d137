"""The image-free controls: small cases by hand, and the numbers counted on the authors' files."""

from pathlib import Path

import pytest

from llava_ohd.ohd_caps.controls import accuracies, accuracy, chance, medoid, shortest
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow

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
