"""The headline metrics of a comparison as a LaTeX table for a paper; needs no package but LaTeX itself."""

from collections.abc import Sequence
from typing import Any

from llava_ohd.report.table import HEAD, legend, rows

__all__ = ["escaped", "latex"]

_COLUMNS = slice(0, 7)  # without the tests by seed, which a page has no room for
_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "\u00a0": "~",
}


def escaped(text: str) -> str:
    """Returns the text as LaTeX prints it."""
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def latex(record: dict[str, Any]) -> str:
    """Formats the headline metrics, all if there is none; how the numbers came about stands above as a comment."""
    table = list(rows(record))
    chosen = [row.cells for row in table if row.headline] or [row.cells for row in table]
    begin = f"% {legend(record)}\n\\begin{{tabular}}{{llrrrrr}}"
    lines = [begin, r"\hline", _line(HEAD), r"\hline", *map(_line, chosen), r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    # braces: LaTeX would take a cell that begins with "[" for the argument of the line break before it
    return " & ".join(f"{{{escaped(cell)}}}" for cell in cells[_COLUMNS]) + r" \\"
