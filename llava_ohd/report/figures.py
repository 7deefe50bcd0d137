"""Figures that stand alone, as SVG files for documents; fractions are drawn as percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ohd.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "Point", "compared", "estimates", "tradeoff"]

_BLUE, _GREY = "#1f6f8b", "#8a8f98"
_SERIES = (_GREY, _BLUE, "#b4552d", "#5b8c3a")


@dataclass(frozen=True)
class Point:
    """A value with the ends of its interval, where it has one, and what it is of."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Panel:
    """Points of several series on one axis, and where they would lie by chance."""

    title: str
    series: Mapping[str, Sequence[Point]]
    reference: float | None = None


def tradeoff(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws OHD-Caps accuracy against zero-shot accuracy along an interpolation, whiskers being 95 % intervals.

    Args:
        rows: `{"alpha", "ohd_caps": {"value", "low", "high"}, "zero_shot": {...}}` in the order of alpha.
        path: The SVG file to write.
    """
    figure = _figure(5.6, 4.2)
    axes = figure.subplots()
    x, y = ([100 * row[key]["value"] for row in rows] for key in ("zero_shot", "ohd_caps"))
    axes.errorbar(
        x, y, xerr=_whiskers(rows, "zero_shot"), yerr=_whiskers(rows, "ohd_caps"), color=_BLUE, ecolor=_GREY,
        elinewidth=0.8, marker="o", markersize=4,
    )  # fmt: skip
    for row, across, up in zip(rows, x, y, strict=True):
        axes.annotate(f"{row['alpha']:g}", (across, up), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("zero-shot accuracy, %")
    axes.set_ylabel("OHD-Caps accuracy, %")
    axes.set_title("weights between stock (0) and tuned (1)", fontsize=9, loc="left")
    _save(figure, [axes], path)


def estimates(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, str], path: Path) -> None:
    """Draws one line of points per row and a panel per measure, whiskers being 95 % intervals.

    Args:
        rows: `{"name", KEY: {"value", "low", "high", "values": [of each seed]}}`, KEY as in `panels`; from the top.
        panels: Title of each panel by key.
        path: The SVG file to write.
    """
    figure = _figure(8.4, 0.9 + 0.24 * len(rows))
    panes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axes, (key, title) in zip(panes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            seeds = [100 * value for value in row[key]["values"]]
            axes.scatter(seeds, [place] * len(seeds), s=9, color=_GREY, zorder=2)
        axes.errorbar(
            [100 * row[key]["value"] for row in rows], range(len(rows)), xerr=_whiskers(rows, key), fmt="o",
            markersize=4, color=_BLUE, elinewidth=1, zorder=3,
        )  # fmt: skip
        axes.set_xlabel(title, fontsize=9)
    panes[0].set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
    panes[0].set_ylim(len(rows) - 0.5, -0.5)
    _save(figure, panes, path)


def compared(panels: Sequence[Panel], axis: str, path: Path, percent: bool = True) -> None:
    """Draws panels side by side, four in a row: labels from the top, the series of each a little apart, with intervals.

    Args:
        panels: At least one; a dotted line marks the reference.
        axis: Label of the value axis, with its unit.
        path: The SVG file to write.
        percent: Whether values are fractions, drawn as percent.
    """
    most = max(len(points) for panel in panels for points in panel.series.values())
    lines, columns = -(-len(panels) // 4), min(len(panels), 4)
    figure = _figure(1.2 + 2.1 * columns, lines * (1.1 + 0.24 * most))
    panes = list(figure.subplots(lines, columns, squeeze=False).flat)
    scale = 100 if percent else 1
    for axes, panel in zip(panes, panels, strict=False):
        _compare(axes, panel, scale)
        axes.set_xlabel(axis, fontsize=8)
    for axes in panes[len(panels) :]:
        axes.set_visible(False)
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    _save(figure, panes, path)


def _compare(axes: "Axes", panel: Panel, scale: float) -> None:
    labels = list(dict.fromkeys(point.label for points in panel.series.values() for point in points))
    for number, (name, points) in enumerate(panel.series.items()):
        shift = 0.26 * (number - (len(panel.series) - 1) / 2)
        places = [labels.index(point.label) + shift for point in points]
        ends = [
            (point.low, point.high) if None not in (point.low, point.high) else (point.value,) * 2 for point in points
        ]
        whiskers = [
            [scale * max(0.0, point.value - (low or 0.0)) for point, (low, _) in zip(points, ends, strict=True)],
            [scale * max(0.0, (high or 0.0) - point.value) for point, (_, high) in zip(points, ends, strict=True)],
        ]
        axes.errorbar(
            [scale * point.value for point in points], places, xerr=whiskers, fmt="o", markersize=3.5, elinewidth=1,
            color=_SERIES[number % len(_SERIES)], label=name,
        )  # fmt: skip
    if panel.reference is not None:
        axes.axvline(scale * panel.reference, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(left=-3 if scale == 100 else 0, right=103 if scale == 100 else None)
    axes.set_title(panel.title, fontsize=8, loc="left")


def _whiskers(rows: Sequence[Mapping[str, Any]], key: str) -> list[list[float]]:
    """Returns how far the ends lie below and above each value; 0 where there is no interval."""
    values = [row[key] for row in rows]
    below = [100 * (v["value"] - v["low"]) if v["low"] is not None else 0.0 for v in values]
    above = [100 * (v["high"] - v["value"]) if v["high"] is not None else 0.0 for v in values]
    return [[max(0.0, value) for value in below], [max(0.0, value) for value in above]]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # the object interface: no window system, no global state of pyplot

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", panes: Sequence["Axes"], path: Path) -> None:
    from matplotlib import rc_context

    for axes in panes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    with atomic_path(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "llava_ohd"}):
        figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})
