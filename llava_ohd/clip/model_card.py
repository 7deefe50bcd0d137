"""README.md of an encoder folder, from what lies on disk: ohd.json, the training curve, results.json of evaluations.

Nothing is written that no file says; what has no file is "not measured".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.clip.config import effective
from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, write_text
from llava_ohd.results import read_results

__all__ = ["outcome", "write_card"]

_EVALUATIONS = ("ohd_caps", "zero_shot", "pope", "chair")
_NOTHING = "not measured"


def write_card(folder: Path, places: Sequence[Path] = ()) -> Path:
    """Writes or refreshes the card of an encoder.

    Args:
        folder: Encoder folder; curve.json is looked for beside it.
        places: Folders in which to look for results.json; only those of this very encoder (by digest) are taken.

    Returns:
        The card.

    Raises:
        EncoderFormatError, EncoderNotFound: the folder is no whole encoder.
        DataFormatError: a file is broken, the encoder was not made of another one, or one of `places` is no folder.
    """
    for place in places:
        if not place.is_dir():
            raise DataFormatError(f"--results {place} is no folder; give folders that hold results.json of evaluations")
    encoder = tower.check(folder)
    record = read_json(folder / "ohd.json")
    if not record.get("parents"):
        raise DataFormatError(
            f"{folder} was not fine-tuned or interpolated here (its ohd.json names no parents); a card describes an "
            "encoder that was: give its name or folder as --encoder"
        )
    found = [read_results(file) for place in places for file in sorted(place.rglob("results.json"))]
    own = [result for result in found if (result.get("encoder") or {}).get("digest") == encoder.digest]
    lines = [f"# {record.get('name')}", "", "A CLIP encoder written by llava_ohd (`scripts/finetune_clip.py`).", ""]
    lines += ["## Origin", "", *_table(_origin(record)), "", "## Settings", "", *_table(_settings(record)), ""]
    lines += ["## Training", "", *_training(folder.parent / "curve.json"), "", "## Results", "", *_results(own), ""]
    write_text(folder / "README.md", "\n".join(lines))
    return folder / "README.md"


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in rows.items())]


def _text(value: Any) -> str:
    return _NOTHING if value is None else f"`{value}`"


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    config = record.get("config", {})
    parents = {f"parent {number}": parent["digest"] for number, parent in enumerate(record.get("parents", []), 1)}
    digests = {key: config[key] for key in ("data_sha256", "dev_sha256") if config.get(key)}
    return {"tower digest": record.get("digest"), **parents, **digests, **record.get("versions", {})}


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags of the run; of the loss, the values that the mode fills in."""
    given = effective(record.get("config", {}))
    return {key: "not given" if value is None else value for key, value in given.items() if "sha256" not in key}


def _training(file: Path) -> list[str]:
    if not file.is_file():
        return [_NOTHING]
    rows = read_json(file)
    if not rows:
        raise DataFormatError(f"{file} has no rows")
    lines = [f"{outcome(rows)}."]
    dev = [row for row in rows if "eval_accuracy" in row]
    if not dev:
        return [*lines, "", f"Accuracy on dev: {_NOTHING}"]
    return [*lines, "", "| step | accuracy on dev |", "|---|---|"] + [
        f"| {row['step']} | {row['eval_accuracy']:.4f} |" for row in dev
    ]


def outcome(rows: Sequence[dict[str, Any]]) -> str:
    """Says in a line what a training reached: the first and the last loss, and the best accuracy on dev.

    Args:
        rows: Those of curve.json.
    """
    losses = [row["loss"] for row in rows if "loss" in row]
    found = f"{len(losses)} steps; loss {losses[0]:.4f} at the first, {losses[-1]:.4f} at the last"
    dev = [row for row in rows if "eval_accuracy" in row]
    if not dev:
        return found
    best = max(dev, key=lambda row: float(row["eval_accuracy"]))  # the first of equal ones, as HF's Trainer chooses
    return (
        f"{found}; best accuracy on dev {best['eval_accuracy']:.4f} at step {best['step']:.0f}, whose weights these are"
    )


def _results(found: list[dict[str, Any]]) -> list[str]:
    """Returns a row per metric of which more or less is better, and a row per evaluation that is not there."""
    lines = ["| evaluation | set | metric | value | n |", "|---|---|---|---|---|"]
    for result in found:
        part = "" if result["complete"] else " (a part of it)"
        for name, metric in result["metrics"].items():
            if metric["better"] != "none":
                row = (result["eval"], f"{result['set']}{part}", name, f"{metric['value']:.4g}", str(metric["n"]))
                lines.append(f"| {' | '.join(row)} |")
    missing = [name for name in _EVALUATIONS if name not in {result["eval"] for result in found}]
    return lines + [f"| {name} | | | {_NOTHING} | |" for name in missing]
