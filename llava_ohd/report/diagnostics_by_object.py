"""Object by object: what changed in an encoder, and what its LLaVA stopped hallucinating."""

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense import is_hit
from llava_ohd.evals.pope import object_of
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.report import benchmarks
from llava_ohd.report.diagnostics_terms import read_alike

__all__ = ["Numbers", "chances", "correlations", "hallucinated", "of_encoders", "scatter"]

Numbers = dict[str, dict[str, float]]
"""What is counted, and its change (ours minus stock) by object."""

_FEWEST = 5  # objects of a correlation
_OF_FOUR = "4"  # objects; where a set has fewer, its largest number


def change(stock: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, float]:
    """Returns ours minus stock for the objects that both know."""
    return {name: ours[name] - stock[name] for name in sorted(stock.keys() & ours.keys())}


# --- encoders


def of_encoders(folders: Sequence[Path]) -> Numbers:
    """Returns what changed in the encoder, from the results that are there.

    Args:
        folders: Of the results of stock and ours.
    """
    return _probes(folders) | _localised(folders)


def _probes(folders: Sequence[Path]) -> Numbers:
    files = [folder / "multi_object" / name for folder in folders for name in ("results.json", "details.json")]
    if not all(file.is_file() for file in files):
        return {}
    sides = [read_json(file)["probes"] for file in files[1::2]]
    found = {"exchange of it, small, is noticed (crossed)": change(*map(_noticed, sides))}
    for title, probe in (
        ("named after the first, the caption is nearest to it (TOR)", "text"),
        ("small, the picture is nearest to it (IOR)", "pictures"),
    ):
        if all(side[probe] for side in sides):
            found[title] = change(*(_nearest(side[probe]) for side in sides))
    return found


def _noticed(probes: Mapping[str, Any]) -> dict[str, float]:
    whole = next(one for one in probes["matching"] if one["scorer"] == "whole")
    return {row["object"]: row["value"] for row in whole["by_object"] if row["size"] == "small"}


def _nearest(by_count: Mapping[str, Any]) -> dict[str, float]:
    """Returns by object how often it is nearest of all that are there where it is not the first (the large) one."""
    one = by_count[_OF_FOUR if _OF_FOUR in by_count else max(by_count)]
    found = {}
    for name, estimates in one["by_class"]:
        known = [(row["value"], row["n"]) for row in estimates[1:] if row["n"]]
        if known:
            found[name] = sum(value * n for value, n in known) / sum(n for _, n in known)
    return found


def _localised(folders: Sequence[Path]) -> Numbers:
    sides = []
    for folder in folders:
        file = folder / "dense/words.jsonl"
        if not (file.is_file() and (folder / "dense/results.json").is_file()):
            return {}
        hits: dict[str, list[bool]] = defaultdict(list)
        for row in read_jsonl(file):
            if row["wrong"]:
                hits[row["wrong"][0]].append(is_hit(row["words"], row["wrong"][0]))
        sides.append({name: sum(found) / len(found) for name, found in hits.items()})
    return {"it is the lowest word where it is wrong": change(*sides)}


# --- LLaVA


def hallucinated(names: Sequence[str], folders: Sequence[Path], data: Path) -> tuple[Numbers, list[str]]:
    """Returns what changed in the LLaVA, and what is missing, a sentence each.

    Args:
        names: Of the encoders.
        folders: Of their results.
        data: Labels and annotations.

    Raises:
        DataFormatError: as `diagnostics_terms.read_alike`; or answers and labels do not belong together.
    """
    truth = benchmarks.read_truth(data, "test")
    found: Numbers = {}
    missing = []
    for name, read in (("pope", benchmarks.read_pope), ("chair", benchmarks.read_chair)):
        results = read_alike(names, folders, name)
        if isinstance(results, str):
            missing.append(results)
            continue
        runs = [read(folder / name, truth) for folder in folders]
        if not all(run.images for run in runs):
            missing.append(
                f"{name.upper()} by object: it needs answers.jsonl beside each results.json, labels in {data}"
            )
            continue
        if runs[0].images != runs[1].images:
            raise DataFormatError(
                f"{runs[0].folder} and {runs[1].folder} are not about the same images; measure both again"
            )
        shares = (_shares(name, run, truth) for run in runs)
        found[f"{name.upper()}: share of images without it in which it is hallucinated"] = change(*shares)
    return found, missing


def _shares(name: str, run: benchmarks.Run, truth: benchmarks.Truth) -> dict[str, float]:
    possible = chances(name, run.images, truth, str(run.record["rule"]).split()[0])
    counts: dict[str, int] = dict.fromkeys(possible, 0)
    for names in run.invented.values():
        for one in names & possible.keys():
            counts[one] += 1
    if wrong := [one for one in possible if counts[one] > possible[one]]:
        raise DataFormatError(
            f"{run.folder}: {wrong[0]} is hallucinated in {counts[wrong[0]]} of {possible[wrong[0]]} images without "
            "it; answers and labels do not belong together. Measure again"
        )
    return {one: counts[one] / number for one, number in possible.items() if number}


def chances(name: str, images: Iterable[str], truth: benchmarks.Truth, rule: str = "exact") -> dict[str, int]:
    """Returns by object in how many of some images a hallucination of it could have been counted.

    Args:
        name: `pope` (images without it in which it was asked for) or `chair` (images without it).
        images: Those that were answered; ground truth may name more, and each under two names.
        truth: Labels.
        rule: By which CHAIR finds objects, in the ground truth's captions, too.
    """
    seen = set(images)
    if name == "pope":
        asked = {(q.image, object_of(q.prompt)) for q in truth.questions or () if q.label == "no" and q.image in seen}
        return {one: sum(other == one for _, other in asked) for one in {other for _, other in asked}}
    objects = (truth.objects_by(rule) if truth.objects_by and rule != "exact" else truth.objects) or {}
    everything = {one for names in objects.values() for one in names}
    return {one: sum(one not in objects[image] for image in seen) for one in everything}


# --- both


def correlations(probes: Numbers, hallucinations: Numbers) -> list[dict[str, Any]]:
    """Correlates by rank what changed in the encoder with what changed in the LLaVA, over objects.

    Returns:
        Rows `encoder`, `llava`, `n` objects, `rho` and its two-sided `p`; both None where one does not vary or there
        are fewer than 5 objects. No correction for the number of rows.
    """
    rows = []
    for one, changed in probes.items():
        for other, said in hallucinations.items():
            names = sorted(changed.keys() & said.keys())
            left, right = [changed[name] for name in names], [said[name] for name in names]
            row: dict[str, Any] = {"encoder": one, "llava": other, "n": len(names), "rho": None, "p": None}
            if len(names) >= _FEWEST and len(set(left)) > 1 and len(set(right)) > 1:
                found = spearmanr(left, right)
                row |= {"rho": float(found.statistic), "p": float(found.pvalue)}
            rows.append(row)
    return rows


def scatter(probes: Numbers, hallucinations: Numbers) -> str:
    """Draws what changed in the encoder against what changed in the LLaVA, a point per object; points are percent.

    Returns:
        An SVG of the first of `probes`, a panel for each of `hallucinations`; empty where one of them has nothing.
    """
    if not probes or not hallucinations:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    title, changed = next(iter(probes.items()))
    figure = Figure(figsize=(4.6 * len(hallucinations), 3.6), layout="constrained")
    panes = figure.subplots(1, len(hallucinations), squeeze=False)[0]
    for axes, (other, said) in zip(panes, hallucinations.items(), strict=True):
        for name in sorted(changed.keys() & said.keys()):
            across, up = 100 * changed[name], 100 * said[name]
            axes.scatter(across, up, s=14, color="#1f6f8b")
            axes.annotate(name, (across, up), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axes.axhline(0, color="#444444", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"{title},\nours minus stock (percentage points)", fontsize=8)
        axes.set_ylabel(
            f"{other.partition(':')[0]}: images hallucinated in,\nours minus stock (percentage points)", fontsize=8
        )
        axes.tick_params(labelsize=8)
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llava_ohd"}):
        figure.savefig(drawn, format="svg", facecolor="white", metadata={"Date": None})
    return drawn.getvalue()
