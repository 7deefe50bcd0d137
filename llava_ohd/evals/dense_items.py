"""Captions of which it is known which words are wrong: FOIL, nocaps-FOIL, HAT, SeeTRUE-Feedback, Rich-HF.

| set | file | what a row gives |
|---|---|---|
| FOIL | COCO-like json of foilUnitn: `images`, `annotations` with `foil`, `foil_word` | a caption, right or foil |
| FOIL in VALSE | `{id: {image_file, caption, foil, classes_foil, mturk}}`, valid rows | a caption and its foil |
| nocaps-FOIL | `[{image_path, baseline, foil, replacement, domain}]` | a caption and its foil |
| HAT | `[{caption, grounding: [[word, wrong]], contains_hallucination, image_path}]` | a caption, some words wrong |
| SeeTRUE-Feedback | JSON Lines of the Hub: `image`, `image_caption`, `caption_misalignment` | a caption, why not |
| Rich-HF | JSON Lines made of its tfrecords: `image`, `prompt`, `labels` (0 = wrong) of its words, `score` | a prompt |

The last two are read as rows of text: their images and files are not public without an account or a conversion.
Source: facts of each repository @ commit: foilunitn.github.io; Heidelberg-NLP/VALSE@2152d90; DavidMChan/aloha@7da6b90.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl

__all__ = ["SETS", "WordItem", "read_items", "rich_hf_words"]

SETS = ("foil", "nocaps-foil", "hat", "seetrue", "rich-hf")


@dataclass(frozen=True)
class WordItem:
    """A caption of an image.

    Attributes:
        id: Of this caption in its file.
        pair: Of the original and its foils; empty where there are no pairs.
        image: File name.
        caption: The caption.
        right: Whether nothing in it is wrong.
        wrong: Its wrong words in order; of a foil one entry, which may be several words.
        group: Such as the domain.
        references: Right captions of the same image.
        score: What people gave it (Rich-HF: alignment); None where nobody did.
        feedback: What people wrote about it (SeeTRUE).
    """

    id: str
    pair: str
    image: str
    caption: str
    right: bool
    wrong: tuple[str, ...] = ()
    group: str = ""
    references: tuple[str, ...] = ()
    score: float | None = None
    feedback: str = ""


Rows = Iterator[WordItem]


def read_items(path: Path) -> tuple[str, list[WordItem]]:
    """Reads a file of any of the sets.

    Returns:
        Its set, of `SETS`, and its captions.

    Raises:
        DataFormatError: another format, or a row without what it must have.
    """
    content = read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)
    name, rows = _recognise(path, content)
    try:
        items = list(rows)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataFormatError(
            f"{path}: a row of {name} lacks {error}; see evals/dense_items.py for the format"
        ) from None
    if not items:
        raise DataFormatError(f"{path} has no caption")
    return name, items


def _recognise(path: Path, content: Any) -> tuple[str, Rows]:
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return "foil", _foil(content)
    first = next(iter(content.values() if isinstance(content, dict) else content), None) if content else None
    keys = first.keys() if isinstance(first, dict) else set()
    forms: tuple[tuple[str, set[str], Callable[[Any], Rows]], ...] = (
        ("foil", {"image_file", "caption", "foil", "classes_foil"}, _valse),
        ("nocaps-foil", {"image_path", "baseline", "foil", "replacement"}, _nocaps),
        ("hat", {"image_path", "caption", "grounding", "contains_hallucination"}, _hat),
        ("seetrue", {"image", "image_caption", "caption_misalignment"}, _seetrue),
        ("rich-hf", {"image", "prompt", "labels", "score"}, _rich_hf),
    )
    for name, needed, read in forms:
        if needed <= keys and isinstance(content, dict) == (read is _valse):
            return name, read(content)
    raise DataFormatError(f"{path} has the format of none of {', '.join(SETS)}; see evals/dense_items.py")


def _foil(content: Mapping[str, Any]) -> Rows:
    images = {image["id"]: image["file_name"] for image in content["images"]}
    for row in content["annotations"]:
        wrong = (row["foil_word"],) if row["foil"] else ()
        # ids of foils and of originals are counted apart, and may be equal
        name = f"{row['id']}/foil/{row.get('foil_id', '')}" if row["foil"] else str(row["id"])
        yield WordItem(name, str(row["id"]), images[row["image_id"]], row["caption"], not row["foil"], wrong)


def _valse(content: Mapping[str, Any]) -> Rows:
    for pair, row in content.items():
        if int(row["mturk"]["caption"]) >= 2:
            yield WordItem(f"{pair}/caption", pair, row["image_file"], row["caption"], True)
            yield WordItem(f"{pair}/foil", pair, row["image_file"], row["foil"], False, (row["classes_foil"],))


def _nocaps(content: list[Any]) -> Rows:
    for number, row in enumerate(content):
        pair, image, group = str(number), row["image_path"], row["domain"]
        more: dict[str, Any] = {"group": group, "references": tuple(row["references"])}
        yield WordItem(f"{pair}/baseline", pair, image, row["baseline"], True, **more)
        yield WordItem(f"{pair}/foil", pair, image, row["foil"], False, (row["replacement"][1],), **more)


def _hat(content: list[Any]) -> Rows:
    for row in content:
        wrong = tuple(word for word, is_wrong in row["grounding"] if is_wrong)
        name, right = row["sample_id"], not row["contains_hallucination"]
        yield WordItem(name, "", row["image_path"], row["caption"], right, wrong, references=tuple(row["references"]))


def _seetrue(content: list[Any]) -> Rows:
    for number, row in enumerate(content):
        image, why = str(row["image"]), row["caption_misalignment"]
        yield WordItem(str(number), "", image, row["image_caption"], False, feedback=why)


def _rich_hf(content: list[Any]) -> Rows:
    for number, row in enumerate(content):
        words = [word for word, _, _ in rich_hf_words(row["prompt"])]
        if len(words) != len(row["labels"]):
            raise ValueError(f"a label for each of {len(words)} words (row {number})")
        wrong = tuple(
            f"{i}_{word}" for i, (word, label) in enumerate(zip(words, row["labels"], strict=True)) if not int(label)
        )
        yield WordItem(str(number), "", str(row["image"]), row["prompt"], not wrong, wrong, score=float(row["score"]))


def rich_hf_words(prompt: str) -> list[tuple[str, int, int]]:
    """Returns the words of a prompt as Rich-HF labels them, split at blanks and , . ? ! " : ; with start and end."""
    return [(found.group(), *found.span()) for found in re.finditer(r'[^\s,.?!":;]+', prompt)]
