"""The table of an ablation: means over seeds, and differences from the reference in pairs, seed by seed.

Two runs of one seed see the same rows in the same order and are measured on the same images, so that their difference
varies less than either. Intervals are Student's over seeds, 95 %: with three seeds they are wide, as they should be.
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["markdown", "summarise"]

_HEAD = ("loss", "OHD-Caps, %", "− reference", "zero-shot, %", "shuffled, %", "at step 1: L0, L1, L2")


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups the rows of `clip.ablation.run` by variant.

    Returns:
        The stock encoder, then one per variant in their order: `{"name", "changes", "n", "accuracy", "difference",
        "zero_shot", "shuffled", "first", "last"}`, where the middle four are `{"value", "low", "high", "values"}`;
        the ends are None where there is one seed. `difference` is from the first variant, over the seeds of both.
    """
    names = list(dict.fromkeys(row["variant"] for row in rows))
    by_name = {name: {row["seed"]: row for row in rows if row["variant"] == name} for name in names}
    reference = by_name[names[1]] if len(names) > 1 else {}
    return [_variant(name, by_name[name], reference) for name in names]


def _variant(name: str, runs: dict[Any, dict[str, Any]], reference: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    gaps = [row["accuracy"] - reference[seed]["accuracy"] for seed, row in runs.items() if seed in reference]
    found = {"name": name, "changes": first["changes"], "n": first["n"], "seeds": [s for s in runs if s is not None]}
    for key in ("accuracy", "zero_shot", "shuffled"):
        found[key] = _estimate([row[key] for row in runs.values()])
    found["difference"] = _estimate(gaps) if gaps else None
    for key in ("first", "last"):
        parts = [row[key] for row in runs.values() if key in row]
        found[key] = {part: mean(row[part] for row in parts) for part in parts[0]} if parts else None
    return found


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    from scipy.stats import t

    found: dict[str, Any] = {"value": mean(values), "low": None, "high": None, "values": list(values)}
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        found |= {"low": found["value"] - half, "high": found["value"] + half}
    return found


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    """Writes the table; percent, and points for the difference, which the reference has none of."""
    reference = summary[1]["name"] if len(summary) > 1 else None
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for row in summary:
        parts = row["first"]
        compared = row["difference"] is not None and row["name"] != reference
        cells = (
            row["name"],
            _cell(row["accuracy"]),
            _cell(row["difference"], "+") if compared else "",
            _cell(row["zero_shot"]),
            f"{100 * row['shuffled']['value']:.1f}",
            ", ".join(f"{parts[key]:.2f}" for key in ("contrastive", "margin1", "margin2")) if parts else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(estimate: dict[str, Any], sign: str = "-") -> str:
    def number(value: float) -> str:
        return f"{100 * value:{sign}.1f}".replace("-", "−")

    if estimate["low"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"
