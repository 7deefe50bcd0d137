"""The LaTeX table of a comparison written by hand."""

from typing import Any

from llava_ohd.report.latex import escaped, latex


def _metric(headline: bool, p: float) -> dict[str, Any]:
    row: dict[str, Any] = {"title": "F1_macro", "unit": "%", "headline": headline, "better": "higher"}
    row |= {"stock": {"value": 0.75, "low": 0.7, "high": 0.8}, "ours": {"value": 0.5, "low": 0.4, "high": 0.6}}
    row |= {"difference": {"value": -0.25, "low": -0.3, "high": -0.2}, "p": p, "p_holm": p, "by_seed": [-0.25]}
    return row | {"mcnemar": []}


def test_headline_row_is_printed_as_latex_reads_it() -> None:
    """Percent, underscore, minus and less-than are escaped; rows that are no headline are left out."""
    facts = {"interval": "95 % interval", "resamples": 10, "p": "two-sided", "p_holm": "Holm over 1"}
    part = {"title": "POPE & co", "metrics": {"a": _metric(True, 0.0001), "b": _metric(False, 0.5)}}
    lines = latex({"benchmarks": {"pope": part}, "statistics": facts}).splitlines()
    assert lines[0].startswith("% In brackets: 95 % interval, 10 resamples.")
    assert lines[1] == r"\begin{tabular}{llrrrrr}"
    assert lines[5:] == [
        r"{POPE \& co} & {F1\_macro (\%)} & {75.0 [70.0, 80.0]} & {50.0 [40.0, 60.0]} & {$-$25.0 [$-$30.0, $-$20.0]}"
        r" & {\textless{} 0.001} & {\textless{} 0.001} \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_every_special_sign_is_escaped() -> None:
    """The ten signs of LaTeX, each once."""
    assert escaped("\\{}&%$#_~^") == r"\textbackslash{}\{\}\&\%\$\#\_\textasciitilde{}\textasciicircum{}"
