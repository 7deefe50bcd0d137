"""Caption accuracy on OHD-Caps: does an encoder prefer the caption to all of its negatives?

The released code moves the right caption to index 0 and takes the argmax, so that exact ties count as right; here they
never do. Beside it stands the accuracy with another row's image, which is what the captions alone give away.

Source: arXiv 2410.03176, section 3; Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.ohd_caps.records import STRATEGIES, OhdRow
from llava_ohd.records import Metric

__all__ = ["Scores", "accuracy", "derangement", "interval", "is_right", "metrics", "predictions", "score"]


@dataclass(frozen=True)
class Scores:
    """Cosines of every row's image with its captions.

    Attributes:
        rows: The rows.
        cosines: One vector (1 + K,) float32 per row, the right caption at index 0.
        shuffled: The same captions with the image of another row; empty where there is only one image.
    """

    rows: Sequence[OhdRow]
    cosines: Sequence[Tensor]
    shuffled: Sequence[Tensor]


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


def score(model: Any, tokenizer: Any, images: Images, rows: Sequence[OhdRow], seed: int = 0) -> Scores:
    """Compares every image with its captions, each image and each different caption embedded once.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        images: The images in `image_names(rows)` order.
        rows: The rows.
        seed: Decides which image replaces which in the control.
    """
    place = {name: index for index, name in enumerate(image_names(rows))}
    texts, which = embed_captions(model, tokenizer, [caption for row in rows for caption in row.captions])
    seen = embed_images(model, images)
    captions = which.split([len(row.captions) for row in rows])
    own = [place[row.image] for row in rows]
    other = derangement(len(place), seed) if len(place) > 1 else []
    return Scores(
        rows,
        [_cosines(texts, which, seen[image]) for which, image in zip(captions, own, strict=True)],
        [_cosines(texts, which, seen[other[image]]) for which, image in zip(captions, own, strict=True) if other],
    )


def _cosines(texts: Tensor, which: Tensor, image: Tensor) -> Tensor:
    """Compares each different caption once: a product of equal rows need not be equal to the last bit."""
    different, place = which.unique(return_inverse=True)
    return (texts[different] @ image)[place]


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
    """Returns accuracy and pairwise accuracy, overall and by what distinguishes rows and negatives.

    - `accuracy` with its 95 % interval (Wilson), `accuracy_shuffled`, `accuracy/present_N` by objects in the image;
    - `pairwise`: share of negatives below their caption; `pairwise/STRATEGY`; `pairwise/edited_N` by the number of
      objects inserted, removed or altered.
    """
    right = [is_right(cosines) for cosines in scores.cosines]
    found = [Metric("accuracy", sum(right) / len(right), len(right), "higher"), *interval("accuracy", right)]
    if scores.shuffled:
        found.append(Metric("accuracy_shuffled", accuracy(scores.shuffled), len(right), "none"))
    groups: dict[str, list[bool]] = defaultdict(list)
    for row, cosines, whole in zip(scores.rows, scores.cosines, right, strict=True):
        if row.objects:
            groups[f"accuracy/present_{len(row.objects)}"].append(whole)
        for negative, below in zip(row.negatives, (cosines[1:] < cosines[0]).tolist(), strict=True):
            groups["pairwise"].append(below)
            groups[f"pairwise/{negative.strategy}"].append(below)
            if negative.objects:
                groups[f"pairwise/edited_{len(negative.objects)}"].append(below)
    return found + [_share(name, groups[name]) for name in sorted(groups, key=_place)]


def _share(name: str, hits: Sequence[bool]) -> Metric:
    return Metric(name, sum(hits) / len(hits), len(hits), "higher")


def _place(name: str) -> tuple[str, int, int, str]:
    family, _, group = name.partition("/")
    number = int(group.rpartition("_")[2]) if "_" in group else -1
    return family, number, STRATEGIES.index(group) if group in STRATEGIES else -1, name


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
    return found
