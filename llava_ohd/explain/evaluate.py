"""Sets of captions with known wrong words, judged by an encoder; and such a set of the embedded world."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.evals.dense import Judged, score
from llava_ohd.evals.dense_items import WordItem
from llava_ohd.explain.explainer import ExplainConfig, Explanation, explain, threshold_at
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.records import Metric
from llava_ohd.world.kinds import KINDS

__all__ = ["Findings", "evaluate", "read_world", "world_foils"]


def world_foils(rows: Sequence[OhdRow], kinds: Sequence[str], seed: int = 0) -> list[WordItem]:
    """Makes foils as FOIL has them: in each caption one object becomes one that the image does not show.

    Args:
        rows: Captions that name all their objects, each once.
        kinds: All objects there are, single words.
        seed: Decides which object, and which takes its place.

    Returns:
        For each row with an object named once the caption and its foil; `group` is the size by which the caption names
        the object, `large` or `small`.
    """
    rng, items = random.Random(seed), []
    for number, row in enumerate(rows):
        words = row.caption.replace(",", " ,").split()
        places = [place for place, word in enumerate(words) if word in row.objects and words.count(word) == 1]
        if not places:
            continue
        place = rng.choice(places)
        other = rng.choice([kind for kind in kinds if kind not in words and kind not in row.objects])
        size = next((word for word in words[max(0, place - 2) : place] if word in ("large", "small")), "")
        foil = row.caption.replace(words[place], other)
        shared: dict[str, Any] = {"pair": str(number), "image": row.image, "group": size}
        items.append(WordItem(id=f"{number}/caption", caption=row.caption, right=True, **shared))
        items.append(WordItem(id=f"{number}/foil", caption=foil, right=False, wrong=(other,), **shared))
    return items


@dataclass(frozen=True)
class Findings:
    """A set as an encoder judges it.

    Attributes:
        metrics: By the set's protocol; names with `mean_image/` are of the same captions before the mean of all images,
            which is what the text tower alone gives.
        judged: The captions.
        explanations: Of them, in the same order.
        threshold: Words below it were flagged.
    """

    metrics: list[Metric]
    judged: list[Judged]
    explanations: list[Explanation]
    threshold: float

    def rows(self) -> list[dict[str, Any]]:
        """Returns a line for each caption: what is wrong in it, and its words with their scores."""
        return [
            {
                "id": one.item.id,
                "image": one.item.image,
                "caption": one.item.caption,
                "wrong": list(one.item.wrong),
                "cosine": one.cosine,
                "words": [list(word) for word in one.words],
            }
            for one in self.judged
        ]


def evaluate(
    encoder: Path, name: str, items: Sequence[WordItem], folder: Path, config: ExplainConfig, flag: float | None = None
) -> Findings:
    """Judges the captions of a set.

    Args:
        encoder: Folder of the encoder.
        name: Of the set, of `dense_items.SETS`.
        items: Its captions.
        folder: Of the images.
        config: How words are scored.
        flag: Share of the words of right captions that may be flagged; the threshold is then what gives it, in place of
            the config's. It is found on the captions that are measured: a property of the words, not of their labels.

    Raises:
        ImageError: an image is missing or damaged.
        DataFormatError: a caption is longer than the encoder reads.
    """
    names = list(dict.fromkeys(item.image for item in items))
    place = {image: number for number, image in enumerate(names)}
    model = tower.load(encoder).eval().requires_grad_(False)
    tokenizer = tower.load_tokenizer(encoder)
    seen = embed_images(model, Images(folder, names, tower.load_processor(encoder)))
    found = explain(model, tokenizer, seen, [(place[item.image], item.caption) for item in items], config)
    threshold = config.threshold
    if flag is not None:
        threshold = threshold_at([one for one, item in zip(found, items, strict=True) if item.right], flag)
        found = [replace(one, threshold=threshold) for one in found]
    blind = explain(model, tokenizer, seen.mean(0, keepdim=True), [(0, item.caption) for item in items], config)
    references = _references(model, tokenizer, items, config.template)
    judged, unseen = _judged(items, found, references), _judged(items, blind, references)
    controls = [replace(one, name=f"mean_image/{one.name}", better="none") for one in score(name, unseen, threshold)]
    described = ("base_rate", "localisation_chance")
    metrics = [*score(name, judged, threshold), *(one for one in controls if not one.name.endswith(described))]
    return Findings(metrics, judged, found, threshold)


def _references(model: Any, tokenizer: Any, items: Sequence[WordItem], template: str) -> list[float | None]:
    """Returns each caption's largest cosine with one of its references, both behind the template, as CLIPScore is."""
    texts = [[item.caption, *item.references] for item in items if item.references]
    if not texts:
        return [None] * len(items)
    vectors, which = embed_captions(model, tokenizer, [template + text for row in texts for text in row])
    parts = iter(which.split([len(row) for row in texts]))
    found: list[float | None] = []
    for item in items:
        own, *others = vectors[next(parts)] if item.references else (None,)
        found.append(max(float(own @ other) for other in others) if others else None)
    return found


def _judged(
    items: Sequence[WordItem], found: Sequence[Explanation], references: Sequence[float | None]
) -> list[Judged]:
    rows = zip(items, found, references, strict=True)
    return [
        Judged(item, [(word.text, word.score) for word in one.words if word.score is not None], one.cosine, reference)
        for item, one, reference in rows
    ]


def read_world(folder: Path, seed: int = 0) -> tuple[str, list[WordItem]]:
    """Returns the foils of the embedded world's test images, a set of the form `foil`.

    Raises:
        DataFormatError: the world is not built.
    """

    return "foil", world_foils(read_rows(folder / "ohd_caps/test.jsonl"), KINDS, seed)
