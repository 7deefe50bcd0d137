"""The page of diagnostics: its correlations by hand, its examples, and what it says when something is missing."""

from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.report.diagnostics import Sources, _change, _hit, coloured, correlations, diagnose, write


def test_correlations_are_over_the_objects_that_both_know() -> None:
    probes = {"probe": {name: value for value, name in enumerate("abcdef")}}
    said = {"POPE": dict(zip("abcdez", [5.0, 4.0, 3.0, 2.0, 1.0, 9.0], strict=True)), "CHAIR": {"a": 1.0, "b": 0.0}}
    pope, chair = correlations(probes, said)
    assert (pope["n"], pope["rho"]) == (5, pytest.approx(-1.0))
    assert pope["p"] < 0.01
    assert (chair["n"], chair["rho"], chair["p"]) == (2, None, None)
    assert correlations(probes, {"POPE": dict.fromkeys("abcdef", 0.5)})[0]["rho"] is None


def test_changes_are_ours_minus_stock() -> None:
    assert _change({"a": 0.5, "b": 1.0}, {"a": 0.75, "c": 0.0}) == {"a": 0.25}


def test_words_are_coloured_by_sign_and_escaped() -> None:
    text = coloured([["a<b", -2e-5], ["cup", 1e-5]])
    assert "a&lt;b" in text
    assert text.index("178,24,43") < text.index("33,102,172")
    assert "0.70" in text
    assert "0.35" in text


def test_a_hit_is_the_lowest_word() -> None:
    row = {"words": [["a", 0.1], ["Cup", -0.3], ["tree", -0.2]], "wrong": ["cup"]}
    assert _hit(row)
    assert not _hit(row | {"wrong": ["tree"]})


def test_nothing_to_show_names_the_commands(tmp_path: Path) -> None:
    sources = Sources(("openai", "ours"), (tmp_path / "a", tmp_path / "b"), tmp_path, tmp_path, tmp_path)
    with pytest.raises(DataFormatError, match=r"python eval/multi_object\.py --encoder openai .*eval/dense\.py"):
        diagnose(sources)


def test_the_page_holds_what_there_is(tmp_path: Path) -> None:
    record = {
        "names": ["openai", "ours"],
        "missing": ["eval/x; run: python eval/dense.py"],
        "correlations": [{"encoder": "probe", "llava": "POPE", "n": 20, "rho": -0.25, "p": 0.3}],
        "drift": ["A < B"],
    }
    write(record, tmp_path)
    page = (tmp_path / "diagnostics.html").read_text()
    assert "Missing:" in page
    assert "-0.25" in page
    assert "A &lt; B" in page
    assert "Several objects" not in page
    assert "http" not in page
