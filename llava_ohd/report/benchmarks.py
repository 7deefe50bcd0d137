"""Reads what one model reached on one benchmark, as counts per image, so that images can be drawn anew.

A folder of one benchmark has `results.json` and, for the intervals, `answers.jsonl` (POPE, CHAIR) or
`predictions.jsonl` (`{"image", "correct"}`; OHD-Caps, zero-shot).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llava_ohd.errors import DataFormatError
from llava_ohd.evals import chair, pope
from llava_ohd.evals.answers import read_answers
from llava_ohd.files import read_jsonl
from llava_ohd.report.statistics import Array, Statistic
from llava_ohd.results import read_results

__all__ = ["BENCHMARKS", "Benchmark", "Measure", "Run", "Truth", "read_truth"]

_POPE_COUNTS = ("tp", "fp", "tn", "fn", "lost")  # of `yes_no.Confusion`; few rules lose an answer


@dataclass(frozen=True)
class Measure:
    """A metric as the report shows it.

    Attributes:
        name: As in results.json.
        title: For people.
        better: Direction.
        statistic: From summed counts to values; None where only results.json has the number.
        headline: Whether it is one of the few numbers that a claim rests on (these are corrected by Holm).
        unit: "%" for fractions, else the unit as it is.
    """

    name: str
    title: str
    better: Literal["higher", "lower", "none"]
    statistic: Statistic | None
    headline: bool = False
    unit: str = "%"


@dataclass(frozen=True)
class Run:
    """What one model did on one benchmark.

    Attributes:
        folder: Where it was read.
        record: The results.json.
        images: The images, one per row of `counts`; empty without answers.
        counts: Whole numbers per image, (I, K).
        right: For metrics that are a share of right items: which items are right, by item id.
        answers: The text per question or image, for the gallery.
        invented: Objects that the model says are in an image and are not, by image, where there are any.
    """

    folder: Path
    record: dict[str, Any]
    images: tuple[str, ...] = ()
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    right: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    invented: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """What is known about the test images; a part that is None leaves its benchmark without intervals.

    Attributes:
        questions: POPE's questions with labels.
        objects: Objects by image, from `chair.read_ground_truth`, by the word rule "exact".
        vocabulary: From `chair.read_synonyms`.
        objects_by: From another word rule to the objects by image.
    """

    questions: Sequence[pope.PopeQuestion] | None = None
    objects: Mapping[str, frozenset[str]] | None = None
    vocabulary: chair.Vocabulary | None = None
    objects_by: Callable[[str], Mapping[str, frozenset[str]]] | None = None


def read_truth(data: Path, split: str, questions: Path | None = None) -> Truth:
    """Reads labels and objects of a data folder, as far as they are there.

    Args:
        data: Folder with `pope/`, `annotations/{instances,captions}_{split}.json`, `synonyms.txt`.
        split: `test` in the embedded world.
        questions: Folder of POPE's questions, if not `data/pope`.

    Raises:
        DataFormatError: `questions` is given and is not a question set, or a file is broken.
    """
    folder, annotations = questions or data / "pope", data / "annotations"
    found = pope.read_questions(folder) if questions or folder.is_dir() else None
    instances, synonyms = annotations / f"instances_{split}.json", data / "synonyms.txt"
    if not instances.is_file() or not synonyms.is_file():
        return Truth(found)
    vocabulary, captions = chair.read_synonyms(synonyms), annotations / f"captions_{split}.json"

    def objects_by(rule: str) -> dict[str, frozenset[str]]:
        return chair.read_ground_truth(instances, captions if captions.is_file() else None, vocabulary, rule=rule)

    return Truth(found, objects_by("exact"), vocabulary, objects_by)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: where its files lie, how they are read, what is measured.

    Attributes:
        name: Folder and `eval` name.
        title: For people.
        read: Reads a folder.
        measures: What is compared, in the order shown.
    """

    name: str
    title: str
    read: Callable[[Path, Truth], Run]
    measures: tuple[Measure, ...]


def _share(part: tuple[int, ...], whole: tuple[int, ...], totals: Array) -> Array:
    """Sum of some counts over the sum of others, 0 where that is 0/0. Totals (..., K) -> (...)."""
    below = totals[..., list(whole)].sum(-1)
    return np.divide(totals[..., list(part)].sum(-1), below, out=np.zeros_like(below), where=below > 0)


def _f1(totals: Array) -> Array:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn). Totals (..., 5) as `_POPE_COUNTS` -> (...)."""
    return _share((0, 0), (0, 0, 1, 3), totals)


_ACCURACY: Statistic = partial(_share, (0, 2), (0, 1, 2, 3, 4))
_PARTS: dict[str, tuple[Statistic, Literal["higher", "none"]]] = {
    "accuracy": (_ACCURACY, "higher"),
    "f1": (_f1, "higher"),
    "precision": (partial(_share, (0,), (0, 1)), "higher"),
    "recall": (partial(_share, (0,), (0, 3)), "higher"),
    "yes_ratio": (partial(_share, (0, 1), (0, 1, 2, 3, 4)), "none"),
}


def _split(position: int, statistic: Statistic, totals: Array) -> Array:
    return statistic(totals[..., position * len(_POPE_COUNTS) : (position + 1) * len(_POPE_COUNTS)])


def _macro(statistic: Statistic, totals: Array) -> Array:
    return np.mean([_split(i, statistic, totals) for i in range(len(pope.SPLITS))], axis=0)


def _pooled(statistic: Statistic, totals: Array) -> Array:
    return statistic(totals.reshape(*totals.shape[:-1], len(pope.SPLITS), len(_POPE_COUNTS)).sum(-2))


def _pope_measures() -> tuple[Measure, ...]:
    measures = [
        Measure("f1_macro", "mean F1 over splits", "higher", partial(_macro, _f1), headline=True),
        Measure("accuracy_macro", "mean accuracy over splits", "higher", partial(_macro, _ACCURACY)),
        Measure("f1_pooled", "pooled F1", "higher", partial(_pooled, _f1)),
    ]
    for name, (statistic, better) in _PARTS.items():
        for position, split in enumerate(pope.SPLITS):
            headline = (name, split) == ("accuracy", "adversarial")
            title = f"{split} {name.replace('_', ' ').replace('f1', 'F1')}"
            part = partial(_split, position, statistic)
            measures.append(Measure(f"{split}/{name}", title, better, part, headline=headline))
    return tuple(measures)


def read_pope(folder: Path, truth: Truth) -> Run:
    """Reads a POPE folder; counts are tp, fp, tn, fn, lost of each split by the rule of the record, (I, 15).

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
    counts = np.zeros((len(rows), len(pope.SPLITS) * len(_POPE_COUNTS)), np.int64)
    right: dict[str, dict[str, bool]] = {}
    invented: dict[str, set[str]] = {}
    for question, text in zip(truth.questions, texts, strict=True):
        outcome = rule.outcome(text, question.label)
        if outcome == "fp":
            invented.setdefault(question.image, set()).add(pope.object_of(question.prompt))
        if outcome is not None:
            place = pope.SPLITS.index(question.split) * len(_POPE_COUNTS) + _POPE_COUNTS.index(outcome)
            counts[rows[question.image], place] += 1
        right.setdefault(f"{question.split}/accuracy", {})[question.id] = outcome in ("tp", "tn")
    ids = (question.id for question in truth.questions)
    said = {image: frozenset(names) for image, names in invented.items()}
    return Run(folder, record, tuple(rows), counts, right, dict(zip(ids, texts, strict=True)), said)


def read_chair(folder: Path, truth: Truth) -> Run:
    """Reads a CHAIR folder.

    The counts are mentions, hallucinated ones, captions, hallucinating ones, objects covered, objects present, words;
    there are none where the captions were cut or chosen before they were scored.

    Raises:
        AnswersMismatch: captions of unknown images.
    """
    record, answers = read_results(folder / "results.json"), folder / "answers.jsonl"
    changed = {"image_list", "max_tokens", "drop_unfinished"} & record.get("settings", {}).keys()
    if truth.objects is None or truth.vocabulary is None or not answers.exists() or changed:
        return Run(folder, record)
    rule = str(record["rule"]).split()[0]
    captions = chair.read_captions(answers)
    objects = truth.objects_by(rule) if truth.objects_by and rule != "exact" else truth.objects
    rows = chair.scored_captions(captions, objects, truth.vocabulary, rule=rule)
    rows.sort(key=lambda row: row.image)
    counts = [
        (len(r.mentioned), len(r.hallucinated), 1, bool(r.hallucinated), r.covered, r.present, r.words) for r in rows
    ]
    right = {"chair_s": {row.image: not row.hallucinated for row in rows}}
    texts = {caption.image: caption.text for caption in captions}
    said = {row.image: frozenset(row.hallucinated) for row in rows if row.hallucinated}
    return Run(folder, record, tuple(row.image for row in rows), np.array(counts, np.int64), right, texts, said)


def read_predictions(folder: Path, truth: Truth) -> Run:
    """Reads a folder whose `predictions.jsonl` says per image whether the prediction is correct; counts correct, all.

    Raises:
        DataFormatError: rows without `image` and `correct`, or an image twice.
    """
    record, predictions = read_results(folder / "results.json"), folder / "predictions.jsonl"
    if not predictions.exists():
        return Run(folder, record)
    rows = read_jsonl(predictions)
    correct = {row["image"]: bool(row["correct"]) for row in rows if {"image", "correct"} <= set(row)}
    if len(correct) < len(rows):
        raise DataFormatError(f"{predictions}: each row needs image and correct, each image once")
    images = tuple(sorted(correct))
    counts = np.array([(correct[image], 1) for image in images], np.int64)
    return Run(folder, record, images, counts, {"accuracy": correct})


_CORRECT = partial(_share, (0,), (1,))
BENCHMARKS = (
    Benchmark(
        "ohd_caps",
        "OHD-Caps",
        read_predictions,
        (Measure("accuracy", "caption accuracy", "higher", _CORRECT, headline=True),),
    ),
    Benchmark(
        "zero_shot",
        "Zero-shot recognition",
        read_predictions,
        (Measure("accuracy", "object accuracy", "higher", _CORRECT, headline=True),),
    ),
    Benchmark("pope", "POPE", read_pope, _pope_measures()),
    Benchmark(
        "chair",
        "CHAIR",
        read_chair,
        (
            Measure(
                "chair_i",
                "share of mentions hallucinated (CHAIRi)",
                "lower",
                partial(_share, (1,), (0,)),
                headline=True,
            ),
            Measure(
                "chair_s",
                "share of captions hallucinating (CHAIRs)",
                "lower",
                partial(_share, (3,), (2,)),
                headline=True,
            ),
            Measure("recall", "share of objects mentioned (recall)", "higher", partial(_share, (4,), (5,))),
            Measure("length", "caption length", "none", partial(_share, (6,), (2,)), unit="words"),
        ),
    ),
)
