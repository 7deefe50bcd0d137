"""The rows as Markdown tables, encoders side by side."""

from collections.abc import Mapping, Sequence

from llava_ohd.probes.estimates import Estimate
from llava_ohd.probes.rows import SECTIONS, Row

__all__ = ["as_table"]

_RATIOS = {"density"}


def as_table(encoders: Mapping[str, Sequence[Row]]) -> str:
    """Writes a Markdown table per section, the encoders side by side; percent, or a ratio for `density`.

    Args:
        encoders: Rows by name of the encoder. Counts that differ between them stand in their order, with a slash.
    """
    lines: list[str] = []
    for section, title in SECTIONS.items():
        keys: dict[tuple[str, str], Row] = {
            (row.group, row.label): row for found in encoders.values() for row in found if row.section == section
        }
        if not keys:
            continue
        lines += [
            f"**{title}**",
            "",
            "| | | " + " | ".join(encoders) + " | reference | n |",
            "|" + "---|" * (len(encoders) + 4),
        ]
        for (group, label), row in keys.items():
            estimates = [_find(found, section, group, label) for found in encoders.values()]
            cells = [_cell(estimate, section) for estimate in estimates]
            reference = "" if row.reference is None else _number(row.reference, section)
            counts = " / ".join(dict.fromkeys(_count(estimate) for estimate in estimates))
            lines.append(f"| {group} | {label} | " + " | ".join(cells) + f" | {reference} | {counts} |")
        lines.append("")
    return "\n".join(lines)


def _find(found: Sequence[Row], section: str, group: str, label: str) -> Estimate | None:
    wanted = (section, group, label)
    return next((row.estimate for row in found if (row.section, row.group, row.label) == wanted), None)


def _count(estimate: Estimate | None) -> str:
    """Returns on how many items a share rests, in brackets how many are independent where these are fewer."""
    if estimate is None:
        return "–"
    return f"{estimate.n:,}" + f" ({estimate.independent:,})" * (estimate.independent != estimate.n)


def _cell(estimate: Estimate | None, section: str) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value, section)
    low, high = _number(estimate.low, section), _number(estimate.high, section)
    return f"{_number(estimate.value, section)} [{low}, {high}]"


def _number(value: float, section: str) -> str:
    return f"{value:.2f}" if section in _RATIOS else f"{100 * value:.1f}"
