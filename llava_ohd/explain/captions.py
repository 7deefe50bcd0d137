"""Captions that a model generated, word by word, and what CHAIR says of the same words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.clip.embedding import Images, embed_images
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.chair_data import Caption, coco_id
from llava_ohd.evals.chair_words import Vocabulary
from llava_ohd.explain.explainer import ExplainConfig, Explanation, explain
from llava_ohd.explain.words import sentences

__all__ = ["Crosscheck", "ExplainedCaption", "crosscheck", "explain_captions"]


@dataclass(frozen=True)
class ExplainedCaption:
    """A caption in parts that the encoder can read.

    Attributes:
        image: Its image.
        text: The caption.
        parts: Where each part begins in it, and its explanation.
    """

    image: str
    text: str
    parts: tuple[tuple[int, Explanation], ...]

    def lowest(self, start: int, end: int) -> float | None:
        """Returns the lowest score of the words in a stretch of the caption; None where none was read."""
        scores = [
            word.score
            for shift, part in self.parts
            for word in part.words
            if word.score is not None and word.start + shift < end and start < word.end + shift
        ]
        return min(scores, default=None)

    def record(self) -> dict[str, Any]:
        """Returns what a line of a report holds; places of words are those in the caption."""
        words = [
            {"word": w.text, "start": w.start + shift, "end": w.end + shift, "score": w.score, "wrong": w in part.wrong}
            for shift, part in self.parts
            for w in part.words
        ]
        parts = [{"start": at, "cosine": one.cosine, "f_clip_score": one.f_clip_score} for at, one in self.parts]
        return {"image": self.image, "caption": self.text, "parts": parts, "words": words}


def explain_captions(
    encoder: Path, captions: Sequence[Caption], folder: Path, config: ExplainConfig, by: str = "sentence"
) -> list[ExplainedCaption]:
    """Scores the words of captions, such as those that CHAIR is measured on.

    Args:
        encoder: Folder of the encoder.
        captions: From `evals.chair_data.read_captions`; `image` is the name of a file.
        folder: Of the images.
        config: How.
        by: `sentence`, since CLIP reads 77 tokens and a LLaVA says more; or `caption`.

    Raises:
        DataFormatError: a caption without words; a part that is longer than the encoder reads.
        ImageError: an image is missing or damaged.
    """
    names = list(dict.fromkeys(caption.image for caption in captions))
    place = {name: number for number, name in enumerate(names)}
    parts = [_parts(caption.text, by) for caption in captions]
    pairs = [(place[one.image], text) for one, rows in zip(captions, parts, strict=True) for _, text in rows]
    model = tower.load(encoder).eval().requires_grad_(False)
    images = Images(folder, names, tower.load_processor(encoder))
    found = iter(explain(model, tower.load_tokenizer(encoder), embed_images(model, images), pairs, config))
    return [
        ExplainedCaption(one.image, one.text, tuple((start, next(found)) for start, _ in rows))
        for one, rows in zip(captions, parts, strict=True)
    ]


def _parts(text: str, by: str) -> list[tuple[int, str]]:
    """Returns the parts of a caption, and where each begins."""
    if by == "caption":
        return [(0, text)]
    rows, at = [], 0
    for part in sentences(text):
        at = text.index(part, at)
        rows.append((at, part))
        at += len(part)
    if not rows:
        raise DataFormatError(f"caption {text!r} has no word; give captions with words")
    return rows


@dataclass(frozen=True)
class Crosscheck:
    """Word scores against CHAIR: mentioned objects that the image has, and those that it has not.

    Attributes:
        mentions: Objects mentioned.
        hallucinated: Those that the image does not have.
        area: Chance that a hallucinated mention scores lower than a true one, ties half; 0.5 says nothing. None where
            one of the two kinds is missing.
        scores: Of the hallucinated mentions, and of the true ones: the lowest word of each.
    """

    mentions: int
    hallucinated: int
    area: float | None
    scores: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


def crosscheck(
    explained: Sequence[ExplainedCaption], truth: Mapping[str, frozenset[str]], vocabulary: Vocabulary
) -> Crosscheck:
    """Compares word scores with CHAIR's judgement of the same words (rule `exact`, whose places are known).

    Args:
        explained: From `explain_captions`.
        truth: Objects by image, from `evals.chair_data`.
        vocabulary: Likewise.

    Raises:
        DataFormatError: an image is not in `truth`.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for one in explained:
        name = one.image if one.image in truth else coco_id(one.image)
        if name not in truth:
            raise DataFormatError(f"image {one.image!r} has no ground truth; give the annotations of its split")
        for start, end, found in vocabulary.find(one.text):
            if (score := one.lowest(start, end)) is not None:
                scores[found in truth[name]].append(score)
    wrong, right = scores[False], scores[True]
    wins = sum(1.0 if low < high else 0.5 * (low == high) for low, high in product(wrong, right))
    area = wins / (len(wrong) * len(right)) if wrong and right else None
    return Crosscheck(len(wrong) + len(right), len(wrong), area, (tuple(wrong), tuple(right)))
