"""Pictures of the rows: one SVG per section, a panel per group, encoders side by side, whiskers 95 % intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_ohd.probes.rows import Row
from llava_ohd.report.figures import Panel, Point, compared

__all__ = ["AXES", "draw"]

AXES = {
    "tor": "nearest object, % of captions",
    "ior": "nearest object, % of pictures",
    "i2t": "nearest object, % of pictures",
    "toc": "accuracy on held-out captions, %",
    "toc_long": "accuracy on held-out captions, %",
    "ioc": "accuracy on held-out pictures, %",
    "ioc_long": "accuracy on held-out pictures, %",
    "attention": "share of attention, %",
    "density": "attention / uniform map",
    "matching": "trials won, %",
    "crossed": "trials won, %",
    "mitigation": "trials won, %",
    "largest": "share of captions, %",
}
"""Sections that are drawn, with the label of the axis."""


def draw(encoders: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Writes `SECTION.svg` for every section of `AXES` that has rows.

    Args:
        encoders: Rows by name of the encoder.
        folder: Where to.
    """
    for section, label in AXES.items():
        panels = _panels(encoders, section)
        if panels:
            compared(panels, label, folder / f"{section}.svg", percent=section != "density")


def _panels(encoders: Mapping[str, Sequence[Row]], section: str) -> list[Panel]:
    if section == "largest":  # it is of captions, not of an encoder
        own = [row for row in list(encoders.values())[-1] if row.group.endswith("named")]
        encoders = {"captions": own}
    groups: dict[str, dict[str, list[Point]]] = {}
    references: dict[str, float | None] = {}
    for name, found in encoders.items():
        for row in found:
            if row.section == section and row.estimate.value is not None:
                point = Point(row.label, row.estimate.value, row.estimate.low, row.estimate.high)
                groups.setdefault(row.group, {}).setdefault(name, []).append(point)
                references[row.group] = row.reference
    return [Panel(group, series, references[group]) for group, series in groups.items()]
