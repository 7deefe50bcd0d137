"""What a model reached on a benchmark, as counts per image so that images can be drawn anew, and the true labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llava_ohd.evals import chair, pope, pope_sets
from llava_ohd.evals.chair_data import coco_id, open_set
from llava_ohd.report.statistics import Array, Statistic

__all__ = ["Measure", "Run", "Truth", "read_truth", "share"]


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

    def objects_of(self, image: str) -> frozenset[str]:
        """Returns the objects of an image, which a COCO image may be known by its id for; empty where not known."""
        objects = self.objects or {}
        return objects.get(image) or objects.get(coco_id(image)) or frozenset()


def read_truth(data: Path, split: str, questions: str | Path | None = None) -> Truth:
    """Reads labels and objects of a data folder, as far as they are there.

    Args:
        data: Folder with `pope/`, `annotations/{instances,captions}_{split}.json`, `synonyms.txt`; or `coco`, the
            prepared objects under `$LLAVA_OHD_DATA`.
        split: `test` in the embedded world.
        questions: Name or folder of POPE's questions, if not `data/pope`.

    Raises:
        DataFormatError: `questions` is given and is not a question set, or a file is broken.
        LlavaOhdError: `$LLAVA_OHD_DATA` is needed and not set.
    """
    folder, annotations = data / "pope", data / "annotations"
    found = (
        pope_sets.read_set(str(questions)) if questions else pope.read_questions(folder) if folder.is_dir() else None
    )
    if str(data) == "coco":
        prepared = open_set("coco")
        return Truth(found, prepared.truth("exact"), prepared.vocabulary, prepared.truth)
    instances, synonyms = annotations / f"instances_{split}.json", data / "synonyms.txt"
    if not instances.is_file() or not synonyms.is_file():
        return Truth(found)
    vocabulary, captions = chair.read_synonyms(synonyms), annotations / f"captions_{split}.json"

    def objects_by(rule: str) -> dict[str, frozenset[str]]:
        return chair.read_ground_truth(instances, captions if captions.is_file() else None, vocabulary, rule=rule)

    return Truth(found, objects_by("exact"), vocabulary, objects_by)


def share(part: tuple[int, ...], whole: tuple[int, ...], totals: Array) -> Array:
    """Sum of some counts over the sum of others, 0 where that is 0/0. Totals (..., K) -> (...)."""
    below = totals[..., list(whole)].sum(-1)
    return np.divide(totals[..., list(part)].sum(-1), below, out=np.zeros_like(below), where=below > 0)
