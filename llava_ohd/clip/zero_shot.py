"""Zero-shot recognition: what fine-tuning on captions must not unlearn.

A class is the mean of the embeddings of several prompts with its name; the prediction is the class nearest to the
image. Where two classes are equally near there is no prediction, and nothing is right.

Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4 "prompt engineering and ensembling".
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.accuracy import interval
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.clip.image_sets import LabelledImages, read_image_set
from llava_ohd.clip.prompts import prompt_set
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects, read_coco_objects
from llava_ohd.files import read_json
from llava_ohd.records import Metric

__all__ = [
    "TEMPLATES",
    "Recognition",
    "ZeroShotSet",
    "embed_classes",
    "metrics",
    "predictions",
    "read_set",
    "recognise",
]

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "{} in the picture")
"""Prompts for COCO instances, our own; the name comes with its article."""


@dataclass(frozen=True)
class ZeroShotSet:
    """Images and the classes to choose from.

    Attributes:
        name: Of the set.
        images: The images, ready for the encoder.
        objects: What each shows: one class, or several where COCO instances are read.
        classes: What the data call each class, each once.
        prompts: Of each class, all alike many.
    """

    name: str
    images: Images
    objects: Sequence[ImageObjects]
    classes: Sequence[str]
    prompts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Recognition:
    """What an encoder recognised.

    Attributes:
        images: The images and the classes that they show, at least one each.
        predicted: The nearest class to each image; None where several are equally near.
    """

    images: Sequence[ImageObjects]
    predicted: Sequence[str | None]


class _Labelled(Images):
    """The images of a `LabelledImages`, whatever they lie in."""

    def __init__(self, source: LabelledImages, processor: Any) -> None:
        self._source = source
        super().__init__(Path(), source.ids, processor)

    def _missing(self) -> list[str]:
        return []

    def _image(self, index: int) -> Any:
        return self._source.open(index)


def read_set(name: str, data: Path, images: Path, processor: Any) -> ZeroShotSet:
    """Reads a data set with its prompts.

    Args:
        name: `world` for COCO instances, or one of `prompts.SETS`.
        data: The instances json, or the folder of the data set.
        images: Folder of the images of COCO instances.
        processor: Image processor of the encoder.

    Raises:
        DataFormatError: the data cannot be read, or name other classes than the set has.
        ImageError: an image is missing or damaged.
    """
    if name == "world":
        objects, kinds = _read_kinds(data)
        named = [f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}" for kind in kinds]
        prompts = [[template.format(kind) for template in TEMPLATES] for kind in named]
        return ZeroShotSet(name, Images(images, [image.image for image in objects], processor), objects, kinds, prompts)
    chosen = prompt_set(name)
    found = read_image_set(data, len(chosen.names))
    asked = chosen.prompts()
    objects = [ImageObjects(id, (found.names[label],)) for id, label in zip(found.ids, found.labels, strict=True)]
    prompts = [asked[place] for place in chosen.places(found.names)]
    return ZeroShotSet(name, _Labelled(found, processor), objects, found.names, prompts)


def _read_kinds(instances: Path) -> tuple[list[ImageObjects], list[str]]:
    """Reads the images that show at least one kind, and the names of all categories."""
    images = [image for image in read_coco_objects(instances) if image.objects]
    if not images:
        raise DataFormatError(f"{instances} has no image with an object; give a file whose annotations name some")
    return images, [row["name"] for row in read_json(instances)["categories"]]


def embed_classes(model: Any, tokenizer: Any, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Returns one unit vector per class: (C, D), the normalised mean over its prompts.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        prompts: Of each class, all alike many.
    """
    texts, which = embed_captions(model, tokenizer, [prompt for row in prompts for prompt in row])
    return F.normalize(texts[which].view(len(prompts), len(prompts[0]), -1).mean(1), dim=-1)


def recognise(model: Any, tokenizer: Any, data: ZeroShotSet) -> Recognition:
    """Finds the nearest class to each image; none where several share the first place.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        data: Images and classes.
    """
    # classes with the same prompts are one column: a product of equal rows need not be equal to the last bit
    different, column = embed_classes(model, tokenizer, data.prompts).unique(dim=0, return_inverse=True)
    cosines = (embed_images(model, data.images) @ different.T)[:, column]
    first = cosines == cosines.amax(1, keepdim=True)
    best, tied = first.int().argmax(1).tolist(), (first.sum(1) > 1).tolist()
    return Recognition(data.objects, [None if tie else data.classes[i] for i, tie in zip(best, tied, strict=True)])


def metrics(found: Recognition) -> list[Metric]:
    """Returns what was recognised, each with its 95 % interval or number of images.

    - `accuracy` over images of one class (Wilson), `mean_per_class`: every class weighs the same (normal interval,
      classes as strata);
    - `accuracy_present` over images of several: is the prediction among them?
    """
    single, several = _hits(found, True), _hits(found, False)
    rows = []
    if single:
        right = [hit for _, hit in single]
        rows.append(Metric("accuracy", sum(right) / len(right), len(right), "higher"))
        rows += interval("accuracy", right) + _mean_per_class(single)
    if several:
        rows.append(Metric("accuracy_present", sum(hit for _, hit in several) / len(several), len(several), "higher"))
    return rows


def _mean_per_class(hits: Sequence[tuple[str, bool]]) -> list[Metric]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, hit in hits:
        groups[name].append(hit)
    shares = torch.tensor([sum(group) / len(group) for group in groups.values()], dtype=torch.float64)
    sizes = torch.tensor([len(group) for group in groups.values()])
    mean, half = float(shares.mean()), 1.96 * float((shares * (1 - shares) / sizes).sum().sqrt()) / len(groups)
    ends = {"": (mean, "higher"), "_low95": (max(0.0, mean - half), "none"), "_high95": (min(1.0, mean + half), "none")}
    return [Metric(f"mean_per_class{end}", value, len(hits), better) for end, (value, better) in ends.items()]  # type: ignore[arg-type]


def _hits(found: Recognition, single: bool) -> list[tuple[str, bool]]:
    pairs = zip(found.images, found.predicted, strict=True)
    return [(image.objects[0], kind in image.objects) for image, kind in pairs if (len(image.objects) == 1) == single]


def predictions(found: Recognition, single: bool = True) -> list[dict[str, Any]]:
    """Returns one JSON-able row per image of one class, or per image of several."""
    return [
        {"image": image.image, "correct": kind in image.objects, "predicted": kind, "objects": list(image.objects)}
        for image, kind in zip(found.images, found.predicted, strict=True)
        if (len(image.objects) == 1) == single
    ]
