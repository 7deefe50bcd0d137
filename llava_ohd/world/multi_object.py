"""Pictures that tell size, place and kind apart: one large object and small ones, in fixed slots, counter-balanced.

In the manner of SimCO and ComCO (Abbasi et al., arXiv 2502.19842): 2 to 5 objects on a plain floor, one of them large;
a file is named after its objects in the order of the slots. Style `simco`: everything blue, no shadows, so that a
picture differs from another in kinds and sizes alone. Style `comco`: any colours, shadows.

TwoObject-LBig/ball_cup.png      left, right; the left one is large
ThreeObject-MiddleBig/...        on the diagonal
FourObject-URBig/...             corners
FiveObject-BLBig/...             corners and middle, which gives way to a large corner
OneObject/ball.png               one picture per kind, large, in the middle; OneObject-Small the same, small
objects.json                     area (pixels) and bounding square (left, top, width, height) of every object

Kind k stands in slot j of the pictures in which it is kinds[(i + d_j) mod K]: each tuple d of different distances gives
K pictures that have every kind once in every slot. No two pictures of a layout show the same kinds in the same slots.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import perm
from pathlib import Path

from PIL import Image, ImageDraw

from llava_ohd.files import atomic_folder, read_json, sha256_json, write_json
from llava_ohd.progress import track
from llava_ohd.world.kinds import COLOURS, KINDS, draw_shape
from llava_ohd.world.scenes import CELL, CELLS, IMAGE_SIZE, Scene, SceneObject, render

__all__ = ["SLOTS", "STYLES", "SceneSetConfig", "area", "design", "is_current", "places", "write_scene_set"]

STYLES = ("simco", "comco")
SLOTS: dict[int, tuple[str, ...]] = {
    2: ("L", "R"),
    3: ("UL", "Middle", "BR"),
    4: ("UL", "UR", "BL", "BR"),
    5: ("UL", "UR", "Middle", "BL", "BR"),
}
"""Slots by number of objects, in the order of the file name."""

LARGE, SMALL = 28, 14  # side of the bounding square, pixels; areas 4 : 1, of which the mini CLIP has seen many
_WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}
_FLOOR = (212, 210, 206)
_COLOUR = "blue"
_SUPERSAMPLING = 4
_CORNERS = {"UL": (0, 0), "UR": (1, 0), "BL": (0, 1), "BR": (1, 1)}  # right?, below?
_SIDES = {"L": 0, "R": 1}


@dataclass(frozen=True)
class SceneSetConfig:
    """What pictures are drawn.

    Attributes:
        style: One of `STYLES`.
        rounds: Pictures per layout divided by the number of kinds, at most; of two objects there are only K - 1.
        seed: Of the distances between kinds, and of colours.
    """

    style: str = "simco"
    rounds: int = 25
    seed: int = 0


def design(kinds: Sequence[str], count: int, rounds: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Chooses kinds for the slots so that each kind stands equally often in each slot, and no two choices are equal.

    Args:
        kinds: All kinds, more than `count`.
        count: Number of slots.
        rounds: How often each kind stands in each slot, at most.
        rng: Source of randomness.

    Returns:
        `len(kinds) * rounds` tuples of `count` different kinds, fewer where there are no more.
    """
    total = len(kinds)
    distances: dict[tuple[int, ...], None] = {}
    while len(distances) < min(rounds, perm(total - 1, count - 1)):
        distances.setdefault((0, *rng.sample(range(1, total), count - 1)))
    return [tuple(kinds[(i + d) % total] for d in row) for row in distances for i in range(total)]


def places(count: int, large: int | None) -> list[tuple[int, int, int]]:
    """Returns left, top and size of the bounding square in each slot, in pixels; none overlap.

    As everywhere in the world, a small object lies inside one cell of the grid, a large one inside two by two, so that
    a layout is no new sight to the world's encoder, and every small object meets as many patches as any other.

    Args:
        count: Number of objects, 2 to 5.
        large: Index of the slot that holds the large one; None for small ones only.
    """
    found = []
    for index, slot in enumerate(SLOTS[count]):
        size, span = (LARGE, 2) if index == large else (SMALL, 1)
        corner = SLOTS[count][large] if large is not None else ""
        column, row = (_cell(slot, span, corner, axis) for axis in (0, 1))
        room = (span * CELL - size) // 2
        found.append((column * CELL + room, row * CELL + room, size))
    return found


def _cell(slot: str, span: int, corner: str, axis: int) -> int:
    """Returns the first column (axis 0) or row (axis 1) of a slot; the middle ones keep clear of a large corner."""
    if slot in _CORNERS:
        return (CELLS - span) * _CORNERS[slot][axis]
    if slot in _SIDES:  # left and right: at half height
        return (CELLS - span) * _SIDES[slot] if axis == 0 else CELLS // 2 - 1
    return 1 if span == 2 or (corner in _CORNERS and _CORNERS[corner][axis] == 1) else 2


def area(item: SceneObject) -> float:
    """Returns how many pixels an object covers; half covered ones count a half."""
    k = _SUPERSAMPLING
    mask = Image.new("L", (IMAGE_SIZE * k, IMAGE_SIZE * k), 0)
    draw_shape(ImageDraw.Draw(mask), item.kind, item.left * k, item.top * k, item.size * k - 1)
    return mask.histogram()[255] / k**2


def _scene(kinds: Sequence[str], squares: Sequence[tuple[int, int, int]], style: str, rng: random.Random) -> Scene:
    colours = [_COLOUR if style == "simco" else rng.choice(list(COLOURS)) for _ in kinds]
    objects = [SceneObject(kind, colour, *square) for kind, colour, square in zip(kinds, colours, squares, strict=True)]
    return Scene(tuple(objects), _FLOOR, style == "comco")


def _record(scene: Scene) -> list[dict[str, object]]:
    return [
        {"name": item.kind, "area": area(item), "box": [item.left, item.top, item.size, item.size]}
        for item in scene.objects
    ]


def _scenes(config: SceneSetConfig, rng: random.Random) -> dict[str, dict[str, Scene]]:
    """Returns the scenes by folder and file name."""
    found: dict[str, dict[str, Scene]] = {}
    for folder, size in (("OneObject", LARGE), ("OneObject-Small", SMALL)):
        middle = (IMAGE_SIZE - size) // 2
        found[folder] = {f"{k}.png": _scene((k,), [(middle, middle, size)], config.style, rng) for k in KINDS}
    for count, slots in SLOTS.items():
        for large, slot in enumerate(slots):
            squares = places(count, large)
            found[f"{_WORDS[count]}Object-{slot}Big"] = {
                f"{'_'.join(kinds)}.png": _scene(kinds, squares, config.style, rng)
                for kinds in design(KINDS, count, config.rounds, rng)
            }
    return found


def _drawn_as(config: SceneSetConfig) -> str:
    """A hash of all that decides what the pictures show."""
    squares = [[count, large, places(count, large)] for count, slots in SLOTS.items() for large in range(len(slots))]
    return sha256_json([asdict(config), SLOTS, squares, LARGE, SMALL, _FLOOR, _COLOUR, COLOURS, KINDS])


def is_current(folder: Path, config: SceneSetConfig) -> bool:
    """Says whether a folder holds the set that `write_scene_set` would draw."""
    file = folder / "objects.json"
    return file.is_file() and read_json(file).get("drawn_as") == _drawn_as(config)


def write_scene_set(folder: Path, config: SceneSetConfig) -> None:
    """Draws all pictures; the folder appears under its name only when it is complete.

    Args:
        folder: Replaced where it holds such a set.
        config: Style, number, seed.

    Raises:
        StorageError: the disk is full or not writable.
    """
    scenes = _scenes(config, random.Random(f"scene set {config.seed}"))
    with atomic_folder(folder, marker="objects.json") as new:
        for name, pictures in scenes.items():
            (new / name).mkdir()
            for file, scene in track(pictures.items(), f"drawing {name}", len(pictures)):
                render(scene).save(new / name / file)
        layouts = {
            name: {file: _record(scene) for file, scene in pictures.items()} for name, pictures in scenes.items()
        }
        write_json(
            new / "objects.json",
            {
                "style": config.style,
                "drawn_as": _drawn_as(config),
                "size": [IMAGE_SIZE, IMAGE_SIZE],
                "layouts": layouts,
            },
        )
