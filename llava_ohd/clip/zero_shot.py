"""Zero-shot object recognition: what fine-tuning on captions must not unlearn.

A kind is the mean of the embeddings of several prompts with its name; the prediction is the kind nearest to the image.

Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4 "prompt engineering and ensembling".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.accuracy import interval
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects, read_coco_objects
from llava_ohd.files import read_json
from llava_ohd.records import Metric

__all__ = ["TEMPLATES", "Recognition", "embed_kinds", "metrics", "predictions", "read_kinds", "recognise"]

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "{} in the picture")
"""Prompts; the name comes with its article."""


@dataclass(frozen=True)
class Recognition:
    """What an encoder recognised.

    Attributes:
        images: The images and the kinds that they show, at least one each.
        predicted: The nearest kind to each image.
    """

    images: Sequence[ImageObjects]
    predicted: Sequence[str]


def read_kinds(instances: Path) -> tuple[list[ImageObjects], list[str]]:
    """Reads a COCO `instances_*.json`.

    Returns:
        The images that show at least one kind, and the names of all categories.

    Raises:
        DataFormatError: not a COCO instances file, or no image has an object.
    """
    images = [image for image in read_coco_objects(instances) if image.objects]
    if not images:
        raise DataFormatError(f"{instances} has no image with an object; give a file whose annotations name some")
    return images, [row["name"] for row in read_json(instances)["categories"]]


def embed_kinds(model: Any, tokenizer: Any, kinds: Sequence[str]) -> Tensor:
    """Returns one unit vector per kind: (len(kinds), D), the normalised mean over `TEMPLATES`."""
    named = [f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}" for kind in kinds]
    prompts = [template.format(name) for name in named for template in TEMPLATES]
    texts, which = embed_captions(model, tokenizer, prompts)
    return F.normalize(texts[which].view(len(kinds), len(TEMPLATES), -1).mean(1), dim=-1)


def recognise(
    model: Any, tokenizer: Any, images: Images, objects: Sequence[ImageObjects], kinds: Sequence[str]
) -> Recognition:
    """Finds the nearest kind to each image.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        images: The images, in the order of `objects`.
        objects: What each shows.
        kinds: All names to choose from.
    """
    nearest = (embed_images(model, images) @ embed_kinds(model, tokenizer, kinds).T).argmax(1)
    return Recognition(objects, [kinds[index] for index in nearest.tolist()])


def metrics(found: Recognition) -> list[Metric]:
    """Returns `accuracy` over images of one kind; over the others `accuracy_present`: is the prediction among them?"""
    single, several = _hits(found, True), _hits(found, False)
    rows = []
    if single:
        rows.append(Metric("accuracy", sum(single) / len(single), len(single), "higher"))
        rows += interval("accuracy", single)
    if several:
        rows.append(Metric("accuracy_present", sum(several) / len(several), len(several), "higher"))
    return rows


def _hits(found: Recognition, single: bool) -> list[bool]:
    pairs = zip(found.images, found.predicted, strict=True)
    return [kind in image.objects for image, kind in pairs if (len(image.objects) == 1) == single]


def predictions(found: Recognition, single: bool = True) -> list[dict[str, Any]]:
    """Returns one JSON-able row per image of one kind, or per image of several."""
    return [
        {"image": image.image, "correct": kind in image.objects, "predicted": kind, "objects": list(image.objects)}
        for image, kind in zip(found.images, found.predicted, strict=True)
        if (len(image.objects) == 1) == single
    ]
