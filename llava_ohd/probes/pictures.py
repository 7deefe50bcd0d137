"""Pictures of several objects, each in a slot, one of them large: folders as SimCO and ComCO have them.

A picture is named after its objects, joined by `_` in the order of the slots; folders say how many objects and which
slot is large (`ThreeObject-ULBig`, `CoCo-ThreeObject-Middle-Big`); a folder `OneObject` has one picture per class.
Where an `objects.json` is beside them (as the embedded world's set has), areas and boxes come from there.

Source: clip-oscope/clip-oscope@59f5a52 (folder and file names), arXiv 2502.19842.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json

__all__ = ["Layout", "ObjectSet", "Picture", "Placed", "read_set", "split_name"]

Box = tuple[float, float, float, float]

_COUNTS = {"One": 1, "Two": 2, "Three": 3, "Four": 4, "Five": 5}
_FOLDER = re.compile(r"(?:.*-)?(One|Two|Three|Four|Five)Object(?:-([A-Z]\w*?)(?:-?Big)?)?$", re.IGNORECASE)
_SLOTS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("L", "R"), ("UL", "Middle")),
    3: (("UL", "Middle", "BR"),),
    4: (("UL", "UR", "BL", "BR"), ("UL", "Middle", "BL", "BR")),
    5: (("UL", "UR", "Middle", "BL", "BR"),),
}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_EXPECTED = (
    "expected is a folder with OneObject/ (CLASS.png) and at least one of TwoObject-*Big, ThreeObject-*Big, "
    "FourObject-*Big, FiveObject-*Big (CLASS_CLASS_....png, classes in the order of the slots)"
)


@dataclass(frozen=True)
class Placed:
    """One object of a picture.

    Attributes:
        name: Its class.
        slot: Where it stands.
        large: Whether it is the large one.
        area: Pixels that it covers; None where the set does not say.
        box: Left, top, width, height in pixels; None where the set does not say.
    """

    name: str
    slot: str
    large: bool
    area: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Picture:
    """One picture: file name relative to the set's folder, objects in the order of the slots, width and height."""

    image: str
    objects: tuple[Placed, ...]
    size: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the slots."""
        return tuple(item.name for item in self.objects)

    @property
    def by_size(self) -> tuple[Placed, ...]:
        """The large object first, then the others in the order of the slots."""
        return tuple(sorted(self.objects, key=lambda item: not item.large))


@dataclass(frozen=True)
class Layout:
    """Pictures with the same slots, the same one of them large.

    Attributes:
        name: Of the folder, or of the group of COCO images.
        slots: Names of the slots.
        large: Which of them holds the large object.
        pictures: At least one.
    """

    name: str
    slots: tuple[str, ...]
    large: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ObjectSet:
    """A whole set.

    Attributes:
        folder: That image names are relative to.
        classes: Names of all classes.
        layouts: At least one, in ascending number of objects.
        single: One picture of each class, by class; empty where the set has none.
        single_small: The same with small objects; only the embedded world has them.
    """

    folder: Path
    classes: tuple[str, ...]
    layouts: tuple[Layout, ...]
    single: Mapping[str, str] = field(default_factory=dict)
    single_small: Mapping[str, str] = field(default_factory=dict)


def read_set(folder: Path) -> ObjectSet:
    """Reads a set in the published form.

    Args:
        folder: With a folder of single objects and at least one of several.

    Raises:
        DataFormatError: nothing of that form there, a file name that is no list of different known classes, a class
            with two single pictures, or an objects.json that contradicts the file names.
    """
    if not folder.is_dir():
        raise DataFormatError(f"{folder} is not a folder; {_EXPECTED}")
    recorded = _recorded(folder)
    found = {path: match for path in sorted(folder.iterdir()) if path.is_dir() and (match := _FOLDER.match(path.name))}
    single: dict[str, dict[str, str]] = {"": {}, "small": {}}
    for path, match in found.items():
        if _COUNTS[match[1].title()] == 1:
            _add_single(single.get((match[2] or "").lower(), {}), path)
    classes = tuple(sorted(single[""]))
    several = [(path, match) for path, match in found.items() if _COUNTS[match[1].title()] > 1]
    if not classes or not several:
        raise DataFormatError(f"{folder} has {[path.name for path in found]}; {_EXPECTED}")
    layouts = [_layout(path, match, classes, recorded) for path, match in several]
    layouts.sort(key=lambda layout: (len(layout.slots), layout.slots, layout.slots.index(layout.large)))
    return ObjectSet(folder, classes, tuple(layouts), single[""], single["small"])


def _add_single(known: dict[str, str], path: Path) -> None:
    for file in _images(path):
        if file.stem in known:
            raise DataFormatError(f"{file} is a second picture of {file.stem!r}, beside {known[file.stem]}; keep one")
        known[file.stem] = f"{path.name}/{file.name}"


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


def _recorded(folder: Path) -> dict[str, Any]:
    file = folder / "objects.json"
    record = read_json(file) if file.is_file() else {"layouts": {}, "size": None}
    if not isinstance(record, dict) or not {"layouts", "size"} <= record.keys():
        raise DataFormatError(f"{file} has no layouts and size; write the set again, or remove this file")
    return record


def _layout(path: Path, match: re.Match[str], classes: Sequence[str], recorded: Mapping[str, Any]) -> Layout:
    count, large = _COUNTS[match[1].title()], match[2] or ""
    slots = next((row for row in _SLOTS[count] if large in row), None)
    if slots is None:
        known = sorted({slot for row in _SLOTS[count] for slot in row})
        raise DataFormatError(f"{path} does not say which slot is large: -{'Big, -'.join(known)}Big is expected")
    rows = recorded["layouts"].get(path.name)
    files = _images(path)
    if not files or (rows is not None and rows.keys() != {file.name for file in files}):
        raise DataFormatError(
            f"{path} has {len(files)} pictures, {len(rows or ())} in objects.json; copy the set again"
        )
    pictures = []
    for file in files:
        names = split_name(file.stem, classes, count, str(file))
        extra: list[dict[str, Any]] = [{}] * count if rows is None else rows[file.name]
        if rows is not None and [item.get("name") for item in extra] != list(names):
            raise DataFormatError(f"objects.json names other objects for {file} than its name does; copy the set again")
        objects = tuple(
            Placed(name, slot, slot == large, item.get("area"), tuple(item["box"]) if "box" in item else None)
            for name, slot, item in zip(names, slots, extra, strict=True)
        )
        size = tuple(recorded["size"]) if rows is not None else None
        pictures.append(Picture(f"{path.name}/{file.name}", objects, size))  # type: ignore[arg-type]
    return Layout(path.name, slots, large, tuple(pictures))


def split_name(stem: str, classes: Sequence[str], count: int, where: str) -> tuple[str, ...]:
    """Reads classes off a file name, also where a class has a `_` in it.

    Args:
        stem: The name without suffix.
        classes: All classes.
        count: How many different ones are expected.
        where: The file, for the message.

    Raises:
        DataFormatError: not exactly one reading as `count` different classes.
    """
    parts, known = stem.split("_"), set(classes)
    readings = [row for row in _readings(parts, known) if len(row) == count and len(set(row)) == count]
    if len(readings) != 1:
        raise DataFormatError(
            f"{where} can be read in {len(readings)} ways as {count} different classes of OneObject/, joined by _; "
            "exactly one is expected"
        )
    return readings[0]


def _readings(parts: Sequence[str], known: set[str]) -> list[tuple[str, ...]]:
    if not parts:
        return [()]
    heads = ("_".join(parts[:end]) for end in range(1, len(parts) + 1))
    return [
        (head, *rest) for end, head in enumerate(heads, 1) if head in known for rest in _readings(parts[end:], known)
    ]
