"""docs/training.md names tests, recipes and messages; they are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/training.md").read_text()
ROWS = [line for line in TEXT.split("## What goes wrong")[1].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:22])
def test_the_tests_of_the_table_exist(row: str) -> None:
    cell = row.rstrip(" |").rsplit(" | ", 1)[1]
    named = re.findall(r"`(test_\w+\.py)`([^`]*)", cell)
    assert named
    for file, names in named:
        source = (ROOT / "tests/llava15" / file).read_text()
        for name in re.findall(r"\b([a-z0-9]+_[a-z0-9_]+)", re.sub(r"\(.*?\)", "", names)):
            assert f"def test_{name}" in source, (file, name)


def test_ten_failures_and_nan_stand_in_it() -> None:
    assert len(ROWS) == 11
    assert all(len(row.strip("| ").split(" | ")) == 4 for row in ROWS)


@pytest.mark.parametrize(
    "message",
    [
        "which is written last: its training did not end",
        "is a LLaVA model already; give its language model",
        "exclude each other",
        "cuts through the image; raise it",
        "nothing trains",
    ],
)
def test_the_messages_that_it_quotes_are_the_programs(message: str) -> None:
    assert message in TEXT
    assert any(message in file.read_text() for file in (ROOT / "llava_ohd/llava15").rglob("*.py"))


def test_the_files_that_it_names_exist() -> None:
    named = set(re.findall(r"(?:scripts/(?:recipes/)?|zero_configs/|tests/llava15/)[\w./]+\.\w+", TEXT))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
