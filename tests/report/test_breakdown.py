"""Which hallucinations went away and which came, on answers made by hand."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from llava_ohd.evals.pope_questions import object_of
from llava_ohd.report.breakdown import LIMIT, breakdown, markdown
from llava_ohd.report.comparison import Pairs
from llava_ohd.report.runs import Run, Truth


def run(**invented: str) -> Run:
    return Run(Path("x"), {}, invented={f"{image}.png": frozenset(names.split()) for image, names in invented.items()})


STOCK = run(a="cup key", b="cup", c="cup", d="star")
OURS = run(a="key", d="star moon", e="moon")
TRUTH = Truth(objects={f"{image}.png": frozenset({"tree", "sun"} if image in "ab" else {"tree"}) for image in "abcde"})


def made(*pairs: tuple[Run, Run]) -> dict[str, object]:
    return breakdown(Pairs({"pope": list(pairs)}, []), TRUTH)


def test_by_object() -> None:
    rows = made((OURS, STOCK))["pope"]["objects"]  # type: ignore[index]
    counts = {row["object"]: (row["stock"], row["ours"], row["gone"], row["came"]) for row in rows}
    assert counts == {"cup": (3, 0, 3, 0), "moon": (0, 2, 0, 2), "key": (1, 1, 0, 0), "star": (1, 1, 0, 0)}
    assert [row["object"] for row in rows] == ["cup", "moon", "key", "star"]
    p = binomtest(3, 3, 0.5).pvalue
    assert rows[0]["p"] == pytest.approx(p)
    assert rows[0]["p_holm"] == pytest.approx(4 * p)
    assert rows[2]["p"] == 1.0


def test_by_what_else_the_image_shows() -> None:
    rows = made((OURS, STOCK))["pope"]["together"]  # type: ignore[index]
    found = {(row["object"], row["beside"]): (row["stock"], row["ours"]) for row in rows}
    assert found["cup", "tree"] == (3, 0)
    assert found["cup", "sun"] == (2, 0)
    assert found["moon", "tree"] == (0, 2)
    assert ("moon", "sun") not in found


def test_seeds_are_added_up_and_have_no_p() -> None:
    part = made((OURS, STOCK), (STOCK, STOCK))["pope"]
    rows = {row["object"]: row for row in part["objects"]}  # type: ignore[index]
    assert (rows["cup"]["stock"], rows["cup"]["ours"], rows["cup"]["gone"]) == (6, 3, 3)
    assert "p" not in rows["cup"]
    assert "2 seeds added up" in markdown({"pope": part})


def test_tables_are_cut_and_say_so() -> None:
    many = run(**{f"i{number}": f"thing{number}" for number in range(LIMIT + 3)})
    text = markdown(breakdown(Pairs({"chair": [(run(z="cup"), many)]}, []), Truth()))
    assert "4 more in results.json." in text
    assert text.count("| thing") == LIMIT
    assert breakdown(Pairs({}, []), Truth()) == {}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Is there a cup in the image?", "cup"),
        ("Is there an apple in the imange?", "apple"),
        ("is there a dining table in the image?\nAnswer the question using a single word or phrase.", "dining table"),
        ("Do you see a cup?", "Do you see a cup?"),
    ],
)
def test_the_object_that_a_question_asks_for(question: str, name: str) -> None:
    assert object_of(question) == name
