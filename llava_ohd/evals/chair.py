"""CHAIR: which of the objects that a caption mentions are not in the image?

Paper: arXiv 1809.02156. Source: LisaAnne/Hallucination utils/chair.py @ 6e4d33c; recall as in
Maxlinn/CHAIR-metric-standalone @ 640c507. CHAIRi and CHAIRs: lower is better; recall: higher; length describes.

Ground truth of an image: the categories of its instances and the objects that its reference captions mention.
A word rule says which objects a caption mentions; numbers of different rules are not comparable:

exact    lower-cased words as they stand; objects of several words before single ones; no singularisation, so that
         "dogs" counts only if the synonyms file has it. For captions in the singular, as in the embedded world.
pattern  the original's rule; not yet here.
wordnet  OPERA's rule; not yet here.

Mentions are counted, not distinct objects, and pooled over captions. Where no caption mentions an object, the original
stops with ZeroDivisionError; here CHAIRi is 0 and its n is 0.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import AnswersMismatch, DataFormatError, LlavaOhdError
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.records import Metric

__all__ = [
    "RULES",
    "Caption",
    "Mentions",
    "Vocabulary",
    "metrics",
    "read_captions",
    "read_ground_truth",
    "read_synonyms",
    "score",
    "scored_captions",
]

RULES = {"exact": "exact (words as they stand; LisaAnne/Hallucination@6e4d33c without singularisation)"}
_LATER = ("pattern", "wordnet")
_TOKEN = re.compile(r"[^\W_]+(?:[-./'][^\W_]+)*|\S")


@dataclass(frozen=True)
class Caption:
    """What a model says about an image; `image` is the file name as in the instances file, or the COCO id as text."""

    image: str
    text: str


@dataclass(frozen=True)
class Mentions:
    """The objects of one caption.

    Attributes:
        image: File name of the image.
        mentioned: Every mention in order, as node words (the first word of a line of the synonyms file).
        hallucinated: Those that are not in the image.
        covered: Number of distinct objects of the image that are mentioned.
        present: Number of distinct objects of the image.
        words: Length of the caption in blank-separated words.
    """

    image: str
    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: int
    present: int
    words: int


@dataclass(frozen=True)
class Vocabulary:
    """Words and word groups that name an object.

    Attributes:
        node: Maps each synonym, as a tuple of tokens, to its node word.
        longest: Tokens of the longest synonym.
    """

    node: dict[tuple[str, ...], str]
    longest: int

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Finds all objects that a text mentions (rule "exact"): start and end in `text`, and the node word."""
        tokens = list(_TOKEN.finditer(text))
        words = tuple(token.group().lower() for token in tokens)
        found, position = [], 0
        while position < len(words):
            lengths = range(min(self.longest, len(words) - position), 0, -1)
            size = next((n for n in lengths if words[position : position + n] in self.node), 0)
            if size:
                first, last = tokens[position], tokens[position + size - 1]
                found.append((first.start(), last.end(), self.node[words[position : position + size]]))
            position += max(size, 1)
        return found

    def objects(self, text: str) -> list[str]:
        """Returns the node words of all objects that a text mentions, in order (rule "exact")."""
        return [name for _, _, name in self.find(text)]


def read_synonyms(path: Path) -> Vocabulary:
    """Reads a synonyms file of CHAIR: one object per line, its names separated by commas, the first is the node word.

    Raises:
        DataFormatError: missing, or no names in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read as text ({error}); give a synonyms file of CHAIR") from None
    node = {}
    for line in lines:
        names = [name.strip() for name in line.split(",") if name.strip()]
        for name in names:
            node[tuple(_TOKEN.findall(name.lower()))] = names[0]
    if not node:
        raise DataFormatError(f"{path} names no objects; one line per object, names separated by commas, is expected")
    return Vocabulary(node, max(map(len, node)))


def read_ground_truth(instances: Path, captions: Path | None, vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Reads which objects are in each image.

    Args:
        instances: COCO `instances_*.json`.
        captions: COCO `captions_*.json` of the same images; None counts annotated objects only.
        vocabulary: Of the synonyms file; every category must be in it.

    Returns:
        Node words by file name and, for the same image, also by its id as text.

    Raises:
        DataFormatError: not COCO files, a category without a line in the synonyms file, captions of other images.
    """
    record = read_json(instances)
    try:
        nodes = {row["id"]: vocabulary.objects(row["name"]) for row in record["categories"]}
        unknown = [row["name"] for row in record["categories"] if not nodes[row["id"]]]
        if unknown:
            raise DataFormatError(f"{instances}: no line of the synonyms file names {', '.join(unknown[:5])}; add them")
        objects: dict[int, set[str]] = {row["id"]: set() for row in record["images"]}
        for row in record["annotations"]:
            objects[row["image_id"]].update(nodes[row["category_id"]])
        for row in read_json(captions)["annotations"] if captions else []:
            objects[row["image_id"]].update(vocabulary.objects(row["caption"]))
        names = {row["id"]: row["file_name"] for row in record["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(
            f"{instances} or {captions} is not in COCO's format, or they are of different images: {error!r}"
        ) from None
    truth = {name: frozenset(objects[image_id]) for image_id, name in names.items()}
    return {**{str(image_id): truth[name] for image_id, name in names.items()}, **truth}


def read_captions(path: Path) -> list[Caption]:
    """Reads captions: JSON Lines or one array with `image` or `image_id`, and `caption` or `text`.

    Raises:
        DataFormatError: missing, empty, or a row without them.
    """
    captions = []
    for number, row in enumerate(read_jsonl(path), 1):
        image, text = row.get("image", row.get("image_id")), row.get("caption", row.get("text"))
        if image is None or not isinstance(text, str):
            raise DataFormatError(
                f"{path} row {number} has the keys {sorted(row)}; image or image_id, and caption or text are expected"
            )
        captions.append(Caption(str(image), text))
    return captions


def scored_captions(
    captions: Sequence[Caption], ground_truth: dict[str, frozenset[str]], vocabulary: Vocabulary, *, rule: str = "exact"
) -> list[Mentions]:
    """Finds the mentioned and the hallucinated objects of each caption.

    Raises:
        AnswersMismatch: a caption of an unknown image, or two of one image.
        LlavaOhdError: no such rule.
    """
    if rule not in RULES:
        later = "is not available in this version" if rule in _LATER else "is unknown"
        raise LlavaOhdError(f"CHAIR rule {rule!r} {later}; choose {', '.join(RULES)}")
    unknown = [caption.image for caption in captions if caption.image not in ground_truth]
    if unknown:
        raise AnswersMismatch(
            f"{len(unknown)} of {len(captions)} captions are of images without ground truth, first: {unknown[:3]}. "
            "Give the annotations of the split that the captions were made for. Nothing was scored."
        )
    twice = [name for name, count in Counter(caption.image for caption in captions).items() if count > 1]
    if twice:
        raise AnswersMismatch(
            f"{len(twice)} images have more than one caption, first: {twice[:3]}. Keep one each. Nothing was scored."
        )
    return [_mentions(caption, ground_truth[caption.image], vocabulary) for caption in captions]


def _mentions(caption: Caption, present: frozenset[str], vocabulary: Vocabulary) -> Mentions:
    mentioned = tuple(vocabulary.objects(caption.text))
    hallucinated = tuple(name for name in mentioned if name not in present)
    covered = len(present.intersection(mentioned))
    return Mentions(caption.image, mentioned, hallucinated, covered, len(present), len(caption.text.split()))


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


def score(
    captions: Iterable[Caption],
    ground_truth: dict[str, frozenset[str]],
    vocabulary: Vocabulary,
    *,
    rule: str = "exact",
) -> list[Metric]:
    """Scores captions.

    Args:
        captions: One caption per image; images of `ground_truth` without a caption are left out.
        ground_truth: From `read_ground_truth`.
        vocabulary: From `read_synonyms`.
        rule: How mentions are found; see the top of the file.

    Raises:
        AnswersMismatch: no captions, one of an unknown image, or two of one image.
        LlavaOhdError: no such rule.
    """
    captions = list(captions)
    if not captions:
        raise AnswersMismatch("there are no captions to score")
    return metrics(scored_captions(captions, ground_truth, vocabulary, rule=rule))
