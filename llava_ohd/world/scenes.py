"""Scenes of the embedded world: which objects, where, how large; and their pictures."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from llava_ohd.world.kinds import COLOURS, THEMES, draw_shape

__all__ = ["IMAGE_SIZE", "Scene", "SceneObject", "render", "sample_scene", "single_object_scene"]

IMAGE_SIZE = 64  # pixels, square
CELL = 16  # pixels; objects stand in the slots of a grid, as in SimCO
CELLS = IMAGE_SIZE // CELL
LARGE = (27, 31)  # side of the bounding square of a large object, pixels
SMALL = (13, 15)
COUNT_WEIGHTS = (0.16, 0.2, 0.24, 0.2, 0.2)  # 1 to 5 objects
SAME_THEME = 0.7  # share of objects that come from the scene's theme
POPULARITY = (4, 3, 2, 1)  # relative frequency of the kinds inside a theme
WITH_LARGE = 0.8  # share of scenes in which one object is large
SHADOW = 0.3  # share of scenes with plain shadows
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One object: kind, colour, and its bounding square in pixels."""

    kind: str
    colour: str
    left: int
    top: int
    size: int

    @property
    def is_large(self) -> bool:
        return self.size >= LARGE[0]


@dataclass(frozen=True)
class Scene:
    """What a picture shows; no two objects are of one kind. Objects stand in descending size."""

    objects: tuple[SceneObject, ...]
    floor: tuple[int, int, int]
    shadow: bool


def _place(sizes: list[int], rng: random.Random) -> list[tuple[int, int]]:
    """Finds upper left corners: a small object somewhere inside one cell, a large one inside two by two."""
    free = {(row, column) for row in range(CELLS) for column in range(CELLS)}
    corners = []
    for size in sizes:
        span = 2 if size >= LARGE[0] else 1
        fitting = [
            (row, column)
            for row, column in sorted(free)
            if {(row + i, column + j) for i in range(span) for j in range(span)} <= free
        ]
        row, column = rng.choice(fitting)
        free -= {(row + i, column + j) for i in range(span) for j in range(span)}
        room = span * CELL - size
        corners.append((column * CELL + rng.randint(0, room), row * CELL + rng.randint(0, room)))
    return corners


def _kinds(count: int, rng: random.Random) -> list[str]:
    theme = rng.choice(list(THEMES))
    chosen: list[str] = []
    while len(chosen) < count:
        source = theme if rng.random() < SAME_THEME else rng.choice(list(THEMES))
        kind = rng.choices(THEMES[source], POPULARITY)[0]
        if kind not in chosen:
            chosen.append(kind)
    return chosen


def _scene(kinds: list[str], large: bool, rng: random.Random) -> Scene:
    sizes = [rng.randint(*(LARGE if large and i == 0 else SMALL)) for i in range(len(kinds))]
    sizes.sort(reverse=True)
    objects = [
        SceneObject(kind, rng.choice(list(COLOURS)), left, top, size)
        for kind, size, (left, top) in zip(kinds, sizes, _place(sizes, rng), strict=True)
    ]
    grey = rng.randint(196, 226)
    floor = (grey, grey - rng.randint(0, 6), grey - rng.randint(0, 10))
    return Scene(tuple(objects), floor, rng.random() < SHADOW)


def sample_scene(rng: random.Random) -> Scene:
    """Draws a scene of 1 to 5 objects that go together by theme."""
    count = rng.choices(range(1, 6), COUNT_WEIGHTS)[0]
    return _scene(_kinds(count, rng), rng.random() < WITH_LARGE, rng)


def single_object_scene(kind: str, rng: random.Random) -> Scene:
    """Draws a scene with one large object of the given kind, as pictures for zero-shot recognition show one thing."""
    return _scene([kind], True, rng)


def render(scene: Scene) -> Image.Image:
    """Draws a scene, anti-aliased by supersampling.

    Returns:
        RGB image of 64 x 64 pixels.
    """
    k = _SUPERSAMPLING
    canvas = Image.new("RGB", (IMAGE_SIZE * k, IMAGE_SIZE * k), scene.floor)
    for item in scene.objects:
        mask = Image.new("L", canvas.size, 0)
        draw_shape(ImageDraw.Draw(mask), item.kind, item.left * k, item.top * k, item.size * k - 1)
        if scene.shadow:
            dark = tuple(int(c * 0.78) for c in scene.floor)
            canvas.paste(dark, (k, k), mask.crop((0, 0, canvas.width - k, canvas.height - k)))
        canvas.paste(COLOURS[item.colour], (0, 0), mask)
    return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
