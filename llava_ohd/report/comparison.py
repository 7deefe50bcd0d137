"""Compares two models on every benchmark that both were measured on; refuses what cannot be compared.

The result is one record, `results.json`, and everything that is shown anywhere (table, page) is taken from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.home import from_home
from llava_ohd.report.benchmarks import BENCHMARKS, Benchmark, Measure, Run, Truth
from llava_ohd.report.counted_runs import measures_of
from llava_ohd.report.statistics import RESAMPLES, PairedBootstrap, holm, mcnemar
from llava_ohd.results import versions

__all__ = ["Pairs", "compare", "read_pairs"]

_RUN_SPECIFIC = {"seed", "shuffle_seed", "batch_size", "device", "out", "seconds"}

_ANSWERED = ("image_aspect_ratio", "image_backend", "template", "dtype", "bits", "sampling")  # in `model`


@dataclass(frozen=True)
class Pairs:
    """The runs of both models, by benchmark, seed by seed.

    Attributes:
        runs: (ours, stock) for each seed that both have.
        missing: One sentence for each folder that is not there.
    """

    runs: Mapping[str, Sequence[tuple[Run, Run]]]
    missing: Sequence[str] = field(default_factory=tuple)


def read_pairs(ours: Sequence[Path], stock: Sequence[Path], truth: Truth) -> Pairs:
    """Reads the folders of both models.

    Args:
        ours: One folder per seed with subfolders `pope`, `chair`, `ohd_caps`, `zero_shot`, ..., each optional.
        stock: The same for the other model, seed by seed.
        truth: Labels and objects of the test images.

    Raises:
        DataFormatError: another number of seeds, a folder that does not exist, nothing in common, incomplete runs,
            differing terms (rule, set, n, generation settings), results of several encoders in one folder, or metrics
            that do not follow from the answers.
        AnswersMismatch: the answers of a run are not those to the questions.
    """
    if len(ours) != len(stock):
        raise DataFormatError(f"{len(ours)} folders of ours and {len(stock)} of stock; give one of each per seed")
    if len({(one.resolve(), other.resolve()) for one, other in zip(ours, stock, strict=True)}) < len(ours):
        raise DataFormatError(f"{ours[0]} and {stock[0]} are given twice; a pair of folders is one seed")
    for folder in (*ours, *stock):
        if not folder.is_dir():
            raise DataFormatError(f"{folder} is not a folder; run the evaluations with --out {folder}/pope etc. first")
        if (folder / "results.json").is_file():
            raise DataFormatError(f"{folder} is the folder of one benchmark; give {folder.parent}, which holds it")
    runs: dict[str, list[tuple[Run, Run]]] = {}
    missing = []
    for benchmark in BENCHMARKS:
        for pair in zip(ours, stock, strict=True):
            absent = [folder for folder in pair if not (folder / benchmark.name / "results.json").is_file()]
            if benchmark.measures or len(absent) == 1:  # what few run is missed only on one side
                missing += [f"{benchmark.title}: no {folder / benchmark.name}/results.json" for folder in absent]
            if not absent:
                one, other = (benchmark.read(folder / benchmark.name, truth) for folder in pair)
                runs.setdefault(benchmark.name, []).append((one, other))
        found = runs.get(benchmark.name, [])
        _check(benchmark, found)
        if found and benchmark.measures and not found[0][0].images:
            missing.append(f"{benchmark.title}: values only, without answers or labels there are no intervals")
    _check_encoders([*ours, *stock], [run for pairs in runs.values() for pair in pairs for run in pair])
    if not runs:
        raise DataFormatError("the two models share no benchmark. " + ". ".join(missing))
    return Pairs(runs, missing)


def _check_encoders(folders: Sequence[Path], runs: Sequence[Run]) -> None:
    for folder in folders:
        digests: dict[str, Path] = {}
        for run in runs:
            if run.folder.parent == folder and (run.record.get("encoder") or {}).get("digest"):
                digests.setdefault(run.record["encoder"]["digest"], run.folder)
        if len(digests) > 1:
            found = "; ".join(f"{place} of {digest[:12]}" for digest, place in digests.items())
            raise DataFormatError(
                f"{folder} holds results of different encoders: {found}. Run all evaluations again with one encoder."
            )


def _check(benchmark: Benchmark, pairs: Sequence[tuple[Run, Run]]) -> None:
    for pair in pairs:
        # The data of two seeds may lie in two places; a pair must be of the same set by name.
        _check_agreement(pair[0], pair[1], ("set",))
        for run in pair:
            _check_agreement(pairs[0][0], run)
            for measure in benchmark.measures:
                _check_value(run, measure)


def _check_agreement(one: Run, other: Run, further: Sequence[str] = ()) -> None:
    for run in (one, other):
        if not run.record["complete"]:
            raise DataFormatError(f"{run.folder} is incomplete; run its evaluation again, it goes on where it stopped")
    first, second = ({**_terms(run), **{key: run.record[key] for key in further}} for run in (one, other))
    differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    if differing:
        raise DataFormatError(
            f"{one.folder} and {other.folder} cannot be compared: "
            + "; ".join(f"{key} is {first.get(key)!r} and {second.get(key)!r}" for key in differing)
            + ". Evaluate both on the same terms."
        )
    if one.images != other.images:
        raise AnswersMismatch(
            f"{one.folder} ({len(one.images)} images answered) and {other.folder} ({len(other.images)}) are not about "
            "the same images; evaluate both on the same split"
        )


def _terms(run: Run) -> dict[str, Any]:
    settings = {key: value for key, value in run.record.get("settings", {}).items() if key not in _RUN_SPECIFIC}
    model = run.record.get("model") or {}
    how = {f"model's {key}": model[key] for key in _ANSWERED if key in model}
    return {**settings, **how, **{key: run.record.get(key) for key in ("eval", "rule", "n")}}


def _check_value(run: Run, measure: Measure) -> None:
    reported = run.record["metrics"].get(measure.name)
    if measure.statistic is None or not run.images or reported is None:
        return
    value = float(measure.statistic(run.counts.sum(0).astype(float)))
    if abs(value - reported["value"]) > 1e-9:
        raise DataFormatError(
            f"{run.folder}: results.json says {measure.name} is {reported['value']:.4f}, the answers beside it give "
            f"{value:.4f}; they are not of the same run, or the labels are others. Run the evaluation again."
        )


def compare(pairs: Pairs, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Computes values, intervals and p-values of every metric.

    Args:
        pairs: From `read_pairs`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The record: `ours`, `stock` (encoder and models), `benchmarks` -> name -> `rule`, `set`, `n`, `images`, `seeds`,
        `metrics` -> name -> `ours`, `stock`, `difference` (each `value`, `low`, `high`; fractions), `p`, `p_holm` (over
        the headline metrics), `by_seed`, `mcnemar` (per seed), `missing`, `statistics`, `versions`.
    """
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    benchmarks = {name: _benchmark(by_name[name], runs, resamples, seed) for name, runs in pairs.runs.items()}
    headline = {
        (name, metric): row["p"]
        for name, part in benchmarks.items()
        for metric, row in part["metrics"].items()
        if row["headline"] and row["p"] is not None
    }
    for key, corrected in holm({"\n".join(key): p for key, p in headline.items()}).items():
        name, metric = key.split("\n")
        benchmarks[name]["metrics"][metric]["p_holm"] = corrected
    return {
        "kind": "comparison",
        "ours": _who([one for runs in pairs.runs.values() for one, _ in runs]),
        "stock": _who([other for runs in pairs.runs.values() for _, other in runs]),
        "benchmarks": benchmarks,
        "missing": list(pairs.missing),
        "statistics": {
            "interval": "95 % interval (percentile, paired bootstrap over images)",
            "resamples": resamples,
            "seed": seed,
            "p": "two-sided, bootstrap",
            "p_holm": f"Holm over {len(headline)} headline metrics",
            "mcnemar": "exact, per seed",
        },
        "versions": versions(),
    }


def _benchmark(benchmark: Benchmark, runs: Sequence[tuple[Run, Run]], resamples: int, seed: int) -> dict[str, Any]:
    record, images = runs[0][0].record, runs[0][0].images
    bootstrap = None
    if images:
        ours, stock = (np.stack([pair[side].counts for pair in runs]) for side in (0, 1))
        bootstrap = PairedBootstrap(ours, stock, resamples=resamples, seed=seed)
    metrics = {}
    measures = benchmark.measures or (measures_of(runs[0][0]) if images else ())
    for measure in (*measures, *_reported_only(measures, record)):
        if all(measure.name in run.record["metrics"] for pair in runs for run in pair):
            metrics[measure.name] = _metric(measure, runs, bootstrap)
    return {
        "title": benchmark.title,
        **{key: record.get(key) for key in ("rule", "set", "n", "settings")},
        "images": len(images),
        "seeds": len(runs),
        "metrics": metrics,
    }


def _reported_only(measures: Sequence[Measure], record: dict[str, Any]) -> list[Measure]:
    """Metrics that results.json has beyond those with counts: shown as they are, but for the ends of intervals."""
    known = {measure.name for measure in measures}
    extra = {name: row for name, row in record["metrics"].items() if not name.endswith(("_low95", "_high95"))}
    others = {name: row["better"] for name, row in extra.items() if name not in known}
    return [Measure(name, name.replace("_", " "), better, None) for name, better in others.items()]


def _metric(measure: Measure, runs: Sequence[tuple[Run, Run]], bootstrap: PairedBootstrap | None) -> dict[str, Any]:
    row: dict[str, Any] = {key: getattr(measure, key) for key in ("title", "better", "unit", "headline")}
    if bootstrap is not None and measure.statistic is not None:
        row |= asdict(bootstrap.difference(measure.statistic))
        row["by_seed"] = list(row["by_seed"])
    else:
        row |= _values_only(measure.name, runs)
    row |= {"p_holm": None, "mcnemar": []}
    if all(measure.name in run.right for pair in runs for run in pair):
        for one, other in runs:
            items = list(one.right[measure.name])
            right = [np.array([run.right[measure.name][item] for item in items]) for run in (one, other)]
            row["mcnemar"].append(asdict(mcnemar(*right)))
    return row


def _values_only(name: str, runs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    values = np.array([[run.record["metrics"][name]["value"] for run in pair] for pair in runs])
    gaps = values[:, 0] - values[:, 1]
    ours, stock, gap = ({"value": float(value), "low": None, "high": None} for value in (*values.mean(0), gaps.mean()))
    return {"ours": ours, "stock": stock, "difference": gap, "p": None, "by_seed": gaps.tolist()}


def _who(runs: Sequence[Run]) -> dict[str, Any]:
    encoders = [run.record.get("encoder") or {} for run in runs]
    # Where a LLaVA answered, the encoder has the name that the user gave it; elsewhere that of its folder.
    asked = [run.record.get("encoder") or {} for run in runs if run.record.get("model")]
    models = [run.record.get("model") for run in runs if run.record.get("model")]
    return {
        "names": sorted({encoder["name"] for encoder in asked or encoders if encoder.get("name")}),
        "digests": sorted({encoder["digest"] for encoder in encoders if encoder.get("digest")}),
        "models": [model for place, model in enumerate(models) if model not in models[:place]],
        "folders": sorted({from_home(run.folder.parent) for run in runs}),
    }
