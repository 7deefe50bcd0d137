"""CHAIR: which of the objects that a caption mentions are not in the image?

Paper: arXiv 1809.02156. Source: LisaAnne/Hallucination utils/chair.py @ 6e4d33c; recall as in
Maxlinn/CHAIR-metric-standalone @ 640c507. CHAIRi and CHAIRs: lower is better; recall: higher; length describes.

A word rule says which objects a caption mentions (chair_words.py); numbers of different rules are not comparable.
Where ground truth comes from: chair_data.py; what protocols do to captions: chair_protocol.py.

Mentions are counted, not distinct objects, and pooled over captions. Where no caption mentions an object, the original
stops with ZeroDivisionError; here CHAIRi is 0 and its n is 0. An image that is not known is refused; in the standalone
port all that is said of it counts as hallucinated.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import AnswersMismatch
from llava_ohd.evals.answers import short
from llava_ohd.evals.chair_data import Caption, coco_id, read_captions, read_ground_truth
from llava_ohd.evals.chair_words import RULES, Find, Vocabulary, finder, read_synonyms
from llava_ohd.records import Metric

__all__ = [
    "RULES",
    "Caption",
    "Mentions",
    "Vocabulary",
    "by_object",
    "metrics",
    "object_lines",
    "published_length",
    "read_captions",
    "read_ground_truth",
    "read_synonyms",
    "score",
    "scored_captions",
    "seconds",
    "side_by_side",
]

Truth = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Mentions:
    """The objects of one caption.

    Attributes:
        image: As in the caption.
        mentioned: Every mention in order, as node words (the first word of a line of the synonyms file).
        objects: The distinct objects of the image.
        words: Length of the caption in blank-separated words.
        published_length: Length as papers give it beside the rule (`chair_words.Found`).
    """

    image: str
    mentioned: tuple[str, ...]
    objects: frozenset[str]
    words: int
    published_length: int | None = None

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The mentions of what is not in the image."""
        return tuple(name for name in self.mentioned if name not in self.objects)

    @property
    def covered(self) -> int:
        """Number of distinct objects of the image that are mentioned."""
        return len(self.objects.intersection(self.mentioned))

    @property
    def present(self) -> int:
        """Number of distinct objects of the image."""
        return len(self.objects)


def scored_captions(
    captions: Sequence[Caption],
    ground_truth: Truth,
    vocabulary: Vocabulary,
    *,
    rule: str = "exact",
    nltk_data: Path | None = None,
    ids: Mapping[str, str] | None = None,
) -> list[Mentions]:
    """Finds the mentioned and the hallucinated objects of each caption.

    Args:
        captions: One caption per image; images of `ground_truth` without a caption are left out.
        ground_truth: Objects by image; a COCO image may be known by its id alone.
        vocabulary: From `read_synonyms`.
        rule: One of `RULES`.
        nltk_data: Folder with NLTK's data, for the rule "wordnet".
        ids: The id of an image by its file name, where captions may give either.

    Raises:
        AnswersMismatch: a caption of an unknown image, or two of one image, by whatever names.
        LlavaOhdError: no such rule.
        MissingDependency: NLTK or its data.
    """
    find = finder(rule, vocabulary, nltk_data)
    known = [caption.image if caption.image in ground_truth else coco_id(caption.image) for caption in captions]
    unknown = [caption.image for caption, name in zip(captions, known, strict=True) if name not in ground_truth]
    if unknown:
        raise AnswersMismatch(
            f"{len(unknown)} of {len(captions)} captions are of images without ground truth, first: "
            f"{short(unknown[:3])}. Give the set that the captions were made for: --set coco or --rule pattern for "
            "COCO's images of 2014, or the folder with the annotations of their split. Nothing was scored."
        )
    images = ((ids or {}).get(name, coco_id(name)) for name in known)
    twice = [name for name, count in Counter(images).items() if count > 1]
    if twice:
        raise AnswersMismatch(
            f"{len(twice)} images have more than one caption, first: {short(twice[:3])}. Keep one each. Nothing was "
            "scored."
        )
    return [_mentions(row, ground_truth[name], find) for row, name in zip(captions, known, strict=True)]


def _mentions(caption: Caption, objects: frozenset[str], find: Find) -> Mentions:
    found = find(caption.text)
    return Mentions(caption.image, tuple(found.objects), objects, len(caption.text.split()), found.length)


def metrics(rows: Sequence[Mentions]) -> list[Metric]:
    """Returns `chair_i`, `chair_s`, `recall` (fractions) and `length` (words per caption)."""
    mentioned = sum(len(row.mentioned) for row in rows)
    present = sum(row.present for row in rows)
    return [
        Metric("chair_i", _ratio(sum(len(row.hallucinated) for row in rows), mentioned), mentioned, "lower"),
        Metric("chair_s", _ratio(sum(bool(row.hallucinated) for row in rows), len(rows)), len(rows), "lower"),
        Metric("recall", _ratio(sum(row.covered for row in rows), present), present, "higher"),
        Metric("length", _ratio(sum(row.words for row in rows), len(rows)), len(rows), "none"),
    ]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def published_length(rows: Sequence[Mentions]) -> float | None:
    """Returns the mean length as papers give it beside the rule, None for rules without one."""
    lengths = [row.published_length for row in rows if row.published_length is not None]
    return _ratio(sum(lengths), len(lengths)) if lengths else None


def by_object(rows: Sequence[Mentions]) -> dict[str, dict[str, int]]:
    """Counts by object, those hallucinated most often first.

    Returns:
        By node word `hallucinated` (mentions where it is not), `mentions`, `images` (that have it by ground truth) and
        `named` (those of them whose caption mentions it).
    """
    counts: dict[str, Counter[str]] = {"hallucinated": Counter(), "mentions": Counter(), "images": Counter()}
    counts["named"] = Counter()
    for row in rows:
        counts["hallucinated"].update(row.hallucinated)
        counts["mentions"].update(row.mentioned)
        counts["images"].update(row.objects)
        counts["named"].update(row.objects.intersection(row.mentioned))
    names = counts["mentions"].keys() | counts["images"].keys()
    order = sorted(names, key=lambda name: (-counts["hallucinated"][name], name))
    return {name: {key: counter[name] for key, counter in counts.items()} for name in order}


def object_lines(objects: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns the lines of a table of what `by_object` returns."""
    heading = f"  {'object':16} {'hallucinated':>12} {'of mentions':>12} {'named':>8} {'of images':>10}"
    return [heading] + [
        f"  {name:16} {row['hallucinated']:12} {row['mentions']:12} {row['named']:8} {row['images']:10}"
        for name, row in objects.items()
    ]


def side_by_side(scores: Mapping[str, Sequence[Metric]]) -> list[str]:
    """Returns the lines of a table of the metrics of several rules; shares in percent."""
    columns = [metric.name for metric in next(iter(scores.values()))]
    lines = [f"  {'rule':10}" + "".join(f"{name:>10}" for name in columns) + f"{'mentions':>10}"]
    for rule, found in scores.items():
        values = (metric.value if metric.name == "length" else 100 * metric.value for metric in found)
        lines.append(f"  {rule:10}" + "".join(f"{value:10.2f}" for value in values) + f"{found[0].n:10}")
    return lines


def score(
    captions: Iterable[Caption],
    ground_truth: Truth,
    vocabulary: Vocabulary,
    *,
    rule: str = "exact",
    nltk_data: Path | None = None,
) -> list[Metric]:
    """Scores captions; arguments and errors are those of `scored_captions`.

    Raises:
        AnswersMismatch: also if there are no captions.
    """
    captions = list(captions)
    if not captions:
        raise AnswersMismatch("there are no captions to score")
    return metrics(scored_captions(captions, ground_truth, vocabulary, rule=rule, nltk_data=nltk_data))


def seconds(
    captions: Sequence[Caption],
    ground_truth: Truth,
    vocabulary: Vocabulary,
    rules: Iterable[str] = tuple(RULES),
    nltk_data: Path | None = None,
) -> dict[str, float]:
    """Measures how long each rule takes to score the captions, its tables and NLTK's data included, in seconds."""
    taken = {}
    for rule in rules:
        start = time.perf_counter()
        score(captions, ground_truth, vocabulary, rule=rule, nltk_data=nltk_data)
        taken[rule] = time.perf_counter() - start
    return taken
