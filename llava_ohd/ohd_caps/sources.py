"""Reads captioned images in any of the known forms; which one a file has is seen from its content.

COCO's pair of files has a reader of its own (`coco.read_coco`), because it is two files.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.ohd_caps import flickr30k
from llava_ohd.ohd_caps.coco import CocoImage, Instance, read_coco
from llava_ohd.ohd_caps.exclusions import image_key, read_exclusions, read_lines
from llava_ohd.ohd_caps.nocaps import read_captions_file

__all__ = [
    "image_key",
    "read_captioned_objects",
    "read_exclusions",
    "read_images",
    "read_source",
    "read_vocabulary",
    "with_detections",
]

_FORMS = (
    'JSON Lines {"image", "caption" or "captions", "objects"}, nocaps_val_4500_captions.json or another captions file '
    "in COCO's format, dataset_flickr30k.json, results_20130124.token, or a table with the columns image,caption"
)


def read_images(
    instances: Path | None, captions: Path | None, source: Path | None, part: str | None, objects: Path | None
) -> list[CocoImage]:
    """Reads COCO's pair of files, or another source; with the objects of a detector, if there is a file of them.

    Raises:
        DataFormatError: as the readers.
        ValueError: neither `source` nor `instances`.
    """
    if source is not None:
        images = read_source(source, part)
    elif instances is not None:
        images = read_coco(instances, captions)
    else:
        raise ValueError("either a source or a COCO instances file is needed")
    return images if objects is None else with_detections(images, objects)


def read_source(path: Path, part: str | None = None) -> list[CocoImage]:
    """Reads captioned images; the form is recognised by the content.

    Args:
        path: One of the forms that the error message lists.
        part: A split of Karpathy's file (default: all), or a domain of NoCaps (default: out-domain, as in the paper).

    Returns:
        The images in the order of the file; without objects where the form has none.

    Raises:
        DataFormatError: missing or empty file, none of the forms, or no such part.
    """
    first_line = _first_line(path)
    if first_line[:1] in ("{", "["):
        return _read_json_form(path, part)
    if part is not None:
        raise DataFormatError(f"{path} has no parts, but {part!r} is asked for; leave --part out")
    if flickr30k.is_token_file(first_line):
        return flickr30k.read_token_file(path)
    if flickr30k.is_table(first_line):
        return flickr30k.read_table(path)
    raise DataFormatError(f"{path} begins with {first_line[:60]!r}, which is none of the known forms: {_FORMS}")


def _first_line(path: Path) -> str:
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist or is a folder; expected is {_FORMS}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line.strip("\r\n ") for line in file if line.strip()), "")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} is not UTF-8 text ({error.reason}); expected is {_FORMS}") from None
    if not line:
        raise DataFormatError(f"{path} is empty; expected is {_FORMS}")
    return line


def _read_json_form(path: Path, part: str | None) -> list[CocoImage]:
    record = _whole(path)
    if record is not None and "images" in record and "annotations" in record:
        return read_captions_file(path, record, part)
    if record is not None and "images" in record:
        return flickr30k.read_karpathy(path, record, part)
    if part is not None:
        raise DataFormatError(f"{path} has no parts, but {part!r} is asked for; leave --part out")
    return read_captioned_objects(path)


def _whole(path: Path) -> dict[str, Any] | None:
    """Returns the object that is the whole file; None for JSON Lines and arrays."""
    try:
        record = read_json(path)
    except DataFormatError:  # JSON Lines, or broken, which its reader will say
        return None
    return record if isinstance(record, dict) else None


def read_captioned_objects(path: Path) -> list[CocoImage]:
    """Reads JSON Lines `{"image", "caption" or "captions", "objects"}`; rows of one image are joined.

    Raises:
        DataFormatError: missing or empty file, or a row of another form; the message gives the row number.
    """
    images: dict[str, CocoImage] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        image, objects = record.get("image"), record.get("objects")
        texts = record.get("captions", [record.get("caption")])
        if not isinstance(image, str) or not _are_texts(texts) or not _are_texts(objects):
            raise DataFormatError(
                f'{path} row {number}: {{"image": text, "caption": text, "objects": [text, ...]}} is expected, found '
                f"{_shape(record)}; the known forms are {_FORMS}"
            )
        known = images.get(image, CocoImage(image, ()))
        images[image] = CocoImage(
            image,
            known.instances + _instances(objects),
            known.captions + tuple(text for text in (" ".join(text.split()) for text in texts) if text),
        )
    return list(images.values())


def _shape(record: dict[str, Any]) -> str:
    """Says what is under the keys of a row that has another form."""
    kinds = {
        str: "text",
        list: "list",
        dict: "object",
        type(None): "null",
        bool: "bool",
        int: "number",
        float: "number",
    }

    def shape(value: Any) -> str:
        if isinstance(value, list) and value:
            return f"[{', '.join(dict.fromkeys(kinds[type(item)] for item in value))}, ...]"
        return kinds[type(value)]

    return "{" + ", ".join(f'"{key}": {shape(value)}' for key, value in sorted(record.items())) + "}"


def with_detections(images: Sequence[CocoImage], path: Path) -> list[CocoImage]:
    """Gives images the objects that a detector found, in place of their own.

    Args:
        images: The images.
        path: JSON Lines `{"image", "objects": [name, ...]}`, as POPE takes them; joined by `image_key`.

    Returns:
        The images in their order; those that the file does not list have no objects.

    Raises:
        DataFormatError: not such a file, or it has none of the images.
    """
    found: dict[str, tuple[Instance, ...]] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        image, objects = record.get("image"), record.get("objects")
        if not isinstance(image, str) or not _are_texts(objects):
            raise DataFormatError(
                f'{path} row {number}: {{"image": text, "objects": [text, ...]}} is expected, found {_shape(record)}'
            )
        found[image_key(image)] = found.get(image_key(image), ()) + _instances(objects)
    if found.keys().isdisjoint(image_key(image.file_name) for image in images):
        raise DataFormatError(f"{path} has objects of none of the {len(images)} images; give a file of the same images")
    return [replace(image, instances=found.get(image_key(image.file_name), ())) for image in images]


def _instances(names: Sequence[str]) -> tuple[Instance, ...]:
    return tuple(Instance(name, (0, 0, 0, 0)) for name in names)


def read_vocabulary(path: Path) -> list[str]:
    """Reads object names, one per line; of a line "dog, puppy" (CHAIR's synonyms) the first.

    Raises:
        DataFormatError: missing or empty file.
    """
    return [line.split(",")[0].strip().lower() for line in read_lines(path)]


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
