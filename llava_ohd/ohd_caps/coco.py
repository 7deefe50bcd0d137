"""Reads a pair of COCO files, instances and captions, into one record per image.

Everything that is built from annotations starts here: negative captions, LLaVA's training json, photo folders.
Colours (`color` in an annotation) are an addition of the embedded world; COCO has none.

Source: https://cocodataset.org/#format-data
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects
from llava_ohd.files import read_json
from llava_ohd.ohd_caps.grammar import counted, enumerate_phrases

__all__ = ["CocoImage", "Instance", "describe", "image_objects", "read_captions", "read_coco"]


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        name: Name of its category.
        box: Left, top, width, height in pixels.
        colour: Its colour, or "" where the annotation has none.
        crowd: True where one annotation covers several objects.
    """

    name: str
    box: tuple[float, float, float, float]
    colour: str = ""
    crowd: bool = False


@dataclass(frozen=True)
class CocoImage:
    """One image with everything annotated about it.

    Attributes:
        file_name: Relative to the image folder.
        instances: In the order of the annotations; may be empty.
        captions: In the order of the annotations; may be empty.
    """

    file_name: str
    instances: tuple[Instance, ...]
    captions: tuple[str, ...] = ()

    @property
    def objects(self) -> tuple[str, ...]:
        """The distinct names of its objects, in the order of the annotations."""
        return tuple(dict.fromkeys(instance.name for instance in self.instances))


def read_coco(instances: Path, captions: Path | None = None) -> list[CocoImage]:
    """Reads the images of an instances file, with the captions that another file has for them.

    Args:
        instances: COCO `instances_*.json`.
        captions: COCO `captions_*.json`; joined by image id.

    Returns:
        The images in the order of the instances file, at least one.

    Raises:
        DataFormatError: a file is missing, empty or not of that format, or the two have no image in common.
    """
    record = read_json(instances)
    try:
        files = {row["id"]: str(row["file_name"]) for row in record["images"]}
        names = {row["id"]: str(row["name"]) for row in record["categories"]}
        found: dict[Any, list[Instance]] = {image_id: [] for image_id in files}
        for row in record["annotations"]:
            found[row["image_id"]].append(_instance(row, names))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_coco(instances, error, "images, annotations (with bbox) and categories") from None
    if not files:
        raise DataFormatError(f"{instances} lists no image; give an instances file with at least one")
    texts = {} if captions is None else read_captions(captions, read_json(captions))
    if captions is not None and not texts.keys() & files.keys():
        raise DataFormatError(f"{captions} has no caption for any image of {instances}; give files of the same split")
    return [CocoImage(files[key], tuple(found[key]), tuple(texts.get(key, ()))) for key in files]


def image_objects(images: Iterable[CocoImage]) -> list[ImageObjects]:
    """Returns what the samplers of absent objects count over: each image with its distinct object names."""
    return [ImageObjects(image.file_name, image.objects) for image in images]


def describe(instances: Iterable[Instance]) -> str:
    """Names all objects from left to right, with colours where annotated: "a red ball, two cups and a green star".

    Objects of one name and colour stand together, at the place of the leftmost.
    """
    groups: dict[str, list[Instance]] = {}
    for instance in sorted(instances, key=lambda item: item.box[0]):
        groups.setdefault(f"{instance.colour} {instance.name}".strip(), []).append(instance)
    return enumerate_phrases(
        [counted(name, len(group), several=any(item.crowd for item in group)) for name, group in groups.items()]
    )


def _instance(row: dict[str, Any], names: dict[Any, str]) -> Instance:
    left, top, width, height = (float(value) for value in row["bbox"])
    return Instance(
        names[row["category_id"]],
        (left, top, width, height),
        str(row.get("color") or ""),
        bool(row.get("iscrowd")),
    )


def read_captions(path: Path, record: Any) -> dict[Any, list[str]]:
    """Returns the captions of a COCO captions file by image id, blanks made single.

    Args:
        path: For messages.
        record: What the file holds.

    Raises:
        DataFormatError: not of that format.
    """
    texts: dict[Any, list[str]] = {}
    try:
        for row in record["annotations"]:
            caption = " ".join(row["caption"].split())
            if caption:
                texts.setdefault(row["image_id"], []).append(caption)
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_coco(path, error, "annotations with image_id and caption") from None
    return texts


def _not_coco(path: Path, error: Exception, expected: str) -> DataFormatError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return DataFormatError(f"{path} is not a COCO file of that kind: {reason}; {expected} are expected")
