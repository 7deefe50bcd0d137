"""results.json: the metrics of one evaluation, and all that is needed to know what they are the metrics of.

{"eval": "pope", "rule": "official (AoiDragon/POPE@08d957b evaluate.py)", "set": "world", "complete": true,
 "n": 9000, "encoder": {"name", "digest"}, "model": {"path", "digest"} | null, "settings": {...},
 "versions": {...}, "metrics": {"adversarial/accuracy": {"value", "n", "better"}, ...}}
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llava_ohd import __version__
from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, write_json
from llava_ohd.records import Metric

__all__ = ["differences", "metric_line", "print_metrics", "read_results", "versions", "write_results"]

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "pillow", "tokenizers")


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and the libraries that can change a number."""
    found = {"python": platform.python_version(), "llava_ohd": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_results(
    path: Path,
    metrics: Iterable[Metric],
    *,
    evaluation: str,
    rule: str,
    data_set: str,
    n: int,
    complete: bool = True,
    encoder: dict[str, str] | None = None,
    model: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Writes results.json atomically.

    Args:
        path: The file to write.
        metrics: The metrics, each name once.
        evaluation: `pope`, `chair`, `ohd_caps`, ...
        rule: The scoring rule with source and commit.
        data_set: Name of the question set.
        n: Number of items scored.
        complete: False when only a part of the set was scored on purpose.
        encoder: Name and digest of the encoder.
        model: Path and digest of the LLaVA model, where one answered.
        settings: Generation settings, seed, image backend; runs are compared on equal ones.
        details: What else is worth keeping, such as counts by object.
    """
    rows = {m.name: {"value": m.value, "n": m.n, "better": m.better} for m in metrics}
    write_json(
        path,
        {
            "eval": evaluation,
            "rule": rule,
            "set": data_set,
            "complete": complete,
            "n": n,
            "encoder": encoder,
            "model": model,
            "settings": settings or {},
            "versions": versions(),
            "metrics": rows,
        }
        | ({"details": details} if details else {}),
    )


def print_metrics(metrics: Iterable[Metric], width: int = 24) -> None:
    """Prints a line per metric: shares in percent, `length` in words, `score` in points, and what each rests on.

    Args:
        metrics: The metrics.
        width: Columns of the names.
    """
    for metric in metrics:
        print(metric_line(metric, width))


def metric_line(metric: Metric, width: int = 24) -> str:
    """Returns the line of `print_metrics`; a quotient over nothing has no value."""
    unit = {"length": "words", "score": "points"}.get(metric.name.rpartition("/")[2])
    shown = f"{metric.value:6.1f} {unit}" if unit else f"{100 * metric.value:6.1f} %"
    shown = shown if metric.n else "undefined"
    return f"  {metric.name:{width}} {shown}   n {metric.n}"


def read_results(path: Path) -> dict[str, Any]:
    """Reads a results.json.

    Raises:
        DataFormatError: missing, empty, not JSON, or without the keys that `write_results` writes.
    """
    record = read_json(path)
    missing = {"eval", "rule", "set", "complete", "metrics"} - set(record)
    if missing:
        raise DataFormatError(f"{path} lacks {sorted(missing)}; it is not a results.json of llava_ohd")
    return record


def differences(old: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Says which settings of two runs differ; `old` was read from JSON, `now` is JSON-able."""
    now = json.loads(json.dumps(now))
    keys = sorted(key for key in old.keys() | now.keys() if old.get(key) != now.get(key))
    return [f"{key} was {old.get(key)!r}, is {now.get(key)!r}" for key in keys]
