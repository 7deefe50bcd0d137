"""The page shows the measured numbers: every interval in it stands in the tables that the command printed."""

import re
from pathlib import Path

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


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert len(pictures) >= 7
    assert all((DOCS / picture).is_file() for picture in pictures)
