"""Builds POPE's questions: which objects are in an image, and which absent ones a model is tempted to see.

Three strategies choose the absent object: any object (random), the most frequent one (popular), the one that most often
stands beside the object just asked for (adversarial). Training negatives use the same choice, see `llava_ohd.ohd_caps`.

One thing differs from the original on purpose: for objects with a vowel in front the original replaces every "a" of its
template and asks "Is there an apple in the imange?"; here it is "image".

Source: AoiDragon/POPE main.py, utils.py @ 08d957b (MIT); arXiv 2305.10355, section 5.
"""

import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, write_jsonl

__all__ = [
    "STRATEGIES",
    "ImageObjects",
    "Sampler",
    "absent_objects",
    "build_questions",
    "co_occurrence",
    "frequency",
    "object_of",
    "question_text",
    "read_coco_objects",
    "write_questions",
]

STRATEGIES = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class ImageObjects:
    """One image and the distinct object names in it; the first ones are asked for first.

    Attributes:
        image: File name relative to the image folder.
        objects: Names of the objects that are present, each once.
    """

    image: str
    objects: tuple[str, ...]


def read_coco_objects(path: Path) -> list[ImageObjects]:
    """Reads a COCO `instances_*.json`; images in file order, objects in the order of their first annotation.

    Raises:
        DataFormatError: not a COCO instances file, or an annotation of an image or category that it does not list.
    """
    record = read_json(path)
    try:
        names = {row["id"]: row["name"] for row in record["categories"]}
        files = {row["id"]: row["file_name"] for row in record["images"]}
        objects: dict[Any, dict[str, None]] = {image_id: {} for image_id in files}
        for row in record["annotations"]:
            objects[row["image_id"]][names[row["category_id"]]] = None
    except (KeyError, TypeError) as error:
        raise DataFormatError(
            f"{path} is not a COCO instances file: {error} is missing; images, annotations and categories are expected"
        ) from None
    return [ImageObjects(file, tuple(objects[image_id])) for image_id, file in files.items()]


def frequency(images: Iterable[ImageObjects]) -> dict[str, int]:
    """Returns in how many images each object occurs, keys in the order in which they are first seen."""
    counts: dict[str, int] = {}
    for image in images:
        for name in image.objects:
            counts[name] = counts.get(name, 0) + 1
    return counts


def co_occurrence(images: Iterable[ImageObjects]) -> dict[str, list[str]]:
    """Returns for each object the others of its images, most frequent first; ties in the order first seen."""
    counts: dict[str, dict[str, int]] = {}
    for image in images:
        for name in image.objects:
            beside = counts.setdefault(name, {})
            for other in image.objects:
                if other != name:
                    beside[other] = beside.get(other, 0) + 1
    return {name: _most_frequent_first(beside) for name, beside in counts.items()}


def _most_frequent_first(counts: dict[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: -counts[name])


class Sampler:
    """Chooses objects that are not in an image.

    Args:
        images: The images that frequency and co-occurrence are counted over (POPE: only the selected ones).
        seed: Seed of the random strategy, or a generator to go on with.
    """

    def __init__(self, images: Sequence[ImageObjects], seed: int | random.Random) -> None:
        self._random = seed if isinstance(seed, random.Random) else random.Random(seed)
        counts = frequency(images)
        self._names = list(counts)
        self._popular = _most_frequent_first(counts)
        self._beside = co_occurrence(images)

    def absent(self, objects_present: Collection[str], positive: str, strategy: str, history: Collection[str]) -> str:
        """Chooses one object that is neither in the image nor asked for before.

        Args:
            objects_present: All objects of the image.
            positive: The object just asked for; only the adversarial strategy looks at it.
            strategy: `random`, `popular` or `adversarial` (random where nothing beside `positive` is left).
            history: Objects already asked for in this image.

        Raises:
            DataFormatError: every known object is in the image or in the history.
            ValueError: no such strategy.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
        taken = {*objects_present, *history}
        if taken.issuperset(self._names):
            raise DataFormatError(
                f"no absent object is left: all {len(self._names)} known objects are in the image or were asked for; "
                "build from more images or ask fewer questions for each"
            )
        order = {"random": [], "popular": self._popular, "adversarial": self._beside.get(positive, [])}[strategy]
        return next((name for name in order if name not in taken), None) or self._any(taken)

    def _any(self, taken: set[str]) -> str:
        # Drawn until it fits, as the original does: the same seed then gives the same questions.
        while True:
            name = self._random.choice(self._names)
            if name not in taken:
                return name


def absent_objects(image: ImageObjects, positives: Sequence[str], strategy: str, sampler: Sampler) -> list[str]:
    """Chooses one absent object after each positive, none twice.

    Args:
        image: The image.
        positives: Objects of the image in the order in which they are asked for.
        strategy: `random`, `popular` or `adversarial`.
        sampler: Knows the frequencies; its random stream goes on.

    Returns:
        As many names as `positives`.

    Raises:
        DataFormatError: not enough absent objects.
    """
    chosen: list[str] = []
    for position, positive in enumerate(positives, 1):
        history = [*positives[:position], *chosen]
        chosen.append(sampler.absent(image.objects, positive, strategy, history))
    return chosen


def object_of(question: str) -> str:
    """Returns the object that a question in the template asks for, also in the original's ("imange", with a suffix).

    A question in other words is returned as it is.
    """
    found = re.match(r"is there an? (.+?) in the im\w+\?", question.strip(), re.IGNORECASE)
    return found[1] if found else question


def question_text(name: str) -> str:
    """Returns POPE's question, with "an" before a, e, i, o, u (a rule of letters, as in the original)."""
    return f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image?"


def build_questions(
    images: Iterable[ImageObjects], *, n_images: int, n_per_image: int = 3, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Builds the three splits from one random stream: `2 * n_images * n_per_image` questions each, half of them "no".

    Args:
        images: All images; those with fewer than `n_per_image` objects are left out.
        n_images: How many images are drawn. The original: 500.
        n_per_image: Present objects asked for per image, each followed by an absent one. The original: 3.
        seed: The original sets none; seed 0 gives what the original gives after `random.seed(0)`.

    Returns:
        For each strategy the rows `question_id` (from 1), `image`, `text`, `label` ("yes" or "no").

    Raises:
        DataFormatError: fewer than `n_images` images have enough objects, or no absent object is left.

    Source: AoiDragon/POPE main.py @ 08d957b.
    """
    candidates = [image for image in images if len(image.objects) >= n_per_image]
    if len(candidates) < n_images:
        raise DataFormatError(
            f"{len(candidates)} images have at least {n_per_image} objects, {n_images} are wanted; "
            "lower n_images or n_per_image, or give more images"
        )
    stream = random.Random(seed)
    selected = stream.sample(candidates, n_images)
    sampler = Sampler(selected, stream)
    questions = {}
    for strategy in STRATEGIES:
        rows: list[dict[str, Any]] = []
        for image in selected:
            positives = image.objects[:n_per_image]
            for pair in zip(positives, absent_objects(image, positives, strategy, sampler), strict=True):
                for name, label in zip(pair, ("yes", "no"), strict=True):
                    text = question_text(name)
                    rows.append({"question_id": len(rows) + 1, "image": image.image, "text": text, "label": label})
        questions[strategy] = rows
    return questions


def write_questions(folder: Path, prefix: str, questions: dict[str, list[dict[str, Any]]]) -> None:
    """Writes `{prefix}_pope_{strategy}.json` (JSON Lines, as the official files) for each strategy."""
    for strategy, rows in questions.items():
        write_jsonl(folder / f"{prefix}_pope_{strategy}.json", rows)
