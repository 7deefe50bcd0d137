"""Writes a debiased split, after proving that it is one: every control, fitted in every way, near chance."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import write_json
from llava_ohd.ohd_caps.blind import TITLES, Fitting, Sets, cross_fitted_accuracy, table
from llava_ohd.ohd_caps.controls import CONTROLS, OPPOSITES, accuracies, accuracy
from llava_ohd.ohd_caps.debias import debias
from llava_ohd.ohd_caps.fitted import KINDS, fit
from llava_ohd.ohd_caps.readers import write_rows
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.progress import track

__all__ = ["LIMIT", "check", "prove", "write_split"]

LIMIT = 0.05
"""How far above chance a control may be on a debiased split, as a fraction."""

_DEV = "dev"
_Way = Callable[[str, Sequence[OhdRow]], float | None]


def write_split(sets: Sets, fitting: Fitting, out: Path, seed: int = 0) -> str:
    """Makes the split, measures the controls on it, and writes it if they are near chance.

    Args:
        sets: The test sets by name.
        fitting: Dev rows; they are debiased too, so that controls can be fitted on rows of the same kind.
        out: Folder for `test/SET.jsonl`, `dev/dev.jsonl`, `controls.json`.
        seed: See `debias`.

    Returns:
        The table of the controls.

    Raises:
        DataFormatError: a control is above chance by more than `LIMIT`.
    """
    dev = _DEV if fitting.rows else None
    split = debias({**sets, _DEV: fitting.rows} if dev else sets, dev, seed=seed)
    found = prove(split, dev, fitting)
    check(found)
    for name, rows in split.items():
        write_rows(out / ("dev" if name == dev else "test") / f"{name}.jsonl", rows)
    write_json(out / "controls.json", {"fitted_on": fitting.source, "seed": seed, "accuracy": found})
    return table(found, split, "debiased split, right without looking, %")


def prove(split: Sets, dev: str | None, fitting: Fitting) -> dict[str, dict[str, float]]:
    """Measures every control on a debiased split, each fitted one in every way that a sceptic would fit it.

    Args:
        split: The sets, all debiased.
        dev: Which of them is dev; it is not measured.
        fitting: The rows that fitted controls have been fitted on so far, not debiased.

    Returns:
        Per set the accuracies by control; fitted ones as `bag_of_ngrams, fitted on ...`. `trigrams` took no part in
        making the split.
    """
    tested = {name: rows for name, rows in split.items() if name != dev}
    found = {name: accuracies(rows, {**CONTROLS, **OPPOSITES}) for name, rows in tested.items()}
    for kind in track(tuple(KINDS), "looking for what gives captions away"):
        for way, control in _ways(split, dev, fitting, kind).items():
            for name, rows in tested.items():
                if (value := control(name, rows)) is not None:
                    found[name][f"{TITLES[kind]}, fitted on {way}"] = value
    return found


def _ways(split: Sets, dev: str | None, fitting: Fitting, kind: str) -> dict[str, _Way]:
    def fitted_on(rows: Sequence[OhdRow]) -> _Way:
        control = fit(rows, *KINDS[kind])
        return lambda _, tested: accuracy(tested, control)

    def on_others(name: str, rows: Sequence[OhdRow]) -> float | None:
        others = [row for other, part in split.items() if other != name for row in part]
        return accuracy(rows, fit(others, *KINDS[kind])) if others else None

    ways: dict[str, _Way] = {}
    if fitting.rows:
        ways["dev as it was"] = fitted_on(fitting.rows)
    if dev is not None:
        ways["dev, debiased"] = fitted_on(split[dev])
    ways["all other sets, debiased"] = on_others
    ways["the set itself, debiased, by parts"] = lambda _, rows: cross_fitted_accuracy(rows, kind)
    return ways


def check(found: Mapping[str, Mapping[str, float]], limit: float = LIMIT) -> None:
    """Makes sure that no control is above chance by more than the limit.

    Raises:
        DataFormatError: one is; the message names the worst.
    """
    excess = {(v[key] - v["chance"], name, key) for name, v in found.items() for key in v}
    worst, name, key = max(excess)
    if worst > limit + 1e-9:
        raise DataFormatError(
            f"on the debiased split of {name}, '{key}' is right in {100 * found[name][key]:.1f} %, chance is "
            f"{100 * found[name]['chance']:.1f} %: not debiased. Give more rows: 500 vary by 4 points"
        )
