"""COCO images as pictures of several objects: each name once, the largest first, where 2 to 5 names are annotated.

The area of a name is that of its largest instance; images with a crowd, or where the two largest names have one area,
are left out. In COCO position and size are not under control: what stands beside what, and how large, is what
photographers chose.

Source: https://cocodataset.org/#format-data; arXiv 2502.19842 (COCO by size).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json
from llava_ohd.probes.pictures import Layout, ObjectSet, Picture, Placed

__all__ = ["COUNTS", "read_coco_set"]

COUNTS = (2, 3, 4, 5)
_ORDINALS = ("largest", "2nd", "3rd", "4th", "5th")


def read_coco_set(instances: Path, images: Path, single: Path | None = None) -> ObjectSet:
    """Reads an instances file.

    Args:
        instances: COCO `instances_*.json`.
        images: Folder of its images.
        single: Folder of one picture per category, `CATEGORY.png`, relative to `images` or absolute; None: there are
            none.

    Returns:
        A layout per number of objects; the slots are ranks by area.

    Raises:
        DataFormatError: not such a file, no image that fits, or `single` lacks a category or has a picture of none.
    """
    record = read_json(instances)
    try:
        names = {row["id"]: str(row["name"]) for row in record["categories"]}
        files = {row["id"]: row for row in record["images"]}
        found: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in files}
        for row in record["annotations"]:
            found[row["image_id"]].append(row)
        pictures = [_picture(files[key], rows, names) for key, rows in found.items()]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataFormatError(
            f"{instances}: {reason}; expected are images (file_name, width, height), annotations (image_id, "
            "category_id, area, bbox, iscrowd) and categories"
        ) from None
    layouts = list(_by_count(picture for picture in pictures if picture is not None))
    if not layouts:
        raise DataFormatError(f"{instances} has no image with {COUNTS[0]} to {COUNTS[-1]} names of different areas")
    classes = tuple(sorted(names.values()))
    return ObjectSet(images, classes, tuple(layouts), {} if single is None else _single(images / single, classes))


def _picture(image: dict[str, Any], rows: list[dict[str, Any]], names: dict[Any, str]) -> Picture | None:
    largest: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = names[row["category_id"]]
        if name not in largest or row["area"] > largest[name]["area"]:
            largest[name] = row
    ranked = sorted(largest.items(), key=lambda item: -item[1]["area"])
    crowded = any(row.get("iscrowd") for row in rows)
    if crowded or len(ranked) not in COUNTS or ranked[0][1]["area"] == ranked[1][1]["area"]:
        return None
    objects = []
    for rank, (name, row) in enumerate(ranked):
        left, top, width, height = (float(value) for value in row["bbox"])
        objects.append(Placed(name, _ORDINALS[rank], rank == 0, float(row["area"]), (left, top, width, height)))
    return Picture(str(image["file_name"]), tuple(objects), (int(image["width"]), int(image["height"])))


def _by_count(pictures: Iterable[Picture]) -> Iterable[Layout]:
    groups: dict[int, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(len(picture.objects), []).append(picture)
    for count in sorted(groups):
        slots = _ORDINALS[:count]
        yield Layout(f"{count} objects", slots, slots[0], tuple(groups[count]))


def _single(folder: Path, classes: tuple[str, ...]) -> dict[str, str]:
    files = {file.stem: str(file.resolve()) for file in sorted(folder.iterdir())} if folder.is_dir() else {}
    unknown, missing = sorted(files.keys() - set(classes)), sorted(set(classes) - files.keys())
    if unknown or missing:
        raise DataFormatError(
            f"{folder} should have one picture per category, CATEGORY.png: {len(missing)} are missing {missing[:3]}, "
            f"{len(unknown)} belong to none {unknown[:3]}"
        )
    return files
