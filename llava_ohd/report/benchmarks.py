"""Reads what one model reached on one benchmark, as counts per image, so that images can be drawn anew.

A folder of one benchmark has `results.json` and, for the intervals, `answers.jsonl` (POPE, CHAIR) or
`predictions.jsonl` (`{"image", "correct"}`; OHD-Caps, zero-shot).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from llava_ohd.errors import DataFormatError
from llava_ohd.evals import chair
from llava_ohd.evals.chair_data import coco_id
from llava_ohd.files import read_jsonl, sha256_json
from llava_ohd.report import pope_runs
from llava_ohd.report.counted_runs import read_counted
from llava_ohd.report.pope_runs import read_pope
from llava_ohd.report.runs import Measure, Run, Truth, read_truth, share
from llava_ohd.results import read_results

__all__ = ["BENCHMARKS", "Benchmark", "Measure", "Run", "Truth", "read_pope", "read_truth"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: where its files lie, how they are read, what is measured.

    Attributes:
        name: Folder and `eval` name.
        title: For people.
        read: Reads a folder.
        measures: What is compared, in the order shown; empty where the results themselves say it.
    """

    name: str
    title: str
    read: Callable[[Path, Truth], Run]
    measures: tuple[Measure, ...]


def read_chair(folder: Path, truth: Truth) -> Run:
    """Reads a CHAIR folder.

    The counts are mentions, hallucinated ones, captions, hallucinating ones, objects covered, objects present, words;
    there are none where the captions were cut before they were scored, or are not all of those that were.

    Raises:
        AnswersMismatch: captions of unknown images.
    """
    record, answers = read_results(folder / "results.json"), folder / "answers.jsonl"
    settings = record.get("settings", {})
    if truth.objects is None or truth.vocabulary is None or not answers.exists():
        return Run(folder, record)
    rule = str(record["rule"]).split()[0]
    captions = chair.read_captions(answers)
    scored = settings.get("image_list", {}).get("sha256")
    others = scored is not None and scored != sha256_json(sorted(coco_id(caption.image) for caption in captions))
    if others or {"max_tokens", "drop_unfinished"} & settings.keys():
        return Run(folder, record)
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


def read_values(folder: Path, truth: Truth) -> Run:
    """Reads a folder of which only the metrics are compared."""
    return Run(folder, read_results(folder / "results.json"))


_CORRECT = partial(share, (0,), (1,))
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
    Benchmark("pope", "POPE", read_pope, (*pope_runs.measures(0), *pope_runs.measures(1))),
    Benchmark(
        "chair",
        "CHAIR",
        read_chair,
        (
            Measure(
                "chair_i",
                "share of mentions hallucinated (CHAIRi)",
                "lower",
                partial(share, (1,), (0,)),
                headline=True,
            ),
            Measure(
                "chair_s",
                "share of captions hallucinating (CHAIRs)",
                "lower",
                partial(share, (3,), (2,)),
                headline=True,
            ),
            Measure("recall", "share of objects mentioned (recall)", "higher", partial(share, (4,), (5,))),
            Measure("length", "caption length", "none", partial(share, (6,), (2,)), unit="words"),
        ),
    ),
    Benchmark("amber", "AMBER", read_counted, ()),
    Benchmark("mme", "MME, hallucination", read_counted, ()),
    Benchmark("hallusionbench", "HallusionBench", read_values, ()),
    Benchmark("dense", "Dense misalignment", read_values, ()),
)
