"""The comparison as text: one row per metric, percent and percentage points, the headline sentence."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

__all__ = ["HEAD", "LEVEL", "Row", "estimate", "findings", "headline", "legend", "markdown", "plain", "rows"]

LEVEL = 0.05
_LEAD = (
    ("pope", "f1_macro"),
    ("pope", "adversarial/accuracy"),
    ("ohd_caps", "accuracy"),
    ("chair", "chair_s"),
    ("zero_shot", "accuracy"),
)
HEAD = ("benchmark", "metric", "stock", "ours", "ours − stock", "p", "p (Holm)", "by seed; McNemar")


@dataclass(frozen=True)
class Row:
    """One metric, formatted.

    Attributes:
        key: (benchmark, metric) as in results.json.
        headline: Whether a claim rests on it.
        cells: Benchmark, metric with unit, stock, ours, difference, p, corrected p, McNemar (by seed).
        verdict: `better`, `worse` or `` (no significant difference, or nothing to judge by).
    """

    key: tuple[str, str]
    headline: bool
    cells: tuple[str, ...]
    verdict: str


def rows(record: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each metric of a comparison, in the order of the record."""
    for name, part in record["benchmarks"].items():
        for metric, row in part["metrics"].items():
            unit = row["unit"]
            cells = (
                part["title"],
                f"{row['title']} ({unit})",
                estimate(row["stock"], unit),
                estimate(row["ours"], unit),
                estimate(row["difference"], unit, sign="+"),
                p_value(row["p"]),
                p_value(row["p_holm"]),
                by_seed(row),
            )
            yield Row((name, metric), row["headline"], cells, verdict(row))


def number(value: float, unit: str, sign: str = "-") -> str:
    """Formats one number: fractions in percent, one decimal, a true minus sign."""
    text = f"{100 * value if unit == '%' else value:{sign}.1f}"
    return text.replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def estimate(row: dict[str, Any], unit: str, sign: str = "-") -> str:
    """Formats a value with its 95 % interval, where there is one."""
    value = number(row["value"], unit, sign)
    if row["low"] is None:
        return value
    return f"{value} [{number(row['low'], unit, sign)}, {number(row['high'], unit, sign)}]"


def p_value(p: float | None) -> str:
    """Formats a p-value; empty where there is none."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def by_seed(row: dict[str, Any]) -> str:
    """Formats what each seed says: its difference (where there are several), and McNemar's test."""
    gaps = [number(gap, row["unit"], "+") for gap in row["by_seed"]] if len(row["by_seed"]) > 1 else []
    tests = [f"{m['ours_only']} : {m['stock_only']}, p {_equals(m['p'])}" for m in row["mcnemar"]]
    parts = [f"{gap} ({test})" if gap and test else gap or test for gap, test in zip_longest(gaps, tests, fillvalue="")]
    return "; ".join(parts).replace(" ", "\u00a0").replace(";\u00a0", "; ")


def _equals(p: float) -> str:
    return p_value(p).replace(" ", "\u00a0") if p < 0.001 else f"=\u00a0{p_value(p)}"


def verdict(row: dict[str, Any]) -> str:
    """Says whether ours is significantly `better` or `worse` (Holm-corrected p below 0.05), else ``."""
    if row["p_holm"] is None or row["p_holm"] >= LEVEL or row["better"] == "none":
        return ""
    return "better" if (row["difference"]["value"] > 0) == (row["better"] == "higher") else "worse"


def who(record: dict[str, Any], side: str) -> str:
    """Returns the name of the encoder of one side."""
    return ", ".join(record[side]["names"]) or side


def sentence(record: dict[str, Any], key: tuple[str, str]) -> str:
    """Says in one sentence what changed in one metric, by how much, and whether it is significant."""
    part = record["benchmarks"][key[0]]
    row = part["metrics"][key[1]]
    ours, stock, gap, unit = row["ours"], row["stock"], row["difference"], row["unit"]
    moved = "rises" if gap["value"] > 0 else "falls" if gap["value"] < 0 else "does not move:"
    before, after = (f"{number(side['value'], unit)}\u00a0{unit}" for side in (stock, ours))
    text = (
        f"{part['title']}: {row['title']} {moved} from {before} with {who(record, 'stock')} "
        f"to {after} with {who(record, 'ours')}"
    )
    if gap["low"] is None:
        return f"{text} (no answers per item, so no interval)."
    low, high = (number(gap[end], unit, "+") for end in ("low", "high"))
    judged = {"better": "a significant improvement", "worse": "a significant loss", "": "no significant change"}[
        verdict(row)
    ]
    return (
        f"{text}: {number(gap['value'], unit, '+')} points, {judged} "
        f"(95\u00a0% interval {low} to {high}, p\u00a0(Holm)\u00a0{_equals(row['p_holm'])})."
    )


def headline(record: dict[str, Any]) -> str:
    """Says what the comparison found in its most important metric."""
    return sentence(record, _headline_keys(record)[0])


def findings(record: dict[str, Any]) -> list[str]:
    """Says the same of the other headline metrics."""
    return [sentence(record, key) for key in _headline_keys(record)[1:]]


def _headline_keys(record: dict[str, Any]) -> list[tuple[str, str]]:
    keys = [row.key for row in rows(record) if row.headline] or [next(rows(record)).key]
    return sorted(keys, key=lambda key: _LEAD.index(key) if key in _LEAD else len(_LEAD))


def _chosen(record: dict[str, Any], everything: bool) -> list[tuple[str, ...]]:
    return [row.cells for row in rows(record) if everything or row.headline]


def plain(record: dict[str, Any], *, everything: bool = False) -> str:
    """Formats the headline metrics, or all, as a table for a terminal."""
    table = [HEAD, *_chosen(record, everything)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "─" * sum(widths), *lines[1:]])


def markdown(record: dict[str, Any]) -> str:
    """Formats the findings, the headline metrics and all metrics as Markdown."""
    parts = [f"- {text}" for text in (headline(record), *findings(record))]
    for title, everything in (("Headline metrics", False), ("All metrics", True)):
        lines = [" | ".join(row) for row in _chosen(record, everything)]
        parts.append(f"\n## {title}\n")
        parts += [f"| {line} |" for line in (" | ".join(HEAD), " | ".join("---" for _ in HEAD), *lines)]
    parts += ["", *(f"Missing: {text}" for text in record["missing"]), legend(record)]
    return "\n".join(parts) + "\n"


def legend(record: dict[str, Any]) -> str:
    """Says how the intervals and p-values of the table came about."""
    facts = record["statistics"]
    return (
        f"In brackets: {facts['interval']}, {facts['resamples']} resamples. p: {facts['p']}; p (Holm): "
        f"{facts['p_holm']}. McNemar: items that only ours has right : only stock has right, "
        "exact test, for each seed (after its difference, where there are several)."
    )
