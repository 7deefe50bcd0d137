"""The object kinds and colours of the embedded world, and how each kind is drawn.

A kind is a function from a unit square to filled shapes; one colour fills them all, so that colour and kind are
independent. Kinds belong to themes; objects of a theme appear together, which gives the world popular objects,
adversarial negatives and a language prior to hallucinate from. In the manner of SimCO (Abbasi et al.,
arXiv 2502.19842): simple shapes on a plain floor.
"""

import math
from collections.abc import Callable

from PIL import ImageDraw

__all__ = ["COLOURS", "KINDS", "SHAPES", "THEMES", "theme_of"]

# sRGB; chosen far apart, so that a 14-pixel object still has a colour
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (38, 148, 62),
    "blue": (36, 84, 214),
    "yellow": (240, 196, 20),
    "purple": (140, 50, 170),
    "black": (30, 30, 34),
}

# within a theme the first kind is the most frequent
THEMES: dict[str, tuple[str, ...]] = {
    "sky": ("star", "moon", "sun", "cloud"),
    "garden": ("tree", "flower", "mushroom", "leaf"),
    "sea": ("boat", "fish", "umbrella", "bottle"),
    "home": ("house", "cup", "lamp", "key"),
    "toys": ("ball", "box", "kite", "ring"),
}
KINDS: tuple[str, ...] = tuple(kind for theme in THEMES.values() for kind in theme)

Pen = Callable[[str, list[tuple[float, float]]], None]


def theme_of(kind: str) -> str:
    """Returns the theme of a kind."""
    return next(theme for theme, kinds in THEMES.items() if kind in kinds)


def _around(n: int, radius: float, start: float = -90.0, inner: float | None = None) -> list[tuple[float, float]]:
    """Points of a regular polygon around (0.5, 0.5); with `inner`, of a star of n points."""
    steps = n if inner is None else 2 * n
    radii = [radius, inner if inner is not None else radius]
    angles = [math.radians(start + 360 * i / steps) for i in range(steps)]
    return [(0.5 + radii[i % 2] * math.cos(a), 0.5 + radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def _star(pen: Pen) -> None:
    pen("polygon", _around(5, 0.5, inner=0.2))


def _moon(pen: Pen) -> None:
    pen("ellipse", [(0.0, 0.0), (1.0, 1.0)])
    pen("cut ellipse", [(0.34, -0.06), (1.14, 0.8)])


def _sun(pen: Pen) -> None:
    for i in range(8):
        a = math.radians(45 * i)
        c, s = math.cos(a), math.sin(a)
        tip = (0.5 + 0.5 * c, 0.5 + 0.5 * s)
        pen(
            "polygon",
            [
                tip,
                (0.5 + 0.3 * c - 0.1 * s, 0.5 + 0.3 * s + 0.1 * c),
                (0.5 + 0.3 * c + 0.1 * s, 0.5 + 0.3 * s - 0.1 * c),
            ],
        )
    pen("ellipse", [(0.24, 0.24), (0.76, 0.76)])


def _cloud(pen: Pen) -> None:
    for box in (
        [(0.0, 0.42), (0.42, 0.84)],
        [(0.22, 0.14), (0.74, 0.7)],
        [(0.56, 0.4), (1.0, 0.84)],
        [(0.2, 0.5), (0.8, 0.84)],
    ):
        pen("ellipse", box)


def _tree(pen: Pen) -> None:
    pen("polygon", [(0.5, 0.0), (0.94, 0.72), (0.06, 0.72)])
    pen("rectangle", [(0.4, 0.72), (0.6, 1.0)])


def _flower(pen: Pen) -> None:
    for i in range(5):
        a = math.radians(72 * i - 90)
        x, y = 0.5 + 0.29 * math.cos(a), 0.5 + 0.29 * math.sin(a)
        pen("ellipse", [(x - 0.2, y - 0.2), (x + 0.2, y + 0.2)])
    pen("cut ellipse", [(0.36, 0.36), (0.64, 0.64)])


def _mushroom(pen: Pen) -> None:
    pen("pieslice", [(0.0, 0.05), (1.0, 1.05)])
    pen("rectangle", [(0.34, 0.53), (0.66, 0.98)])


def _leaf(pen: Pen) -> None:
    curve = [(t / 12, 0.25 * math.sin(math.pi * t / 12)) for t in range(13)]
    turn = math.radians(-45)
    points = curve + [(x, -y) for x, y in reversed(curve)]
    pen(
        "polygon",
        [
            (
                0.5 + (x - 0.5) * math.cos(turn) - y * math.sin(turn),
                0.5 + (x - 0.5) * math.sin(turn) + y * math.cos(turn),
            )
            for x, y in points
        ],
    )


def _boat(pen: Pen) -> None:
    pen("polygon", [(0.0, 0.66), (1.0, 0.66), (0.8, 0.96), (0.2, 0.96)])
    pen("polygon", [(0.46, 0.0), (0.46, 0.58), (0.04, 0.58)])
    pen("polygon", [(0.56, 0.14), (0.56, 0.58), (0.92, 0.58)])


def _fish(pen: Pen) -> None:
    pen("ellipse", [(0.0, 0.22), (0.74, 0.78)])
    pen("polygon", [(0.62, 0.5), (1.0, 0.2), (1.0, 0.8)])


def _umbrella(pen: Pen) -> None:
    pen("pieslice", [(0.0, 0.02), (1.0, 1.02)])
    pen("rectangle", [(0.46, 0.5), (0.54, 0.98)])
    pen("rectangle", [(0.46, 0.9), (0.72, 0.98)])


def _bottle(pen: Pen) -> None:
    pen("rectangle", [(0.4, 0.0), (0.6, 0.36)])
    pen("rectangle", [(0.24, 0.4), (0.76, 1.0)])
    pen("polygon", [(0.4, 0.28), (0.6, 0.28), (0.76, 0.42), (0.24, 0.42)])


def _house(pen: Pen) -> None:
    pen("polygon", [(0.5, 0.0), (1.0, 0.46), (0.0, 0.46)])
    pen("rectangle", [(0.12, 0.46), (0.88, 1.0)])
    pen("cut rectangle", [(0.4, 0.64), (0.6, 1.0)])


def _cup(pen: Pen) -> None:
    pen("ellipse", [(0.5, 0.24), (1.0, 0.72)])
    pen("cut ellipse", [(0.6, 0.35), (0.9, 0.61)])
    pen("rectangle", [(0.04, 0.12), (0.7, 0.9)])


def _lamp(pen: Pen) -> None:
    pen("polygon", [(0.3, 0.0), (0.7, 0.0), (0.96, 0.44), (0.04, 0.44)])
    pen("rectangle", [(0.45, 0.44), (0.55, 0.92)])
    pen("rectangle", [(0.24, 0.88), (0.76, 1.0)])


def _key(pen: Pen) -> None:
    pen("ellipse", [(0.0, 0.26), (0.46, 0.72)])
    pen("cut ellipse", [(0.13, 0.39), (0.33, 0.59)])
    pen("rectangle", [(0.42, 0.43), (1.0, 0.55)])
    pen("rectangle", [(0.88, 0.5), (1.0, 0.76)])
    pen("rectangle", [(0.68, 0.5), (0.78, 0.7)])


def _ball(pen: Pen) -> None:
    pen("ellipse", [(0.0, 0.0), (1.0, 1.0)])


def _box(pen: Pen) -> None:
    pen("rectangle", [(0.04, 0.04), (0.96, 0.96)])


def _kite(pen: Pen) -> None:
    pen("polygon", [(0.5, 0.0), (0.86, 0.36), (0.5, 1.0), (0.14, 0.36)])


def _ring(pen: Pen) -> None:
    pen("ellipse", [(0.0, 0.0), (1.0, 1.0)])
    pen("cut ellipse", [(0.26, 0.26), (0.74, 0.74)])


SHAPES: dict[str, Callable[[Pen], None]] = {kind: globals()[f"_{kind}"] for kind in KINDS}


def draw_shape(draw: ImageDraw.ImageDraw, kind: str, left: float, top: float, size: float) -> None:
    """Draws a kind into a mask: 255 where the object is.

    Args:
        draw: Drawing context of a mode-L mask.
        kind: One of `KINDS`.
        left: Left edge of the bounding square, in mask pixels.
        top: Top edge, in mask pixels.
        size: Side of the square, in mask pixels.
    """

    def pen(shape: str, points: list[tuple[float, float]]) -> None:
        fill = 0 if shape.startswith("cut ") else 255
        scaled = [(left + x * size, top + y * size) for x, y in points]
        match shape.removeprefix("cut "):
            case "polygon":
                draw.polygon(scaled, fill=fill)
            case "ellipse":
                draw.ellipse(scaled, fill=fill)
            case "rectangle":
                draw.rectangle(scaled, fill=fill)
            case "pieslice":
                draw.pieslice(scaled, 180, 360, fill=fill)

    SHAPES[kind](pen)
