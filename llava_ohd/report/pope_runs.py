"""POPE as counts per image and split, from which every metric follows."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llava_ohd.evals import pope, pope_sets
from llava_ohd.evals.answers import read_answers
from llava_ohd.report.runs import Measure, Run, Truth, share
from llava_ohd.report.statistics import Array, Statistic
from llava_ohd.results import read_results

__all__ = ["measures", "read_pope"]

_POPE_COUNTS = ("tp", "fp", "tn", "fn", "lost")  # of `yes_no.Confusion`; few rules lose an answer
_SPLITS = (*pope.SPLITS, "counterfactual")  # the last is POPEv2's only one
_BLOCK = len(_SPLITS) * len(_POPE_COUNTS)  # columns of one set of labels
_LABELS = ("", "repope/")  # prefixes of metrics: the set's own labels, and RePOPE's beside COCO's


def _f1(totals: Array) -> Array:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn). Totals (..., 5) as `_POPE_COUNTS` -> (...)."""
    return share((0, 0), (0, 0, 1, 3), totals)


_ACCURACY: Statistic = partial(share, (0, 2), (0, 1, 2, 3, 4))
_PARTS: dict[str, tuple[Statistic, Literal["higher", "none"]]] = {
    "accuracy": (_ACCURACY, "higher"),
    "f1": (_f1, "higher"),
    "precision": (partial(share, (0,), (0, 1)), "higher"),
    "recall": (partial(share, (0,), (0, 3)), "higher"),
    "yes_ratio": (partial(share, (0, 1), (0, 1, 2, 3, 4)), "none"),
}


def _splits(labels: int, totals: Array) -> Array:
    """Returns the counts of each split by one set of labels. Totals (..., K) -> (..., 4, 5)."""
    block = totals[..., labels * _BLOCK : (labels + 1) * _BLOCK]
    return block.reshape(*totals.shape[:-1], len(_SPLITS), len(_POPE_COUNTS))


def _split(labels: int, position: int, statistic: Statistic, totals: Array) -> Array:
    return statistic(_splits(labels, totals)[..., position, :])


def _macro(labels: int, statistic: Statistic, totals: Array) -> Array:
    """Mean over the splits that there are."""
    counts = _splits(labels, totals)
    there = counts.sum(-1) > 0
    return (statistic(counts) * there).sum(-1) / np.maximum(there.sum(-1), 1)


def _pooled(labels: int, statistic: Statistic, totals: Array) -> Array:
    return statistic(_splits(labels, totals).sum(-2))


def measures(labels: int) -> tuple[Measure, ...]:
    """Returns the metrics by the set's own labels (0), or by RePOPE's beside them (1)."""
    prefix, by = _LABELS[labels], ", RePOPE's labels" if labels else ""
    found = [
        Measure(f"{prefix}{name}", f"{title}{by}", "higher", partial(over, labels, part), headline=not by and first)
        for name, title, over, part, first in (
            ("f1_macro", "mean F1 over splits", _macro, _f1, True),
            ("accuracy_macro", "mean accuracy over splits", _macro, _ACCURACY, False),
            ("f1_pooled", "pooled F1", _pooled, _f1, False),
            ("accuracy_pooled", "pooled accuracy", _pooled, _ACCURACY, False),
        )
    ]
    for name, (statistic, better) in _PARTS.items():
        for position, split in enumerate(_SPLITS):
            headline = not by and (name, split) == ("accuracy", "adversarial")
            title = f"{split} {name.replace('_', ' ').replace('f1', 'F1')}{by}"
            part = partial(_split, labels, position, statistic)
            found.append(Measure(f"{prefix}{split}/{name}", title, better, part, headline=headline))
    return tuple(found)


def read_pope(folder: Path, truth: Truth) -> Run:
    """Reads a POPE folder; counts are tp, fp, tn, fn, lost of each split by the rule of the record, (I, 20).

    Where RePOPE's labels were scored beside, those by them follow, (I, 40).
    Of a rule that is not known here there are only the values.

    Raises:
        AnswersMismatch: the answers are not those to the questions.
    """
    record, answers = read_results(folder / "results.json"), folder / "answers.jsonl"
    rule = next((rule for rule in pope.RULES.values() if str(rule) == record["rule"]), None)
    if truth.questions is None or rule is None or not answers.exists():
        return Run(folder, record)
    texts = pope.answers_for(truth.questions, read_answers(answers))
    rows = {image: row for row, image in enumerate(dict.fromkeys(q.image for q in truth.questions))}
    counts = np.zeros((len(rows), _BLOCK), np.int64)
    right: dict[str, dict[str, bool]] = {}
    invented: dict[str, set[str]] = {}
    for question, text in zip(truth.questions, texts, strict=True):
        outcome = rule.outcome(text, question.label)
        if outcome == "fp":
            invented.setdefault(question.image, set()).add(pope.object_of(question.prompt))
        if outcome is not None:
            counts[rows[question.image], _place(question.split, outcome)] += 1
        right.setdefault(f"{question.split}/accuracy", {})[question.id] = outcome in ("tp", "tn")
    answers_by_id = {question.id: text for question, text in zip(truth.questions, texts, strict=True)}
    if any(name.startswith("repope/") for name in record["metrics"]):
        counts = np.concatenate([counts, _by_repope(truth.questions, answers_by_id, rule, rows)], axis=1)
    said = {image: frozenset(names) for image, names in invented.items()}
    return Run(folder, record, tuple(rows), counts, right, answers_by_id, said)


def _place(split: str, outcome: str) -> int:
    return _SPLITS.index(split) * len(_POPE_COUNTS) + _POPE_COUNTS.index(outcome)


def _by_repope(
    questions: Sequence[pope.PopeQuestion], answers: Mapping[str, str], rule: Any, rows: Mapping[str, int]
) -> NDArray[np.int64]:
    """Returns the counts by RePOPE's labels, which leave questions out; (I, 20).

    Raises:
        LlavaOhdError: RePOPE's files are not there.
    """
    counts, corrected = np.zeros((len(rows), _BLOCK), np.int64), pope_sets.read_set("repope")
    for question, text in zip(corrected, pope.said_elsewhere(questions, answers, corrected), strict=True):
        outcome = rule.outcome(text, question.label)
        if outcome is not None:
            counts[rows[question.image], _place(question.split, outcome)] += 1
    return counts
