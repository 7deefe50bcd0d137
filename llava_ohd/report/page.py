"""report.html: everything that a comparison found, in one file that needs no other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, write_text
from llava_ohd.report import plots, table
from llava_ohd.report.gallery import Card

__all__ = ["Curve", "Extras", "read_commands", "read_curves", "render", "write_page"]


@dataclass(frozen=True)
class Curve:
    """A training curve: the panel it is drawn in, its label there, and its points `{"step", "loss"}`."""

    panel: str
    label: str
    points: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Extras:
    """What the page shows beside the numbers.

    Attributes:
        gallery: From `gallery.cards`.
        curves: From `read_curves`.
        commands: The commands that made it, one per line.
    """

    gallery: Mapping[str, Sequence[Card]] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    commands: Sequence[str] = ()


def read_curves(named: Sequence[str]) -> list[Curve]:
    """Reads training curves.

    Args:
        named: Entries `panel/label=path` (curves of one panel share axes), e.g. `projector/ours=runs/p/curve.json`.

    Raises:
        DataFormatError: an entry or a file in another format.
    """
    curves = []
    for entry in named:
        name, equals, path = entry.partition("=")
        if not equals:
            raise DataFormatError(f"--curves {entry!r}: write PANEL/LABEL=PATH, e.g. projector/ours=runs/p/curve.json")
        points = read_json(Path(path))
        if not isinstance(points, list) or not all(isinstance(p, dict) and {"step", "loss"} <= set(p) for p in points):
            raise DataFormatError(f'{path}: a list of {{"step", "loss"}} is expected')
        panel, _, label = name.rpartition("/")
        curves.append(Curve(panel or label, label, points))
    return curves


def read_commands(path: Path) -> list[str]:
    """Reads the commands that made the results, one per line.

    Raises:
        DataFormatError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"--commands {path} cannot be read ({error}); give a text file or leave it out") from None


def render(record: dict[str, Any], extras: Extras) -> str:
    """Returns the page as html; every number in it comes from the record.

    Args:
        record: From `comparison.compare`, with `flips` from `gallery.count_flips`.
        extras: Gallery, curves, commands.
    """
    # Imported here: building a table needs no template engine.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(estimate=table.estimate)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    rows = list(table.rows(record))
    names = {side: table.who(record, side) for side in ("ours", "stock")}
    return template.render(
        record=record,
        names=names,
        headline=table.headline(record),
        findings=table.findings(record),
        legend=table.legend(record),
        headline_rows=_groups(row for row in rows if row.headline),
        all_rows=_groups(rows),
        charts=[plots.bars(name, part, names) for name, part in record["benchmarks"].items()],
        curves=_panels(extras.curves, names),
        gallery=extras.gallery,
        commands=extras.commands,
    )


def _groups(rows: Iterable[table.Row]) -> dict[str, list[table.Row]]:
    groups: dict[str, list[table.Row]] = {}
    for row in rows:
        groups.setdefault(row.cells[0], []).append(row)
    return groups


def _panels(curves: Sequence[Curve], names: Mapping[str, str]) -> list[tuple[str, str]]:
    panels: dict[str, dict[str, Sequence[Mapping[str, float]]]] = {}
    for curve in curves:
        panels.setdefault(curve.panel, {})[curve.label] = curve.points
    return [(panel, plots.curves(panel, lines, names)) for panel, lines in panels.items()]


def write_page(path: Path, record: dict[str, Any], extras: Extras) -> None:
    """Writes the page atomically."""
    write_text(path, render(record, extras))
