"""Benchmarks whose evaluation writes counts by image and how its metrics follow from them (evals/counted.py)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_jsonl
from llava_ohd.report.runs import Measure, Run, Truth
from llava_ohd.report.statistics import Array
from llava_ohd.results import read_results

__all__ = ["measures_of", "read_counted"]

_HEADLINES = ("amber", "score")
_ROUNDED = 2e-3  # AMBER rounds to a thousandth, and adds one to denominators


def read_counted(folder: Path, truth: Truth) -> Run:
    """Reads results.json and counts.jsonl; only values where there are no counts.

    Raises:
        DataFormatError: an image twice, or counts from which the metrics do not follow.
    """
    record, file = read_results(folder / "results.json"), folder / "counts.jsonl"
    if not file.is_file() or not (names := _names(record)):
        return Run(folder, record)
    rows = sorted(read_jsonl(file), key=lambda row: str(row["image"]))
    images = tuple(str(row["image"]) for row in rows)
    if len(set(images)) < len(images):
        raise DataFormatError(f"{file} has an image twice; run the evaluation again")
    run = Run(folder, record, images, np.array([[row.get(name, 0) for name in names] for row in rows], np.int64))
    totals = run.counts.sum(0).astype(float)
    for measure in measures_of(run):
        reported = record["metrics"][measure.name]["value"]
        value = float(measure.statistic(totals)) if measure.statistic else reported
        if abs(value - reported) > _ROUNDED:
            raise DataFormatError(
                f"{folder}: results.json says {measure.name} is {reported:.4f}, counts.jsonl beside it gives "
                f"{value:.4f}; they are not of the same run. Run the evaluation again."
            )
    return run


def measures_of(run: Run) -> list[Measure]:
    """Returns the metrics that follow from the counts of a run."""
    names, metrics = _names(run.record), run.record["metrics"]
    places = {name: place for place, name in enumerate(names)}
    found = []
    for name, formula in _formulas(run.record).items():
        if name not in metrics:
            continue
        terms = [(weight, *([places[one] for one in part] for part in parts)) for weight, *parts in formula["terms"]]
        statistic = partial(_value, terms, formula["constant"])
        unit = "points" if name.rpartition("/")[2] == "score" else "%"
        title, better = name.replace("_", " "), metrics[name]["better"]
        found.append(Measure(name, title, better, statistic, headline=name in _HEADLINES, unit=unit))
    return found


def _formulas(record: dict[str, Any]) -> dict[str, Any]:
    return dict((record.get("details") or {}).get("formulas") or {})


def _names(record: dict[str, Any]) -> list[str]:
    """Returns the counts that the formulas use, in their order."""
    terms = (term for formula in _formulas(record).values() for term in formula["terms"])
    return list(dict.fromkeys(name for _, *parts in terms for part in parts for name in part))


def _value(terms: list[Any], constant: float, totals: Array) -> Array:
    """Totals (..., K) -> (...); a quotient over nothing is 0."""
    result = np.full(totals.shape[:-1], constant)
    for weight, part, whole in terms:
        below = totals[..., whole].sum(-1)
        result = result + weight * np.divide(
            totals[..., part].sum(-1), below, out=np.zeros_like(below), where=below > 0
        )
    return result
