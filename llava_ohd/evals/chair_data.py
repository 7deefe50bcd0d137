"""What CHAIR is scored on: captions, and the objects that each image shows.

Ground truth of an image: the categories of its COCO instances, and the objects that its reference captions mention by
the same word rule. Or a prepared file, {"categories": [node words], "images": {"<image id>": [places in categories]}},
as it follows from the tables of Maxlinn/CHAIR-metric-standalone @ 640c507 (rule "pattern", all 123,287 images of 2014).
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.answers import short, whole_characters
from llava_ohd.evals.chair_words import Vocabulary, finder, read_synonyms
from llava_ohd.files import read_json, read_json_objects
from llava_ohd.home import data_folder, from_home, home

__all__ = ["COCO", "Caption", "ChairSet", "coco_id", "open_set", "read_captions", "read_ground_truth", "read_objects"]

COCO = "coco"
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})\.jpg")

Truth = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Caption:
    """What a model says about an image; `image` is the file name as in the instances file, or the COCO id as text."""

    image: str
    text: str


def coco_id(image: str) -> str:
    """Returns the id of a COCO image, as text, if `image` is its file name; anything else as it is."""
    found = _COCO_NAME.fullmatch(image)
    return str(int(found[1])) if found else image


def read_captions(path: Path) -> list[Caption]:
    """Reads captions: JSON Lines, one array, objects over several lines (POPE), or the original's `imgToEval`.

    A row has `image` or `image_id`, and `caption` or `text`. A `question_id` alone says nothing of the image: LLaVA's
    answers need an image_id beside it, as those in POPE's caption_data have.

    Raises:
        DataFormatError: missing, empty, a row without them, with a key twice, or with half a character.
    """
    captions = []
    rows: list[Any] = list(read_json_objects(path))
    if len(rows) == 1 and isinstance(rows[0].get("imgToEval"), dict):
        rows = list(rows[0]["imgToEval"].values())
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataFormatError(f"{path} entry {number} of imgToEval is {short(row)}; an object is expected")
        image = next((row[key] for key in ("image", "image_id") if row.get(key) is not None), None)
        text = row.get("caption", row.get("text"))
        if not isinstance(image, str | int) or isinstance(image, bool) or not isinstance(text, str):
            raise DataFormatError(f"{path} row {number} has the keys {short(sorted(row)[:9])}; {_lacking(row, image)}")
        whole_characters(path, number, str(image), text)
        captions.append(Caption(str(image), text))
    return captions


def _lacking(row: Mapping[str, Any], image: object) -> str:
    """Says what a row lacks."""
    if image is None:
        beside = ", the question_id is that of a question" if "question_id" in row else ""
        return f"image (a file name) or image_id (COCO's) is missing{beside}"
    if isinstance(image, bool) or not isinstance(image, str | int):
        return f"image or image_id is {short(image)}, a file name or COCO's id is expected"
    return "caption or text is missing, or no text"


def read_ground_truth(
    instances: Path,
    captions: Path | None,
    vocabulary: Vocabulary,
    *,
    rule: str = "exact",
    nltk_data: Path | None = None,
) -> dict[str, frozenset[str]]:
    """Reads which objects are in each image.

    Args:
        instances: COCO `instances_*.json`.
        captions: COCO `captions_*.json` of the same images; None counts annotated objects only.
        vocabulary: Of the synonyms file; every category must be in it.
        rule: How objects are found in the reference captions.
        nltk_data: For the rule "wordnet".

    Returns:
        Node words by file name and, for the same image, also by its id as text.

    Raises:
        DataFormatError: not COCO files, a category without a line in the synonyms file, captions of other images.
    """
    record, find = read_json(instances), finder(rule, vocabulary, nltk_data)
    try:
        nodes = {row["id"]: vocabulary.objects(row["name"]) for row in record["categories"]}
        unknown = [row["name"] for row in record["categories"] if not nodes[row["id"]]]
        if unknown:
            raise DataFormatError(f"{instances}: no line of the synonyms file names {', '.join(unknown[:5])}; add them")
        objects: dict[int, set[str]] = {row["id"]: set() for row in record["images"]}
        for row in record["annotations"]:
            objects[row["image_id"]].update(nodes[row["category_id"]])
        for row in read_json(captions)["annotations"] if captions else []:
            objects[row["image_id"]].update(find(row["caption"]).objects)
        names = {row["id"]: row["file_name"] for row in record["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(
            f"{instances} or {captions} is not in COCO's format, or they are of different images: {error!r}"
        ) from None
    truth = {name: frozenset(objects[image_id]) for image_id, name in names.items()}
    return {**{str(image_id): truth[name] for image_id, name in names.items()}, **truth}


def read_objects(path: Path, vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Reads the prepared objects of each image.

    Returns:
        Node words by image id as text.

    Raises:
        DataFormatError: not such a file, or an object that the synonyms file does not have.
    """
    record = read_json(path)
    try:
        names = list(record["categories"])
        unknown = sorted(set(names) - set(vocabulary.node.values()))
        if unknown:
            raise DataFormatError(
                f"{path}: no line of the synonyms file begins with {', '.join(unknown[:5])}; add them"
            )
        if any(place < 0 for places in record["images"].values() for place in places):
            raise IndexError("a negative place")
        return {image: frozenset(names[place] for place in places) for image, places in record["images"].items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataFormatError(
            f'{path} is not a file of {{"categories": [...], "images": {{"<id>": [places in categories]}}}}: {error!r}'
        ) from None


@dataclass(frozen=True)
class ChairSet:
    """Images with their objects.

    Attributes:
        name: As results state it.
        folder: Where its files lie.
        vocabulary: From its synonyms file.
        truth: From a word rule to the objects by image.
        instances: COCO's file of the images, None for prepared objects.
        split: Its split.
    """

    name: str
    folder: Path
    vocabulary: Vocabulary
    truth: Callable[[str], dict[str, frozenset[str]]]
    instances: Path | None = None
    split: str | None = None

    def images(self) -> list[tuple[str, str]]:
        """Returns id and file name of each image, in the order of the file.

        Raises:
            DataFormatError: prepared objects come without images, or the file is not COCO's.
        """
        if self.instances is None:
            raise DataFormatError(f"{self.name} has objects, no images to describe; give a folder of COCO's as --set")
        try:
            return [(str(row["id"]), str(row["file_name"])) for row in read_json(self.instances)["images"]]
        except (KeyError, TypeError) as error:
            raise DataFormatError(f"{self.instances} is not in COCO's format: {error!r}") from None


def open_set(given: str, split: str = "test", nltk_data: Path | None = None) -> ChairSet:
    """Finds the files of a set.

    Args:
        given: `world`; `coco`, the objects of all images of 2014 under `$LLAVA_OHD_DATA`; a .json file of such
            objects; or a folder with annotations/{instances,captions}_SPLIT.json.
        split: Such as `val2014`, for folders.
        nltk_data: For the rule "wordnet".

    Raises:
        LlavaOhdError: `$LLAVA_OHD_DATA` is needed and not set.
        DataFormatError: no such folder, or no synonyms file.
    """
    if given == COCO or given.endswith(".json"):
        path = data_folder("CHAIR's ground truth") / "chair/coco2014_gt_objects.json" if given == COCO else Path(given)
        if given == COCO and not path.is_file():
            raise DataFormatError(
                f"{path} does not exist; `python scripts/prepare_chair.py --annotations DIR` makes it out of COCO's "
                "annotations, or give the folder that holds annotations/ as --set, with --split val2014"
            )
        vocabulary = read_synonyms(_synonyms(path.parent))
        name = "coco2014" if given == COCO else from_home(path)
        return ChairSet(name, path.parent, vocabulary, lambda _: read_objects(path, vocabulary))
    folder = home() / "world" if given == "world" else Path(given)
    instances, captions = (folder / f"annotations/{kind}_{split}.json" for kind in ("instances", "captions"))
    if not folder.is_dir():
        raise DataFormatError(
            f"{folder} is not a folder; give as --set {COCO} (captions of COCO's images of 2014), world, a .json file "
            "of objects, or a folder with annotations/"
        )
    vocabulary = read_synonyms(folder / "synonyms.txt" if given == "world" else _synonyms(folder))

    def truth(rule: str) -> dict[str, frozenset[str]]:
        return read_ground_truth(instances, captions, vocabulary, rule=rule, nltk_data=nltk_data)

    return ChairSet(from_home(folder), folder, vocabulary, truth, instances, split)


def _synonyms(folder: Path) -> Path:
    """Returns the synonyms file of a folder, or where it has none, COCO's under `$LLAVA_OHD_DATA`."""
    own, home_of_data = folder / "synonyms.txt", os.environ.get("LLAVA_OHD_DATA")
    common = Path(home_of_data).expanduser() / "chair/synonyms.txt" if home_of_data else own
    return own if own.is_file() or not common.is_file() else common
