"""The page shows the measured numbers: every interval in it stands in the tables that the command printed."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "diagnostics_objects.md").read_text()
TABLES = (DOCS / "diagnostics_objects" / "tables.md").read_text()


def test_every_interval_of_the_page_is_in_the_tables() -> None:
    lines = [line for line in PAGE.splitlines() if not line.startswith("| `")]  # OHD-Caps by scorer is another command
    found = re.findall(r"\d+\.\d+ \[[\d., ]+\]", "\n".join(lines))
    assert len(found) > 30
    assert [interval for interval in found if interval not in TABLES] == []


def test_every_percentage_of_the_text_is_in_the_tables() -> None:
    published = {"50.31", "65.22"}  # of the paper
    text = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    part = text.split("## Ways around it")[0]
    numbers = set(re.findall(r"(\d+\.\d+)(?: to \d+\.\d+)? %", part)) - published
    assert len(numbers) > 15
    assert [number for number in sorted(numbers) if f" {number} [" not in TABLES] == []


@pytest.mark.parametrize(("name", "fewest"), [("diagnostics_objects.md", 7), ("diagnostics.md", 6)])
def test_every_picture_is_there(name: str, fewest: int) -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (DOCS / name).read_text())
    assert len(pictures) >= fewest
    assert all((DOCS / picture).is_file() for picture in pictures)


def test_every_instrument_says_how_it_is_read() -> None:
    """Question, command, picture, reading and failure modes, for each that looks at words."""
    page = (DOCS / "diagnostics.md").read_text()
    for title in ("Word by word", "Does it point at the wrong word?", "Captions of a LLaVA", "Scores"):
        part = page.split(f"## {title}\n")[1].split("\n## ")[0]
        assert re.search(r"^\*[^*\n]+\?", part, re.MULTILINE), title
        for needed in ("```", "![", "**Read it so:**", "**Fails when**"):
            assert needed in part, (title, needed)
