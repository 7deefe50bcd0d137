"""What the probes found, as rows of one number each, from which metrics, tables and pictures are made."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from llava_ohd.probes.classification import Classification
from llava_ohd.probes.diagnostics import Diagnostics, Matching
from llava_ohd.probes.estimates import Estimate, pooled
from llava_ohd.probes.matching import Cell
from llava_ohd.probes.retrieval import Retrieval
from llava_ohd.records import Metric

__all__ = ["SECTIONS", "Row", "as_metrics", "as_record", "rows"]

SECTIONS = {
    "tor": "captions: nearest of the objects named, by place (TOR)",
    "tor_conditional": "TOR as published: nearest of all names, where the n nearest are the n named",
    "tor_complete": "TOR: captions whose n nearest names are the n named",
    "tor_written": "TOR on captions that people wrote",
    "ior": "pictures: nearest of the objects shown, by size (IOR)",
    "ior_conditional": "IOR as published: nearest of all classes, where the n nearest are the n shown",
    "ior_complete": "IOR: pictures whose n nearest classes are the n shown",
    "ior_small": "IOR with small single pictures",
    "ior_slot": "IOR: the large one is nearest, by its slot",
    "i2t": "names: nearest of the objects shown, by size (I2T)",
    "toc": "read off a caption by a linear layer, by place (TOC)",
    "toc_long": "TOC, trained longer",
    "ioc": "read off a picture by a linear layer, by size (IOC)",
    "ioc_long": "IOC, trained longer",
    "attention": "class token's attention: share that falls on an object",
    "density": "class token's attention per area; looking at nothing in particular is 1",
    "matching": "image-text matching, published scenarios",
    "crossed": "image-text matching, crossed: size of the replaced object, order of the captions; place of the other",
    "mitigation": "image-text matching by way of comparing, all numbers of objects",
    "largest": "where captions name the largest object",
}
"""Sections in the order of the tables, and their titles."""

_HIGHER = {"tor_complete", "ior_complete", "toc", "toc_long", "ioc", "ioc_long", "matching", "crossed", "mitigation"}


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        section: One of `SECTIONS`.
        group: What it stands together with, such as "3 objects".
        label: What distinguishes it there.
        estimate: The number.
        reference: What it would be by chance, or without any bias; None where that is not one number.
    """

    section: str
    group: str
    label: str
    estimate: Estimate
    reference: float | None = None


def rows(found: Diagnostics) -> list[Row]:
    """Returns all rows, in the order of the sections."""
    every = [*_text(found), *_pictures(found), *_probes(found), *_attention(found), *_matching(found), *_largest(found)]
    order = list(SECTIONS)
    return sorted(every, key=lambda row: order.index(row.section))


def _nearest(section: str, found: Mapping[int, Retrieval], ways: Iterable[str]) -> Iterator[Row]:
    """Rows of the families `highest` (under the section's own name), `conditional` and `complete`."""
    for count, one in found.items():
        group = _objects(count)
        for way in ways:
            name = section if way == "highest" else f"{section}_{way}"
            if way == "complete":
                yield Row(name, "complete", group, one.complete)
                continue
            for label, estimate in zip(one.positions, getattr(one, way), strict=True):
                yield Row(name, group, label, estimate, 1 / count)


def _objects(count: int) -> str:
    return f"{count} objects"


def _text(found: Diagnostics) -> Iterator[Row]:
    yield from _nearest("tor", found.text, ("highest", "conditional", "complete"))
    yield from _nearest("tor_written", found.written, ("highest",))


def _pictures(found: Diagnostics) -> Iterator[Row]:
    yield from _nearest("ior", found.pictures, ("highest", "conditional", "complete"))
    yield from _nearest("ior_small", found.pictures_small, ("highest",))
    yield from _nearest("i2t", found.names, ("highest",))
    for name, one in found.slots.items():
        large = found.large_slots[name]
        estimate = one.highest[one.positions.index(large)]
        yield Row("ior_slot", _objects(len(one.positions)), large, estimate, 1 / len(one.positions))


def _probes(found: Diagnostics) -> Iterator[Row]:
    for section, texts in (("toc", found.text_probe), ("toc_long", found.text_probe_long)):
        for count, one in texts.items():
            for label, estimate in zip(one.positions, one.accuracy, strict=True):
                yield Row(section, _objects(count), label, estimate, one.chance)
    yield from _by_size("ioc", found.picture_probe, found.large_slots)
    yield from _by_size("ioc_long", found.picture_probe_long, found.large_slots)


def _by_size(section: str, layouts: Mapping[str, Classification], large: Mapping[str, str]) -> Iterator[Row]:
    """Pools slots into large and small ones: those of a layout are of the same pictures, layouts of different ones."""
    sizes: dict[tuple[int, str], dict[str, list[Estimate]]] = {}
    for name, one in layouts.items():
        for slot, estimate in zip(one.positions, one.accuracy, strict=True):
            size = "large" if slot == large[name] else "small"
            sizes.setdefault((len(one.positions), size), {}).setdefault(name, []).append(estimate)
    chance = next((one.chance for one in layouts.values()), None)
    for (count, size), parts in sorted(sizes.items()):
        layered = [pooled(slots, same_items=True) for slots in parts.values()]
        yield Row(section, _objects(count), size, pooled(layered, same_items=False), chance)


def _attention(found: Diagnostics) -> Iterator[Row]:
    for count, one in found.attention.items():
        for label, share, density in zip(one.positions, one.share, one.density, strict=True):
            yield Row("attention", _objects(count), label, share)
            yield Row("density", _objects(count), label, density, 1.0)


def _matching(found: Diagnostics) -> Iterator[Row]:
    whole = next((one for one in found.matching if one.scorer == "whole"), None)
    cells = whole.cells if whole else {}
    for cell, estimate in sorted(
        cells.items(), key=lambda item: (item[0].count, item[0].replaced, item[0].order != "same")
    ):
        if cell.design == "crossed":
            group = f"{_objects(cell.count)}: {cell.replaced}, {cell.order}"
            yield Row("crossed", group, cell.place, estimate, 0.5)
    for one in [whole] if whole else []:
        for group in ("scenario 1", "scenario 2"):
            for count in sorted({cell.count for cell in one.cells}):
                yield Row("matching", group, _objects(count), _pooled(one, group, count), 0.5)
    for one in found.matching:
        for group, label in (("scenario 1", "scenario 1"), ("scenario 2", "scenario 2"), *_CROSSED):
            yield Row("mitigation", label, one.scorer, _pooled(one, group), 0.5)


_CROSSED = tuple(
    (f"{size}/{order}", f"{size}, {order} order") for size in ("large", "small") for order in ("same", "reversed")
)


def _pooled(one: Matching, group: str, count: int | None = None) -> Estimate:
    """Pools cells: those of one number of objects are of the same pictures, those of different numbers are not."""

    def belongs(cell: Cell) -> bool:
        return cell.design == group or (cell.design == "crossed" and f"{cell.replaced}/{cell.order}" == group)

    counts = sorted({cell.count for cell in one.cells} if count is None else {count})
    parts = [[value for cell, value in one.cells.items() if belongs(cell) and cell.count == n] for n in counts]
    return pooled([pooled(part, same_items=True) for part in parts], same_items=False)


def _largest(found: Diagnostics) -> Iterator[Row]:
    if found.largest is None:
        return
    yield Row("largest", "named at all", "of captions", found.largest.named)
    yield Row("largest", "relative place", "0 first, 1 last", found.largest.relative, 0.5)
    for count, places in found.largest.ranks.items():
        for place, estimate in enumerate(places, 1):
            yield Row("largest", f"{count} objects named", f"place {place}", estimate, 1 / count)


def as_metrics(found: Sequence[Row]) -> list[Metric]:
    """Returns the rows that have a value as metrics `SECTION/GROUP/LABEL`; intervals stand in the details."""
    return [
        Metric(
            f"{row.section}/{row.group}/{row.label}",
            row.estimate.value,
            row.estimate.n,
            _better(row.section),
        )
        for row in found
        if row.estimate.value is not None
    ]


def _better(section: str) -> Literal["higher", "none"]:
    return "higher" if section in _HIGHER else "none"


def as_record(found: Any) -> Any:
    """Returns dataclasses and mappings as what JSON knows; a mapping whose keys are no text becomes a list of rows."""
    if is_dataclass(found):
        return {field.name: as_record(getattr(found, field.name)) for field in fields(found)}
    if isinstance(found, Mapping):
        if all(isinstance(key, str | int) for key in found):
            return {str(key): as_record(value) for key, value in found.items()}
        return [_key(key) | as_record(value) for key, value in found.items()]
    return [as_record(item) for item in found] if isinstance(found, list | tuple) else found


def _key(key: Any) -> dict[str, Any]:
    return {"object": key[0], "size": key[1]} if isinstance(key, tuple) else as_record(key)
