"""Pairs of a right and a wrong caption: SugarCrepe, FOIL, nocaps-FOIL, COLA. Does the encoder prefer the right one?

| file | rows | category | right |
|---|---|---|---|
| SugarCrepe: `{n: {filename, caption, negative_caption}}` | all | file name | s(I, C) > s(I, N) |
| FOIL in VALSE: `{id: {image_file, caption, foil, mturk, ...}}` | valid ones | file name | s(I, C) > s(I, N) |
| nocaps-FOIL: `[{image_path, baseline, foil, domain, ...}]` | all | domain | s(I, C) > s(I, N) |
| COLA multi-objects: `[[image 1, caption 1, image 2, caption 2]]` | all | | each caption prefers its own image |

A FOIL row is valid where at least 2 of 3 people chose the caption over the foil, as VALSE counts. COLA compares images
for a caption, not captions for an image: s(I1, C1) > s(I2, C1) and s(I2, C2) > s(I1, C2), a quarter by chance; the
other direction, and both together as Winoground does, stand beside it. Ties are never right.

Source: RAIVNLab/sugar-crepe@0047054; Heidelberg-NLP/VALSE@2152d90; DavidMChan/aloha@7da6b90; arijitray1993/COLA@1fa52fb
scripts/eval.py `ColaMultiObjAcc`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from llava_ohd.clip.accuracy import derangement, interval
from llava_ohd.clip.embedding import Images, embed_images
from llava_ohd.clip.scorers import WHOLE, Scorer, read_captions
from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.files import read_json
from llava_ohd.ohd_caps.controls import shortest
from llava_ohd.records import Metric

__all__ = [
    "Matching",
    "Pair",
    "PairScores",
    "existing",
    "image_names",
    "metrics",
    "predictions",
    "read_all",
    "read_pairs",
    "score",
]

_VALID_VOTES = 2  # of three: VALSE README, "mturk.caption >= 2"


class _Form(NamedTuple):
    """Under which keys the rows of a kind have what."""

    kind: str
    image: str
    caption: str
    negative: str
    category: str | None = None

    @property
    def keys(self) -> set[str]:
        return {self.image, self.caption, self.negative}


_FORMS = (
    _Form("SugarCrepe", "filename", "caption", "negative_caption"),
    _Form("FOIL", "image_file", "caption", "foil"),
    _Form("nocaps-FOIL", "image_path", "baseline", "foil", "domain"),
)
_EXPECTED = "; ".join(f"{form.kind} with {form.image}, {form.caption}, {form.negative}" for form in _FORMS) + (
    "; or COLA with [image 1, caption 1, image 2, caption 2]"
)


@dataclass(frozen=True)
class Pair:
    """An image, its caption, and a caption that is wrong about it."""

    image: str
    caption: str
    negative: str
    category: str


@dataclass(frozen=True)
class Matching:
    """Two images, each with a caption that fits it and not the other."""

    images: tuple[str, str]
    captions: tuple[str, str]


@dataclass(frozen=True)
class PairScores:
    """Cosines of all items.

    Attributes:
        items: The items, all of one kind.
        cosines: Per item (1, 2) for a `Pair`: image with caption and negative; (2, 2) for a `Matching`: image, caption.
        shuffled: The same with other images of the file; empty where there is but one.
        cost: Different captions, and texts that were encoded for them.
    """

    items: Sequence[Pair | Matching]
    cosines: Sequence[Tensor]
    shuffled: Sequence[Tensor]
    cost: tuple[int, int] = (0, 0)


def read_pairs(file: Path) -> tuple[list[Pair] | list[Matching], int]:
    """Reads a file in any of the four forms.

    Returns:
        The items, and how many rows were left out because people did not agree (FOIL).

    Raises:
        DataFormatError: another form, or a row that lacks something; rows count from 1.
    """
    _, items, left_out = _read(file)
    return items, left_out


def read_all(files: Sequence[Path]) -> tuple[list[Pair | Matching], int]:
    """Reads several files of one kind into one list, as `read_pairs`.

    Raises:
        DataFormatError: as `read_pairs`, or the files are of several kinds, whose accuracies mean different things.
    """
    read = [_read(file) for file in files]
    if len({kind for kind, _, _ in read}) > 1:
        kinds = ", ".join(f"{file} is {kind}" for file, (kind, _, _) in zip(files, read, strict=True))
        raise DataFormatError(f"{kinds}; files of one kind are expected: measure the kinds apart, each with its --out")
    return [item for _, items, _ in read for item in items], sum(left_out for _, _, left_out in read)


def _read(file: Path) -> tuple[str, list[Pair] | list[Matching], int]:
    """Returns also the kind of a file; its first row says which that is."""
    try:
        record = read_json(file)
    except DataFormatError as error:
        raise DataFormatError(f"{error}. Expected is one JSON object or array, not JSON Lines: {_EXPECTED}") from None
    rows = list(record.values()) if isinstance(record, dict) else record
    if not isinstance(rows, list) or not rows:
        raise DataFormatError(f"{file} has no rows; expected is {_EXPECTED}")
    if isinstance(rows[0], list):
        return "COLA", [_matching(file, number, row) for number, row in enumerate(rows, 1)], 0
    form = next((form for form in _FORMS if isinstance(rows[0], dict) and form.keys <= rows[0].keys()), None)
    if form is None:
        found = sorted(rows[0]) if isinstance(rows[0], dict) else type(rows[0]).__name__
        raise DataFormatError(f"{file} row 1 has {found}; expected is {_EXPECTED}")
    pairs = [_pair(file, number, row, form) for number, row in enumerate(rows, 1)]
    valid = [pair for pair, row in zip(pairs, rows, strict=True) if _is_valid(row)]
    if not valid:
        raise DataFormatError(f"{file}: in none of {len(rows)} rows do {_VALID_VOTES} people prefer the caption")
    return form.kind, valid, len(rows) - len(valid)


def _is_valid(row: dict[str, Any]) -> bool:
    votes = row.get("mturk")
    return not isinstance(votes, dict) or votes.get("caption", 0) >= _VALID_VOTES


def _pair(file: Path, number: int, row: Any, form: _Form) -> Pair:
    keys = (form.image, form.caption, form.negative)
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise DataFormatError(f"{file} row {number} is not {form.kind}, as row 1 is: texts {', '.join(keys)}")
    image, caption, negative = (row[key] for key in keys)
    return Pair(image, caption, negative, str(row.get(form.category)) if form.category else file.stem)


def _matching(file: Path, number: int, row: Any) -> Matching:
    if not isinstance(row, list) or len(row) != 4 or not all(isinstance(cell, str) for cell in row):
        raise DataFormatError(f"{file} row {number} is not [image 1, caption 1, image 2, caption 2], as COLA's are")
    one, first, two, second = row
    return Matching((one.rpartition("/")[2], two.rpartition("/")[2]), (first, second))


def image_names(items: Sequence[Pair | Matching]) -> list[str]:
    """Returns the different image names in the order of their first item."""
    return list(dict.fromkeys(name for item in items for name in _images(item)))


def _images(item: Pair | Matching) -> tuple[str, ...]:
    return item.images if isinstance(item, Matching) else (item.image,)


def _captions(item: Pair | Matching) -> tuple[str, str]:
    return item.captions if isinstance(item, Matching) else (item.caption, item.negative)


def existing(items: Sequence[Any], folder: Path, limit: bool) -> list[Any]:
    """Returns the items whose images are there.

    Args:
        items: Pairs or matchings.
        folder: Folder of the images.
        limit: Leave the others out; otherwise they are an error.

    Raises:
        ImageError: images are missing, and `limit` was not asked for or nothing is left.
    """
    there = {name for name in image_names(items) if (folder / name).is_file()}
    kept = [item for item in items if there.issuperset(_images(item))]
    if not kept or (len(kept) < len(items) and not limit):
        raise ImageError(
            f"the images of {len(items) - len(kept)} of {len(items)} rows are not in {folder} "
            f"({len(image_names(items)) - len(there)} of {len(image_names(items))} images, such as "
            f"{next(name for name in image_names(items) if name not in there)}); give their folder as --images"
            + ("" if not kept else ", or measure what is there with --limit_to_existing, which the results then state")
        )
    return kept


def score(
    model: Any,
    tokenizer: Any,
    images: Images,
    items: Sequence[Pair | Matching],
    seed: int = 0,
    scorer: Scorer = WHOLE,
) -> PairScores:
    """Compares every image with the captions of its item.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        images: The images in `image_names(items)` order.
        items: The items, all of one kind.
        seed: Decides which image replaces which in the control.
        scorer: How a caption is compared with an image.
    """
    place = {name: index for index, name in enumerate(image_names(items))}
    read = read_captions(model, tokenizer, [caption for item in items for caption in _captions(item)], scorer)
    seen = embed_images(model, images)
    other = derangement(len(place), seed) if len(place) > 1 else []
    own = [[place[name] for name in _images(item)] for item in items]
    pairs = [range(start, start + 2) for start in range(0, 2 * len(items), 2)]
    cosines = [read.cosines(pair, seen[index]) for pair, index in zip(pairs, own, strict=True)]
    shuffled = [[other[index] for index in row] for row in own] if other else []
    other_cosines = [read.cosines(pair, seen[row]) for pair, row in zip(pairs, shuffled)]  # noqa: B905
    return PairScores(items, cosines, other_cosines, read.cost)


def metrics(scores: PairScores) -> list[Metric]:
    """Returns accuracy with its 95 % interval (Wilson), by category, and what needs no image.

    - pairs: `accuracy`, `accuracy/CATEGORY` where there are several;
    - matchings: `accuracy` (COLA's rule), `accuracy_captions` (for each image its own caption), `accuracy_both`;
    - `accuracy_shuffled`: the accuracy with other images; `control_shortest` (pairs): the shorter caption, a tie of
      two counting one half; `control_chance`.
    """
    rules = _rules(scores.items)
    found: list[Metric] = []
    for name, rule in rules.items():
        found += _share(name, [rule(cosines) for cosines in scores.cosines])
    groups: dict[str, list[bool]] = defaultdict(list)
    for item, cosines in zip(scores.items, scores.cosines, strict=True):
        if isinstance(item, Pair):
            groups[item.category].append(_prefers(cosines))
    if len(groups) > 1:
        found += [metric for name in sorted(groups) for metric in _share(f"accuracy/{name}", groups[name])]
    if scores.shuffled:
        hits = [rules["accuracy"](cosines) for cosines in scores.shuffled]
        found.append(Metric("accuracy_shuffled", sum(hits) / len(hits), len(hits), "none"))
    return found + _controls(scores.items)


def _rules(items: Sequence[Pair | Matching]) -> Mapping[str, Any]:
    if isinstance(items[0], Pair):
        return {"accuracy": _prefers}
    return {
        "accuracy": _images_for_captions,
        "accuracy_captions": _captions_for_images,
        "accuracy_both": lambda cosines: _images_for_captions(cosines) and _captions_for_images(cosines),
    }


def _prefers(cosines: Tensor) -> bool:
    return bool(cosines[0, 0] > cosines[0, 1])


def _images_for_captions(cosines: Tensor) -> bool:
    """COLA's rule: `im0_c0 > im1_c0 and im1_c1 > im0_c1`."""
    return bool(cosines[0, 0] > cosines[1, 0] and cosines[1, 1] > cosines[0, 1])


def _captions_for_images(cosines: Tensor) -> bool:
    return bool(cosines[0, 0] > cosines[0, 1] and cosines[1, 1] > cosines[1, 0])


def _share(name: str, hits: Sequence[bool]) -> list[Metric]:
    return [Metric(name, sum(hits) / len(hits), len(hits), "higher"), *interval(name, hits)]


def _controls(items: Sequence[Pair | Matching]) -> list[Metric]:
    """Without an image no caption of a `Matching` can prefer one; a pair can be told by its length."""
    if isinstance(items[0], Matching):
        return [Metric("control_chance", 0.25, len(items), "none")]
    first = [shortest(_captions(item)) for item in items]
    short = sum((0 in places) / len(places) for places in first) / len(items)
    return [Metric("control_chance", 0.5, len(items), "none"), Metric("control_shortest", short, len(items), "none")]


def predictions(scores: PairScores) -> list[dict[str, Any]]:
    """Returns one JSON-able row per item: whether it is right, and its cosines."""
    rule = _rules(scores.items)["accuracy"]
    return [
        {
            "images": list(_images(item)),
            "captions": list(_captions(item)),
            "category": getattr(item, "category", None),
            "correct": rule(cosines),
            "cosines": [[round(value, 6) for value in row] for row in cosines.tolist()],
        }
        for item, cosines in zip(scores.items, scores.cosines, strict=True)
    ]
