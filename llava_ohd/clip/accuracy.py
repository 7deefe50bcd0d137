"""Caption accuracy on OHD-Caps: does an encoder prefer the caption to all of its negatives?

The released code moves the right caption to index 0 and takes the argmax, so that exact ties count as right; here they
never do. Beside it stand two controls that use the text tower alone, each caption compared with a wrong image: that of
another row, and the mean of all images. What they reach is no understanding of the image.

Source: arXiv 2410.03176, section 3; Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images, embed_images
from llava_ohd.clip.scorers import WHOLE, Scorer, read_captions
from llava_ohd.ohd_caps.records import STRATEGIES, OhdRow
from llava_ohd.records import Metric

__all__ = ["Scores", "accuracy", "derangement", "interval", "is_right", "metrics", "predictions", "score"]

_MANY = 6  # objects in an image from which on images are counted together


@dataclass(frozen=True)
class Scores:
    """Cosines of every row's image with its captions.

    Attributes:
        rows: The rows.
        cosines: One vector (1 + K,) float32 per row, the right caption at index 0.
        shuffled: The same captions with the image of another row; empty where there is only one image.
        mean_image: The same captions with the mean of all images' embeddings; empty where there is only one image.
        cost: Different captions, and texts that were encoded for them.
    """

    rows: Sequence[OhdRow]
    cosines: Sequence[Tensor]
    shuffled: Sequence[Tensor] = ()
    mean_image: Sequence[Tensor] = ()
    cost: tuple[int, int] = (0, 0)


def derangement(n: int, seed: int) -> list[int]:
    """Returns a permutation of 0 .. n-1 that leaves nothing in its place: one random cycle (Sattolo 1986).

    Args:
        n: At least 2.
        seed: Source of randomness.
    """
    rng, order = random.Random(seed), list(range(n))
    for i in range(n - 1, 0, -1):
        j = rng.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def score(
    model: Any, tokenizer: Any, images: Images, rows: Sequence[OhdRow], seed: int = 0, scorer: Scorer = WHOLE
) -> Scores:
    """Compares every image with its captions, each image and each different caption embedded once.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        images: The images in `image_names(rows)` order.
        rows: The rows.
        seed: Decides which image replaces which in the control.
        scorer: How a caption is compared with an image.
    """
    place = {name: index for index, name in enumerate(image_names(rows))}
    read = read_captions(model, tokenizer, [caption for row in rows for caption in row.captions], scorer)
    seen = embed_images(model, images)
    captions = _numbered(rows)
    own = [place[row.image] for row in rows]
    cosines = [read.cosines(which, seen[image]) for which, image in zip(captions, own, strict=True)]
    if len(place) == 1:
        return Scores(rows, cosines, cost=read.cost)
    other, mean = derangement(len(place), seed), F.normalize(seen.mean(0), dim=-1)
    return Scores(
        rows,
        cosines,
        [read.cosines(which, seen[other[image]]) for which, image in zip(captions, own, strict=True)],
        [read.cosines(which, mean) for which in captions],
        read.cost,
    )


def _numbered(rows: Sequence[OhdRow]) -> list[range]:
    """Returns the numbers of each row's captions, where those of all rows are counted through."""
    ends = list(accumulate(len(row.captions) for row in rows))
    return [range(end - len(row.captions), end) for row, end in zip(rows, ends, strict=True)]


def is_right(cosines: Tensor) -> bool:
    """Says whether the caption at index 0 is above all others; a tie is not."""
    return bool(cosines[0] > cosines[1:].max())


def accuracy(cosines: Sequence[Tensor]) -> float:
    """Returns the share of rows, at least one, in which the right caption is above all others."""
    return sum(map(is_right, cosines)) / len(cosines)


def interval(name: str, hits: Sequence[bool]) -> list[Metric]:
    """Returns the ends of the 95 % interval of a share of independent items, as `NAME_low95` and `NAME_high95`.

    Source: Wilson 1927.
    """
    from scipy.stats import binomtest

    low, high = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    ends = {"low95": low, "high95": high}
    return [Metric(f"{name}_{end}", float(value), len(hits), "none") for end, value in ends.items()]


def metrics(scores: Scores) -> list[Metric]:
    """Returns accuracy with its 95 % interval (Wilson) and chance: over all negatives of a row, and over some of them.

    - `accuracy`: the caption is above all negatives; `accuracy_shuffled`, `accuracy_mean_image`: with a wrong image;
    - `accuracy/STRATEGY`: above all negatives made in that way, in rows that have such;
    - `accuracy/edited_N`: above all in which N objects were inserted, removed or altered;
    - `accuracy/present_N`: above all negatives, in images that show N objects (`present_6_or_more`);
    - `pairwise`: share of single negatives below their caption.

    The ends are `NAME_low95` and `NAME_high95`, chance (one over the number of captions, mean over rows) `NAME_chance`.
    """
    groups: dict[str, list[tuple[bool, float]]] = {"accuracy": []}
    for row, cosines in zip(scores.rows, scores.cosines, strict=True):
        for name, negatives in _parts(row):
            hit = bool((cosines[1:][negatives] < cosines[0]).all())
            groups.setdefault(name, []).append((hit, 1 / (1 + len(negatives))))
    found = []
    for name in sorted(groups, key=_place):
        hits, chances = zip(*groups[name], strict=True)
        found += [Metric(name, sum(hits) / len(hits), len(hits), "higher"), *interval(name, hits)]
        found.append(Metric(f"{name}_chance", sum(chances) / len(chances), len(chances), "none"))
    for name, wrong in (("accuracy_shuffled", scores.shuffled), ("accuracy_mean_image", scores.mean_image)):
        found += [Metric(name, accuracy(wrong), len(wrong), "none")] if wrong else []
    below = [hit for cosines in scores.cosines for hit in (cosines[1:] < cosines[0]).tolist()]
    return [*found, Metric("pairwise", sum(below) / len(below), len(below), "higher")]


def _parts(row: OhdRow) -> Iterator[tuple[str, list[int]]]:
    """Yields the metrics that a row counts for, each with the indices of the negatives that it looks at."""
    everything = list(range(len(row.negatives)))
    yield "accuracy", everything
    if row.objects:
        count = len(row.objects)
        yield f"accuracy/present_{count if count < _MANY else f'{_MANY}_or_more'}", everything
    parts: dict[str, list[int]] = defaultdict(list)
    for index, negative in enumerate(row.negatives):
        parts[f"accuracy/{negative.strategy}"].append(index)
        if negative.objects:
            parts[f"accuracy/edited_{len(negative.objects)}"].append(index)
    yield from parts.items()


def _place(name: str) -> tuple[int, int, str]:
    """Orders metrics: all negatives, strategies, objects edited, objects present."""
    _, _, group = name.partition("/")
    if group in STRATEGIES:
        return 1, STRATEGIES.index(group), name
    family, _, number = group.partition("_")
    return ("", "", "edited", "present").index(family), int(number.split("_")[0]) if number else 0, name


def predictions(scores: Scores) -> list[dict[str, Any]]:
    """Returns one JSON-able row per image: which caption won, by how much, and whether it is the right one."""
    found = []
    for number, (row, cosines) in enumerate(zip(scores.rows, scores.cosines, strict=True)):
        best = int(cosines[1:].argmax())
        correct = is_right(cosines)
        found.append(
            {
                "id": number,
                "image": row.image,
                "correct": correct,
                "caption": row.caption,
                "predicted": row.caption if correct else row.negatives[best].caption,
                "strategy": None if correct else row.negatives[best].strategy,
                "margin": round(float(cosines[0] - cosines[1 + best]), 6),
            }
        )
        if scores.shuffled:
            found[-1]["correct_shuffled"] = is_right(scores.shuffled[number])
            found[-1]["correct_mean_image"] = is_right(scores.mean_image[number])
    return found
