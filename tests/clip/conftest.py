"""A few OHD-Caps rows about squares of one colour, and their images."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava_ohd.ohd_caps.readers import write_rows
from llava_ohd.ohd_caps.records import STRATEGIES, Negative, OhdRow

COLORS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220), "yellow": (240, 200, 20)}
KINDS = ("ball", "box", "cup", "star", "ring", "key")


def _rows(count: int, negatives: int, seed: int = 0) -> list[OhdRow]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        color, kind = rng.choice(list(COLORS)), rng.choice(KINDS)
        wrong = []
        for k in range(negatives):
            more = rng.sample([other for other in KINDS if other != kind], 1 + k % 3)
            text = f"a {color} {kind} and " + " and ".join(f"a {rng.choice(list(COLORS))} {name}" for name in more)
            wrong.append(Negative(text, STRATEGIES[k % 4], tuple(more)))
        rows.append(OhdRow(f"{number:03}.png", f"a {color} {kind}", tuple(wrong), (kind,)))
    return rows


def draw(rows: list[OhdRow], folder: Path, size: tuple[int, int] = (40, 32)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.new("RGB", size, COLORS[row.caption.split()[1]]).save(folder / row.image)


@pytest.fixture
def make_rows() -> Callable[[int, int], list[OhdRow]]:
    """Makes a number of rows with a number of negatives each."""
    return _rows


@pytest.fixture
def ohd(tmp_path: Path) -> tuple[Path, Path]:
    """A file of 24 rows with 5 negatives each, and the folder of their images."""
    rows = _rows(24, 5)
    draw(rows, tmp_path / "images")
    write_rows(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl", tmp_path / "images"
