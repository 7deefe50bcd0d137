"""Charts as inline SVG: text stays text, colours are CSS variables of the page, nothing is loaded from elsewhere."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "curves"]

# Placeholders that matplotlib writes into the SVG, and the variable of the page that takes their place.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--ours)", "#040404": "var(--stock)"}
_INK, _LINE, _OURS, _STOCK = _COLOURS
_SHOWN = {
    "ohd_caps": ("accuracy", "accuracy_shuffled", "control_medoid", "control_chance"),
    "zero_shot": ("accuracy",),
    "pope": ("f1_macro", "random/accuracy", "popular/accuracy", "adversarial/accuracy"),
    "chair": ("chair_i", "chair_s", "recall"),
}
_WIDTH = 4.6  # inches; text keeps a readable size at phone width


def bars(name: str, part: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Draws one benchmark: a pair of bars per metric with 95 % intervals and the value in percent.

    Args:
        name: Of the benchmark.
        part: Its part of the comparison record.
        names: Of the encoders, keys `ours` and `stock`.

    Returns:
        An `<svg>` element.
    """
    shown = [part["metrics"][key] for key in _SHOWN.get(name, ()) if key in part["metrics"]] or list(
        part["metrics"].values()
    )
    figure, axes = _figure(0.75 + 0.62 * len(shown))
    for side, colour, offset in (("stock", _STOCK, -0.19), ("ours", _OURS, 0.19)):
        for place, row in enumerate(shown):
            _bar(axes, place + offset, row[side], colour, names[side] if place == 0 else None)
    axes.set_yticks(range(len(shown)), [_wrapped(row["title"]) for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel(f"{part['title']}, %; whiskers: 95 % interval")
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    _legend(figure)
    return _svg(figure, f"{part['title']}: bar chart, values as in the table")


def _bar(axes: "Axes", place: float, row: Mapping[str, float | None], colour: str, label: str | None) -> None:
    value = 100 * (row["value"] or 0)
    axes.barh(place, value, height=0.36, color=colour, label=label)
    end = value
    if row["low"] is not None and row["high"] is not None:
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=_INK, linewidth=1.1)
        end = max(value, 100 * row["high"])
    axes.text(end + 1.5, place, f"{value:.1f}", va="center", color=_INK)


def _wrapped(title: str) -> str:
    return textwrap.fill(title.removeprefix("share of "), 18)


def curves(
    panel: str, lines: Mapping[str, Sequence[Mapping[str, float]]], names: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Draws training curves: the loss of every step, pale, and its running mean (batches differ in how hard they are).

    Args:
        panel: Title.
        lines: Points `{"step", "loss"}` by label; the labels `ours` and `stock` have their colours.
        names: Of the encoders, keys `ours` and `stock`: these labels have the colours, too.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _figure(2.5)
    for place, (label, points) in enumerate(lines.items()):
        known = {names.get("stock"): _STOCK, names.get("ours"): _OURS, "ours": _OURS, "stock": _STOCK}
        colour = known.get(label, (_OURS, _STOCK)[place % 2])
        x, y = ([point[key] for point in points] for key in ("step", "loss"))
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(x, _smoothed(y), color=colour, linewidth=1.4, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(color=_LINE, linewidth=0.6)
    if len(lines) > 1:
        _legend(figure)
    return _svg(figure, f"{panel}: training curve, loss by step")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Averages each value with its neighbours, a twentieth of the run in all, fewer at the ends."""
    reach = len(values) // 40
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _legend(figure: "Figure") -> None:
    style = {"frameon": False, "labelcolor": _INK, "fontsize": 9, "borderpad": 0, "handlelength": 1}
    figure.legend(loc="outside upper right", ncols=2, **style)


def _figure(height: float) -> tuple["Figure", "Axes"]:
    # The object interface: no window system, no global state of pyplot.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.edgecolor": _LINE, "text.color": _INK}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, color=_LINE, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: "Figure", label: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = (
        re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", text[: text.index(">")]) + text[text.index(">") :]
    )
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font: [^;\"]*'[^;\"]*(?=[;\"])", "font: 9px var(--sans)", text)
    for placeholder, variable in _COLOURS.items():
        text = text.replace(placeholder, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
