"""Which hallucinations went away and which came: by object, and by what else the image shows.

A hallucination is an image and an object that it does not have: a question about it answered yes (POPE), or a mention
(CHAIR). It counts once per image, however often it is asked or said.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llava_ohd.report.comparison import Pairs
from llava_ohd.report.runs import Run, Truth
from llava_ohd.report.statistics import holm, mcnemar

__all__ = ["LIMIT", "breakdown", "markdown"]

LIMIT = 12  # rows of a table
_TITLES = {"pope": "POPE: absent objects affirmed", "chair": "CHAIR: absent objects mentioned"}


def breakdown(pairs: Pairs, truth: Truth) -> dict[str, Any]:
    """Counts hallucinations of both sides, those that went away, and those that came; seeds are added up.

    Returns:
        For `pope` and `chair`, where there are answers, `objects`: a row for each hallucinated object with `object`,
        `stock`, `ours`, `gone`, `came`, and for a single seed `p` (McNemar, exact) and `p_holm` over the rows; and
        `together`: the same by pairs of `object` and an object `beside` it in the image, without p. The largest change
        comes first.
    """
    found = {}
    for name in _TITLES:
        runs = [pair for pair in pairs.runs.get(name, []) if pair[0].invented and pair[1].invented]
        if runs:
            found[name] = {
                "seeds": len(runs),
                "objects": _with_p(_rows(_by_object(runs)), single=len(runs) == 1),
                "together": _rows(_together(runs, truth)),
            }
    return found


Sides = Mapping[str, Counter[tuple[str, ...]]]


def _by_object(runs: Sequence[tuple[Run, Run]]) -> Sides:
    return _count(((name,), side) for _, name, side in _changes(runs))


def _together(runs: Sequence[tuple[Run, Run]], truth: Truth) -> Sides:
    return _count(((name, other), side) for image, name, side in _changes(runs) for other in truth.objects_of(image))


def _changes(runs: Sequence[tuple[Run, Run]]) -> Iterator[tuple[str, str, str]]:
    """Yields image, object and `gone`, `came` or `kept` for every hallucination of any of the two models."""
    for ours, stock in runs:
        for image in dict.fromkeys([*stock.invented, *ours.invented]):
            before, after = (run.invented.get(image, frozenset()) for run in (stock, ours))
            for name in sorted(before | after):
                yield image, name, "kept" if name in before & after else "gone" if name in before else "came"


def _count(changes: Iterable[tuple[tuple[str, ...], str]]) -> Sides:
    sides: dict[str, Counter[tuple[str, ...]]] = {side: Counter() for side in ("gone", "came", "kept")}
    for key, side in changes:
        sides[side][key] += 1
    return sides


def _rows(sides: Sides) -> list[dict[str, Any]]:
    rows = []
    for key in {key for counted in sides.values() for key in counted}:
        gone, came, kept = (sides[side][key] for side in ("gone", "came", "kept"))
        names = dict(zip(("object", "beside"), key, strict=False))
        rows.append(names | {"stock": kept + gone, "ours": kept + came, "gone": gone, "came": came})
    return sorted(rows, key=lambda row: (-abs(row["gone"] - row["came"]), -row["stock"], row["object"], str(row)))


def _with_p(rows: list[dict[str, Any]], single: bool) -> list[dict[str, Any]]:
    """Adds p-values; over seeds the same images come again, so that counts added up have none."""
    if not single or not rows:
        return rows
    values = {row["object"]: _exact(row["gone"], row["came"]) for row in rows}
    adjusted = holm(values)
    return [row | {"p": values[row["object"]], "p_holm": adjusted[row["object"]]} for row in rows]


def _exact(gone: int, came: int) -> float:
    ours = np.array([True] * gone + [False] * came, dtype=bool)
    return mcnemar(ours, ~ours).p


def markdown(record: Mapping[str, Any]) -> str:
    """Returns the tables of `breakdown`, the rows that changed most."""
    parts = []
    for name, found in record.items():
        seeds = f", {found['seeds']} seeds added up" if found["seeds"] > 1 else ""
        parts.append(f"### {_TITLES[name]}{seeds}\n")
        for kind, head in (("objects", ["object"]), ("together", ["object", "beside"])):
            parts += [*_table(found[kind], head), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]], head: Sequence[str]) -> list[str]:
    columns = [*head, "stock", "ours", "gone", "came"]
    columns += [name for name in ("p", "p_holm") if rows and name in rows[0]]
    lines = [f"| {' | '.join(columns).replace('p_holm', 'p (Holm)')} |", "|" + " --- |" * len(columns)]
    for row in rows[:LIMIT]:
        cells = [f"{row[name]:.3g}" if name.startswith("p") else str(row[name]) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    if len(rows) > LIMIT:
        lines += ["", f"{len(rows) - LIMIT} more in results.json."]
    return lines
