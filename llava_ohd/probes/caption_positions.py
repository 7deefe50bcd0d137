"""Where in captions is the largest object of an image named? The property of training data that the bias is traced to.

Of each caption that names at least two annotated objects, the rank of the largest one in the order of first mention;
captions that leave it out are counted apart. If size did not matter, every rank would be equally likely and the
relative rank (0 first, 1 last) would be a half on average. The test flips, for each image at once, the sign of its mean
distance from a half (captions of an image are not independent); two-sided, by the normal distribution.

Source: arXiv 2502.19842 (LAION and COCO; the histogram's values are not published).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, sqrt
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.ohd_caps.coco import read_captions
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.probes.estimates import Estimate, mean_of, share_of
from llava_ohd.probes.retrieval import named_in_order

__all__ = ["LargestPosition", "largest_position", "read_areas", "read_texts"]

MOST = 5  # objects named; captions that name more are counted in `named` only


@dataclass(frozen=True)
class LargestPosition:
    """Where the largest object is named.

    Attributes:
        named: Share of captions of images with two objects or more that name the largest one.
        ranks: By number of annotated objects that a caption names: share of captions with the largest at each place.
        relative: Mean relative rank, 0 first, 1 last, over images; a half if size did not matter.
        p: That it is a half; None without a caption.
        captions: Number of captions that name the largest and another object.
    """

    named: Estimate
    ranks: Mapping[int, tuple[Estimate, ...]]
    relative: Estimate
    p: float | None
    captions: int


def read_areas(instances: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Returns of each image the area (pixels) of every object's largest instance, and the names of all categories.

    Images with a crowd are left out: its area is of several objects.

    Raises:
        DataFormatError: not a COCO instances file.
    """
    record = read_json(instances)
    try:
        names = {row["id"]: str(row["name"]).lower() for row in record["categories"]}
        files = {row["id"]: str(row["file_name"]) for row in record["images"]}
        areas: dict[str, dict[str, float]] = {name: {} for name in files.values()}
        crowds = {files[row["image_id"]] for row in record["annotations"] if row.get("iscrowd")}
        for row in record["annotations"]:
            known, name = areas[files[row["image_id"]]], names[row["category_id"]]
            known[name] = max(known.get(name, 0.0), float(row["area"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataFormatError(
            f"{instances} is no COCO instances file ({error!r}); images, annotations with area, categories are expected"
        ) from None
    return {image: row for image, row in areas.items() if image not in crowds}, list(names.values())


def read_texts(file: Path) -> dict[str, list[str]]:
    """Reads captions by image: a COCO captions file, or JSON Lines with `image` and `caption` (or `text`).

    Raises:
        DataFormatError: neither.
    """
    if file.suffix == ".json":
        record = read_json(file)
        found = read_captions(file, record)
        try:
            names = {row["id"]: str(row["file_name"]) for row in record["images"]}
            return {names[key]: texts for key, texts in found.items()}
        except (KeyError, TypeError) as error:
            raise DataFormatError(
                f"{file} lists no image of id {error}; images with id and file_name are expected"
            ) from None
    texts: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(read_jsonl(file), 1):
        image, text = row.get("image"), row.get("caption", row.get("text"))
        if not isinstance(image, str) or not isinstance(text, str):
            raise DataFormatError(
                f'{file} row {number} has {sorted(row)}; {{"image": text, "caption": text}} is expected'
            )
        texts[image].append(text)
    return dict(texts)


def largest_position(
    texts: Mapping[str, Sequence[str]], areas: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> LargestPosition:
    """Counts where captions name the largest object.

    Args:
        texts: Captions by image.
        areas: Area of every object by image.
        names: Names that captions are searched for, as whole words with their plurals.

    Raises:
        DataFormatError: no image of the captions has two objects of different area.
    """
    lexicon = Lexicon(names)
    named: list[bool] = []
    of: list[str] = []
    ranks: dict[int, list[tuple[int, str]]] = defaultdict(list)
    relative: dict[str, list[float]] = defaultdict(list)
    for image, largest in _largest(texts, areas).items():
        for text in texts[image]:
            found = [name for name in named_in_order(text, lexicon) if name in areas[image]]
            named.append(largest in found)
            of.append(image)
            if largest in found and len(found) > 1:
                ranks[len(found)].append((found.index(largest), image))
                relative[image].append(found.index(largest) / (len(found) - 1))
    if not of:
        raise DataFormatError(
            "no image of these captions has objects of different area; give the instances of the same images"
        )
    means = [sum(values) / len(values) for values in relative.values()]
    return LargestPosition(
        share_of(named, of),
        {count: _histogram(ranks[count], count) for count in sorted(ranks) if count <= MOST},
        mean_of(means),
        _p(means),
        sum(map(len, relative.values())),
    )


def _largest(texts: Mapping[str, Sequence[str]], areas: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The one largest object of each image that has two or more."""
    found = {}
    for image in texts:
        ranked = sorted(areas.get(image, {}).items(), key=lambda item: -item[1])
        if len(ranked) > 1 and ranked[0][1] > ranked[1][1]:
            found[image] = ranked[0][0]
    return found


def _histogram(rows: Sequence[tuple[int, str]], count: int) -> tuple[Estimate, ...]:
    images = [image for _, image in rows]
    return tuple(share_of([rank == place for rank, _ in rows], images) for place in range(count))


def _p(means: Sequence[float]) -> float | None:
    gaps = [value - 0.5 for value in means]
    spread = sqrt(sum(gap**2 for gap in gaps))
    if not gaps:
        return None
    return erfc(abs(sum(gaps)) / spread / sqrt(2)) if spread else 1.0
