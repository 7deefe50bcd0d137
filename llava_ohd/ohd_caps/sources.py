"""Other sources than COCO files: rows of captions with objects, and lists of images to leave out."""

from pathlib import Path
from typing import Any, TypeGuard

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.ohd_caps.coco import CocoImage, Instance

__all__ = ["image_key", "read_captioned_objects", "read_exclusions", "read_vocabulary"]


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
                f"the keys {sorted(record)}"
            )
        known = images.get(image, CocoImage(image, ()))
        images[image] = CocoImage(
            image,
            known.instances + tuple(Instance(name, (0, 0, 0, 0)) for name in objects),
            known.captions + tuple(text for text in (" ".join(text.split()) for text in texts) if text),
        )
    return list(images.values())


def image_key(file_name: str) -> str:
    """Returns what identifies an image in every naming: COCO's twelve digits, else the name without folder and suffix.

    `COCO_val2014_000000310196.jpg` and `train2017/000000310196.jpg` are the same picture.
    """
    stem = Path(file_name).stem
    digits = stem.rpartition("_")[2]
    return digits if len(digits) == 12 and digits.isdigit() else stem


def read_exclusions(path: Path) -> set[str]:
    """Reads keys of images to leave out: names one per line, rows of POPE or OHD-Caps, or the images of a COCO file.

    Raises:
        DataFormatError: missing or empty file, or rows without an image.
    """
    if path.suffix not in (".json", ".jsonl"):
        return {image_key(name) for name in _read_lines(path)}
    rows = _coco_images(path) or read_jsonl(path)
    found = [row.get("image", row.get("file_path", row.get("file_name"))) for row in rows]
    if not _are_texts(found):
        raise DataFormatError(f"{path} has rows without image or file_path; give a .txt file, one image name per line")
    return {image_key(name) for name in found}


def _coco_images(path: Path) -> list[dict[str, Any]]:
    """Returns `images` of a COCO file; nothing where it is another file."""
    try:
        record = read_json(path)
    except DataFormatError:  # JSON Lines, or nothing at all, which the caller will say
        return []
    return record.get("images", []) if isinstance(record, dict) else []


def read_vocabulary(path: Path) -> list[str]:
    """Reads object names, one per line; of a line "dog, puppy" (CHAIR's synonyms) the first.

    Raises:
        DataFormatError: missing or empty file.
    """
    return [line.split(",")[0].strip().lower() for line in _read_lines(path)]


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist; give the path of an existing text file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataFormatError(f"{path} is empty; one name per line is expected")
    return lines


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
