"""The table of the ladder: what each rung reaches, what it gains on the stock model, and what it costs.

Differences are paired over the images, as everywhere (statistics.py); p-values are corrected over all of them (Holm).
Costs are what the model folders hold: Trainer's own seconds, and the number of weights that were trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llava_ohd.files import read_json
from llava_ohd.report.comparison import compare, read_pairs
from llava_ohd.report.runs import Truth
from llava_ohd.report.statistics import holm
from llava_ohd.results import versions

__all__ = ["PANELS", "costs", "drawn", "markdown", "summarise"]

METRICS = {
    ("pope", "f1_macro"): "POPE F1 (macro)",
    ("pope", "adversarial/accuracy"): "POPE adversarial accuracy",
    ("chair", "chair_i"): "CHAIRi",
    ("chair", "chair_s"): "CHAIRs",
    ("chair", "recall"): "CHAIR recall",
}
PANELS = {f"{benchmark}/{name}": f"{title}, %" for (benchmark, name), title in METRICS.items()}
"""Title of each panel of the figure, by the key of its estimate."""
_TESTED = [key for key in METRICS if key[1] != "recall"]


def costs(projector: Path | None, both: Path | None, refit: Path) -> dict[str, dict[str, float]]:
    """Returns what each rung took beyond the stock model and the new encoder.

    Args:
        projector: What stage projector wrote.
        both: The model of the second stage.
        refit: Folder of the re-fitted model.

    Returns:
        By rung: `seconds`, `ranks` that took them, `trained` weights, and `fitted` numbers of least squares. Seconds
        are None where a folder does not say; of a run that was resumed, they are those of its last part.
    """
    nothing = {"seconds": 0.0, "ranks": 1, "trained": 0, "fitted": 0}
    fitted = read_json(refit / "refit.json")
    found = {"stock": nothing, "swap": nothing}
    found["refit"] = nothing | {"seconds": fitted["seconds"], "fitted": fitted["fitted_numbers"]}
    first = None if projector is None else _training(projector if projector.is_dir() else projector.parent)
    if first is not None:
        found["stage1"] = nothing | first
    if both is not None:
        second = _training(both)
        known = first is not None and first["seconds"] is not None and second["seconds"] is not None
        total = first["seconds"] + second["seconds"] if first is not None and known else None
        found["both"] = nothing | second | {"seconds": total}
    return found


def _training(folder: Path) -> dict[str, Any]:
    """Returns seconds, ranks and trained weights of one stage."""
    history: list[dict[str, float]] = []
    if (folder / "trainer_state.json").is_file():
        history = read_json(folder / "trainer_state.json")["log_history"]
    seconds = [row["train_runtime"] for row in history if "train_runtime" in row]
    record = read_json(folder / "ohd.json")
    trained = sum(_numbers(folder / name) for name in record["weights"])
    ranks = record["config"].get("world_size", 1)
    return {"seconds": seconds[-1] if seconds else None, "ranks": ranks, "trained": trained}


def _numbers(file: Path) -> int:
    opened: Any = safe_open(file, framework="pt")
    total = 0
    for name in list(opened.keys()):
        size = 1
        for side in opened.get_slice(name).get_shape():
            size *= side
        total += size
    return total


def summarise(
    folders: Sequence[Path], truth: Truth, titles: Mapping[str, str], spent: Mapping[str, Any], resamples: int
) -> dict[str, Any]:
    """Compares every rung with the stock model.

    Args:
        folders: Ladders, one per seed, with `eval/RUNG/{pope,chair}`.
        truth: Labels of the images.
        titles: Rungs in order, and what tables call them; those that were not measured are left out.
        spent: What `costs` returns, of the first ladder.
        resamples: Of the bootstrap.

    Returns:
        `{"seeds", "rungs": [{"rung", "name", "cost", "encoder", "models", "metrics": {key: {"value": estimate,
        "difference": estimate or None, "p", "p_holm"}}}], "statistics", "versions"}`.

    Raises:
        DataFormatError, AnswersMismatch: as `comparison.read_pairs`.
    """
    stock = [folder / "eval/stock" for folder in folders]
    rungs: list[dict[str, Any]] = []
    statistics: dict[str, Any] = {}
    for rung in (name for name in titles if (folders[0] / "eval" / name).is_dir()):
        ours = [folder / "eval" / rung for folder in folders]
        record = compare(read_pairs(ours, stock, truth), resamples=resamples)
        statistics = record["statistics"]
        rungs.append(
            {
                "rung": rung,
                "name": titles[rung],
                "cost": spent[rung],
                "encoder": {key: record["ours"][key] for key in ("names", "digests")},
                "models": record["ours"]["models"],
                "metrics": {
                    f"{benchmark}/{name}": _metric(record["benchmarks"][benchmark]["metrics"][name], rung == "stock")
                    for benchmark, name in METRICS
                },
            }
        )
    tested = ["/".join(key) for key in _TESTED]
    p_values = {f"{row['rung']}\n{key}": row["metrics"][key]["p"] for row in rungs[1:] for key in tested}
    for place, corrected in holm(p_values).items():
        rung, key = place.split("\n")
        next(row for row in rungs if row["rung"] == rung)["metrics"][key]["p_holm"] = corrected
    statistics |= {"p_holm": f"Holm over {len(p_values)} differences", "mcnemar": None}
    record = {"kind": "ladder", "seeds": len(folders), "rungs": rungs, "statistics": statistics}
    return record | {"versions": versions()}


def _metric(row: Mapping[str, Any], stock: bool) -> dict[str, Any]:
    found = {"value": row["ours"], "better": row["better"], "difference": None, "p": None, "p_holm": None}
    return found if stock else found | {"difference": row["difference"], "p": row["p"], "by_seed": row["by_seed"]}


def drawn(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows that `figures.estimates` draws, with the panels `PANELS`."""
    return [
        {"name": row["name"]} | {key: row["metrics"][key]["value"] | {"values": []} for key in PANELS}
        for row in record["rungs"]
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """Writes two tables: what each rung reaches and costs, and its differences from the stock model.

    Args:
        record: What `summarise` returns; also `refit`, the content of refit.json, and `differing`, in what the
            trainings of the first and the last differ, where these are known.
    """
    head = ("", *METRICS.values(), "seconds", "trained weights")
    lines = [_row(head), "|" + "---|" * len(head)]
    for row in record["rungs"]:
        cells = [_estimate(metric["value"]) for metric in row["metrics"].values()]
        lines.append(_row((row["name"], *cells, _seconds(row["cost"]), _weights(row["cost"]))))
    head = ("minus the stock model", *METRICS.values())
    lines += ["", _row(head), "|" + "---|" * len(head)]
    for row in record["rungs"][1:]:
        cells = [_difference(metric) for metric in row["metrics"].values()]
        lines.append(_row((row["name"], *cells)))
    statistics = record["statistics"]
    seeds = f", {record['seeds']} seeds" if record["seeds"] > 1 else ""
    lines += [
        "",
        f"Percent and points; in brackets: {statistics['interval']}, {statistics['resamples']} resamples{seeds}. p: "
        f"two-sided, bootstrap, {statistics['p_holm']}. CHAIR: lower is better, but for recall.",
    ]
    if fitted := record.get("refit"):
        before = fitted["explained_before"]
        lines += [
            "",
            f"The fitted map explains {_number(fitted['explained_held_out'])} % of the variance of the stock encoder's "
            f"features, on tokens held out of {fitted['images']} images"
            + ("." if before is None else f"; the new features as they are, {_number(before)} %."),
        ]
    if record.get("differing"):
        lines += ["", f"The stock model and the last were not trained alike: {'; '.join(record['differing'])}."]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, sign: str = "-") -> str:
    return f"{100 * value:{sign}.1f}".replace("-", "−")


def _estimate(value: Mapping[str, float | None], sign: str = "-") -> str:
    low, high = value["low"], value["high"]
    middle = _number(value["value"] or 0.0, sign)
    return middle if low is None or high is None else f"{middle} [{_number(low, sign)}, {_number(high, sign)}]"


def _difference(metric: Mapping[str, Any]) -> str:
    if metric["p_holm"] is None:
        return _estimate(metric["difference"], "+")
    p = "p < 0.001" if metric["p_holm"] < 0.001 else f"p {metric['p_holm']:.3f}"
    return f"{_estimate(metric['difference'], '+')}, {p}"


def _seconds(cost: Mapping[str, Any]) -> str:
    return "?" if cost["seconds"] is None else f"{cost['seconds']:,.0f}"


def _weights(cost: Mapping[str, Any]) -> str:
    return f"0 ({cost['fitted']:,} fitted)" if cost["fitted"] else f"{cost['trained']:,}"
