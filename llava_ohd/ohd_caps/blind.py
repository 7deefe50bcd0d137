"""What is reached without looking: the controls of every set, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd.ohd_caps.controls import accuracies, accuracy
from llava_ohd.ohd_caps.fitted import KINDS, cross_fitted, fit
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.ohd_caps.sets import dev_file, read_dev
from llava_ohd.progress import track

__all__ = ["TITLES", "Fitting", "Sets", "blind_accuracies", "cross_fitted_accuracy", "fitting_rows", "table"]

TITLES = {
    "chance": "chance",
    "shortest": "shortest caption",
    "longest": "longest caption",
    "style": "style, 13 numbers",
    "bag_of_ngrams": "bag of n-grams",
    "characters": "bag of character runs",
    "trigrams": "trigrams and style",
    "medoid": "medoid of the captions",
    "outlier": "farthest from the others",
}
_ORDER = ("chance", "shortest", "style", "bag_of_ngrams", "medoid")
_FITTED = ("style", "bag_of_ngrams")
Sets = Mapping[str, Sequence[OhdRow]]


@dataclass(frozen=True)
class Fitting:
    """Rows that controls are fitted on, and what results call them; without rows they are cross-fitted in the set."""

    rows: Sequence[OhdRow] = ()
    source: str = "the other rows of the set (5 parts)"


def fitting_rows(data: Path, sets: Sets, given: Path | None = None) -> Fitting:
    """Reads the rows that controls are fitted on, without those of images on which they are measured.

    Args:
        data: What the sets were read from; dev or train rows are looked for there.
        sets: The rows that are measured.
        given: The file that the user named.

    Raises:
        DataFormatError: the file is missing, empty or in none of the three forms.
    """
    file = given or dev_file(data)
    if file is None:
        return Fitting()
    measured = {Path(row.image).name for rows in sets.values() for row in rows}
    read = read_dev(file)
    rows = [row for row in read if Path(row.image).name not in measured]
    if not rows:
        return Fitting()
    without = f", without {len(read) - len(rows)} whose images are measured" if len(rows) < len(read) else ""
    return Fitting(rows, f"{len(rows)} rows of {file.parent.name}/{file.name}{without}")


def blind_accuracies(sets: Sets, fitting: Fitting) -> dict[str, dict[str, float]]:
    """Returns per set the accuracy of every control, as a fraction, by its name."""
    found = {name: accuracies(rows) for name, rows in sets.items()}
    for kind in track(_FITTED, "fitting controls that see no image"):
        control = fit(fitting.rows, *KINDS[kind]) if fitting.rows else None
        for name, rows in sets.items():
            found[name][kind] = accuracy(rows, control) if control else cross_fitted_accuracy(rows, kind)
    return {name: {key: values[key] for key in _ORDER} for name, values in found.items()}


def cross_fitted_accuracy(rows: Sequence[OhdRow], kind: str, seed: int = 1) -> float:
    """Returns the accuracy of a fitted control on rows, each judged by one that was fitted on the others."""
    parts = cross_fitted(rows, *KINDS[kind], seed=seed)
    return sum(accuracy([rows[index] for index in part], control) * len(part) for control, part in parts) / len(rows)


def table(found: Mapping[str, Mapping[str, float]], sets: Sets, title: str) -> str:
    """Returns accuracies in percent, a line per control and a column per set, the mean of several last."""
    names = list(found)
    controls = list(dict.fromkeys(key for values in found.values() for key in values))
    width = max(len(title), *(len(TITLES.get(key, key)) for key in controls)) + 2
    heads = [*names, "mean"] if len(names) > 1 else names
    lines = [f"{title:{width}}" + "".join(f"{head:>9}" for head in heads)]
    lines.append(f"{'rows':{width}}" + "".join(f"{len(sets[name]):>9,}" for name in names))
    for key in controls:
        values = [100 * found[name][key] for name in names if key in found[name]]
        values += [sum(values) / len(values)] if len(names) > 1 else []
        lines.append(f"{TITLES.get(key, key):{width}}" + "".join(f"{value:>9.1f}" for value in values))
    return "\n".join(lines)
