"""Singulars, against what pattern.en.singularize returns."""

from pathlib import Path

import pytest

from llava_ohd.evals.singular import singular
from llava_ohd.files import read_json

CASES = Path(__file__).resolve().parents[2].parent / "shared/cases/chair_singularize/pattern_singularize.json"


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("dogs", "dog"),
        ("bus", "bu"),
        ("buses", "bus"),
        ("glass", "glas"),
        ("ties", "ty"),
        ("canoes", "cano"),
        ("cookies", "cookies"),
        ("snowmen", "snowman"),
        ("people", "person"),
        ("knives", "knife"),
        ("passers-by", "passer-by"),
        ("well-kept", "well-kept"),
        ("dogs'", "dog's"),
        ("on", "on"),
        ("s", "s"),
        ("", ""),
        ("psychoanalyses", "psychoanalyasis"),
        ("oxens", "oxs"),
    ],
)
def test_words(word, one):
    assert singular(word) == one


@pytest.mark.skipif(not CASES.is_file(), reason=f"{CASES} is not there")
def test_every_token_of_the_cases():
    cases = read_json(CASES)["map"]
    assert len(cases) == 12153
    assert {word: singular(word) for word in cases} == cases
