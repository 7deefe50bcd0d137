"""Which hallucinations went away and which came, and what that looks like on the images."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava_ohd.errors import ImageError
from llava_ohd.evals.chair import Vocabulary
from llava_ohd.evals.pope import PopeQuestion
from llava_ohd.report.comparison import Pairs
from llava_ohd.report.runs import Run, Truth

__all__ = ["Card", "Flip", "cards", "count_flips", "embedded", "flips"]

_WIDEST = 320  # pixels; larger images are made smaller


@dataclass(frozen=True)
class Flip:
    """A question that exactly one of two models answers right."""

    image: str
    prompt: str
    present: bool
    ours: str
    stock: str
    ours_right: bool

    @property
    def kind(self) -> str:
        """`gone` or `new` for a hallucination, `found` or `lost` for an object that is there."""
        if self.present:
            return "found" if self.ours_right else "lost"
        return "gone" if self.ours_right else "new"


@dataclass(frozen=True)
class Card:
    """One image of the gallery with the flips on it and what both models say about it (captions as marked-up html)."""

    image: str
    source: str
    flips: tuple[Flip, ...]
    captions: dict[str, str]


def flips(questions: Sequence[PopeQuestion], ours: Run, stock: Run) -> list[Flip]:
    """Finds the questions that only one model answers right; a question in several splits counts once."""
    found: dict[tuple[str, str], Flip] = {}
    for question in questions:
        texts = ours.answers[question.id], stock.answers[question.id]
        present = question.label != "no"
        right = [run.right[f"{question.split}/accuracy"][question.id] for run in (ours, stock)]
        if right[0] != right[1]:
            flip = Flip(question.image, question.prompt, present, *texts, right[0])
            found[question.image, question.prompt] = flip
    return list(found.values())


def count_flips(pairs: Pairs, truth: Truth) -> dict[str, Any] | None:
    """Counts flips by kind over distinct questions, per seed; None without POPE answers.

    Returns:
        `absent`, `present` (how many distinct questions), and per kind (`gone`, `new`, `found`, `lost`) a list by seed.
    """
    runs = [pair for pair in pairs.runs.get("pope", []) if pair[0].answers]
    if not runs or truth.questions is None:
        return None
    kinds = [[flip.kind for flip in flips(truth.questions, *pair)] for pair in runs]
    distinct = {(q.image, q.prompt): q.label != "no" for q in truth.questions}
    return {
        "absent": sum(not present for present in distinct.values()),
        "present": sum(distinct.values()),
        **{kind: [seed.count(kind) for seed in kinds] for kind in ("gone", "new", "found", "lost")},
    }


def cards(pairs: Pairs, truth: Truth, images: Path, *, limit: int = 9) -> dict[str, list[Card]]:
    """Makes the gallery from the first seed.

    Args:
        pairs: From `read_pairs`.
        truth: With the questions.
        images: Folder that the image names are relative to; where it is none, there is no gallery.
        limit: Most cards per direction, spread evenly over the images that have such a flip.

    Returns:
        Cards under `gone` (hallucinations that went away) and `new`.

    Raises:
        ImageError: an image is missing or broken.
    """
    runs = [pair for pair in pairs.runs.get("pope", []) if pair[0].answers]
    if not runs or truth.questions is None or not images.is_dir():
        return {}
    found = flips(truth.questions, *runs[0])
    described = [pair for pair in pairs.runs.get("chair", []) if pair[0].answers][:1]
    gallery = {}
    for kind in ("gone", "new"):
        by_image: dict[str, list[Flip]] = {}
        for flip in found:
            if flip.kind == kind:
                by_image.setdefault(flip.image, []).append(flip)
        names = list(by_image)
        step = max(1.0, len(names) / limit)
        chosen = [names[int(place * step)] for place in range(min(limit, len(names)))]
        gallery[kind] = [
            Card(name, embedded(images / name), tuple(by_image[name]), _captions(name, described, truth))
            for name in chosen
        ]
    return gallery


def _captions(name: str, described: Sequence[tuple[Run, Run]], truth: Truth) -> dict[str, str]:
    if not described or truth.vocabulary is None or name not in described[0][0].answers:
        return {}
    sides = zip(("ours", "stock"), described[0], strict=True)
    return {
        side: _marked(run.answers[name], run.invented.get(name, frozenset()), truth.vocabulary) for side, run in sides
    }


def _marked(text: str, invented: frozenset[str], vocabulary: Vocabulary) -> str:
    """Returns the caption as html, the objects that the rule of the run counts as invented inside <mark>."""
    parts, end = [], 0
    for start, stop, name in vocabulary.find(text):
        if name in invented:
            parts += [html.escape(text[end:start]), f"<mark>{html.escape(text[start:stop])}</mark>"]
            end = stop
    return "".join([*parts, html.escape(text[end:])])


def embedded(path: Path) -> str:
    """Returns the image as a data URL (PNG; pixels are kept, larger images made smaller)."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{path} cannot be read ({error}); give the folder of the test images with --images") from None
    if max(small.size) > _WIDEST:
        small.thumbnail((_WIDEST, _WIDEST))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
