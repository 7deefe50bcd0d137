"""Counts by image beside the metrics of AMBER and MME, so that comparisons can draw images anew.

counts.jsonl has a row for each image: `{"image": ..., "<count>": n, ...}`, without those that are 0. How metrics follow
from summed counts is a `Formula`, in results.json under details/formulas.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_ohd.evals import amber, amber_generative, mme
from llava_ohd.files import write_jsonl

__all__ = ["Counted", "Formula", "of_amber", "of_mme", "share"]


@dataclass(frozen=True)
class Formula:
    """A metric as `constant` + the sum over terms of weight x (sum of some counts / sum of others).

    Attributes:
        terms: Of each: weight, the counts above, the counts below; a count that stands twice counts twice.
        constant: What is added.
    """

    terms: tuple[tuple[float, tuple[str, ...], tuple[str, ...]], ...]
    constant: float = 0.0


def share(part: str, whole: str, weight: float = 1.0) -> Formula:
    """Returns the formula of one count over another."""
    return Formula(((weight, (part,), (whole,)),))


@dataclass(frozen=True)
class Counted:
    """What an evaluation counted.

    Attributes:
        images: Counts by image.
        formulas: From a metric's name to how it follows from them.
    """

    images: Mapping[str, Mapping[str, int]]
    formulas: Mapping[str, Formula]

    def write(self, path: Path) -> dict[str, Any]:
        """Writes counts.jsonl, and returns the formulas for results.json.

        Raises:
            StorageError: no room, not writable.
        """
        rows = ({"image": image, **{k: v for k, v in counts.items() if v}} for image, counts in self.images.items())
        write_jsonl(path, rows)
        return {name: asdict(formula) for name, formula in self.formulas.items()}


def _by_image(rows: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for image, counts in rows:
        found.setdefault(image, Counter()).update(counts)
    return found


def of_amber(
    responses: Mapping[int, str],
    items: Mapping[int, amber.AmberItem],
    judged: Mapping[int, amber_generative.Counts],
    queries: Mapping[int, amber.Query],
) -> Counted:
    """Counts AMBER's answers.

    The official script adds 0.001 to denominators and rounds on the way, which no formula here does: metrics that
    follow from the counts can differ from its own by a thousandth.

    Args:
        responses: Texts by id.
        items: The annotations.
        judged: Counts of each description, from `amber_generative.judged`.
        queries: Names of the images; without them each id is an image of its own.
    """
    rows: list[tuple[str, Mapping[str, int]]] = []
    for number, text in responses.items():
        image = queries[number].image if number in queries else f"id {number}"
        if number in judged:
            rows.append((image, asdict(judged[number])))
            continue
        truth = items[number].truth[0]
        for group in amber.groups_of(items[number]):
            seen = {"asked": 1, "right": text.lower() == truth and text in ("Yes", "No"), "said_no": text == "No"}
            seen |= {"gold_no": truth == "no", "right_no": (truth, text) == ("no", "No")}
            rows.append((image, {f"{group}{name}": int(value) for name, value in seen.items()}))
    names = {name for _, counts in rows for name in counts}
    formulas = dict[str, Formula]()
    if "mentions" in names:
        formulas |= {"chair": share("hallucinated", "mentions"), "cover": share("covered", "truths")}
        formulas |= {"hal": Formula(((-1.0, ("clean",), ("texts",)),), 1.0), "cog": share("imagined", "imaginable")}
    for group in sorted({name.removesuffix("asked") for name in names if name.endswith("asked")}):
        formulas |= {
            f"{group}accuracy": share(f"{group}right", f"{group}asked"),
            f"{group}precision": share(f"{group}right_no", f"{group}said_no"),
            f"{group}recall": share(f"{group}right_no", f"{group}gold_no"),
            f"{group}f1": Formula(((2.0, (f"{group}right_no",), (f"{group}said_no", f"{group}gold_no")),)),
        }
    if {"chair", "f1"} <= formulas.keys():
        [(_, *chair)], [(_, *f1)] = formulas["chair"].terms, formulas["f1"].terms
        formulas["amber"] = Formula(((-0.5, *chair), (1.0, *f1)), 0.5)  # type: ignore[arg-type]
    return Counted(_by_image(rows), formulas)


def of_mme(answers: Mapping[str, Iterable[mme.MmeAnswer]]) -> Counted:
    """Counts MME's answers; an image counts in each task that asks about it."""
    rows: list[tuple[str, Mapping[str, int]]] = []
    for task, asked in answers.items():
        right: dict[str, list[bool]] = {}
        for answer in asked:
            right.setdefault(answer.image, []).append(mme.first_four(answer.text) == answer.label)
        for image, found in right.items():
            counts = {"questions": len(found), "right": sum(found), "images": 1, "both": int(all(found))}
            rows.append((f"{task}/{image}", {f"{task}/{name}": count for name, count in counts.items()}))
    formulas, points = dict[str, Formula](), []
    for task in answers:
        accuracy, plus = (f"{task}/right", f"{task}/questions"), (f"{task}/both", f"{task}/images")
        formulas |= {f"{task}/accuracy": share(*accuracy), f"{task}/accuracy_plus": share(*plus)}
        points += [(100.0, (part,), (whole,)) for part, whole in (accuracy, plus)]
        formulas[f"{task}/score"] = Formula(tuple(points[-2:]))
    if set(answers) == set(mme.TASKS):
        formulas["score"] = Formula(tuple(points))
    return Counted(_by_image(rows), formulas)
