"""Balanced pairs: what gives captions away in made-up rows no longer does, and a split that fails is not written."""

import random
import re
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.blind import Fitting, cross_fitted_accuracy
from llava_ohd.ohd_caps.controls import CONTROLS, OPPOSITES, accuracies
from llava_ohd.ohd_caps.debias import debias, one_surface
from llava_ohd.ohd_caps.debias_report import check, write_split
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow

KINDS = ["ball", "box", "cone", "cup", "star", "ring", "key", "lamp", "bell", "drum"]


def rows(count: int, seed: int) -> list[OhdRow]:
    """Captions of two kinds; most negatives add "as well as", some replace or remove a kind."""
    rng, found = random.Random(seed), []
    for number in range(count):
        one, two, other, more = rng.sample(KINDS, 4)
        texts = [f"A {one} and a {two} as well as a {name}." for name in (other, more)]
        texts += [f'"A {one} and a {other}."', f"A {other} and a {two}.", f"A {one}."]
        negatives = tuple(Negative(text, "random", ()) for text in texts)
        found.append(OhdRow(f"{number}.png", f"A {one} and a {two}.", negatives, ()))
    return found


def test_one_surface() -> None:
    assert one_surface(' "a cat  on a mat , asleep ." ') == "A cat on a mat, asleep"
    assert one_surface("The man's hat!") == "The man's hat"


def test_what_gave_captions_away_no_longer_does() -> None:
    released = rows(300, 0)
    assert cross_fitted_accuracy(released, "bag_of_ngrams") > 0.3  # chance is 1/6
    split = debias({"test": released, "dev": rows(300, 1)}, "dev", rounds=3)
    assert [row.image for row in split["test"]] == [row.image for row in released]
    assert all(len(row.negatives) == 1 for row in split["test"])
    for name, value in accuracies(split["test"], {**CONTROLS, **OPPOSITES}).items():
        assert value == pytest.approx(0.5, abs=0.05), name
    assert cross_fitted_accuracy(split["test"], "bag_of_ngrams") < 0.55
    assert split == debias({"test": released, "dev": rows(300, 1)}, "dev", rounds=3)


def test_a_split_that_is_not_balanced_is_refused(tmp_path: Path) -> None:
    hopeless = [OhdRow(row.image, row.caption, row.negatives[:1], ()) for row in rows(60, 0)]
    with pytest.raises(DataFormatError, match=re.escape("not debiased")):
        write_split({"test": hopeless}, Fitting(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    check({"test": {"chance": 0.5, "shortest": 0.55}})


def test_a_row_without_a_different_negative_is_named() -> None:
    row = OhdRow("odd.png", "A cat.", (Negative("a cat", "random", ()),), ())
    with pytest.raises(DataFormatError, match=r"odd\.png"):
        debias({"test": [row]})


def test_the_split_is_written_as_the_authors_lay_theirs_out(tmp_path: Path) -> None:
    text = write_split({"coco": rows(300, 2)}, Fitting(rows(300, 1), "made up"), tmp_path)
    assert "bag of n-grams, fitted on dev as it was" in text
    assert len(read_rows(tmp_path / "test/coco.jsonl")) == len(read_rows(tmp_path / "dev/dev.jsonl")) == 300
