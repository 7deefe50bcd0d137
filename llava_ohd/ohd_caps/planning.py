"""Plans OHD-Caps rows: for each image its caption, the objects that it shows, and those to insert.

For each of POPE's three strategies three absent objects a, b, c are chosen and inserted as a, b, c, ab, bc, ac, abc;
six more negatives remove or alter the first three present objects: x, y, z, xy, yz, xz. This is the authors' order.

Choosing objects is one stream of random numbers over all images. What comes after a plan is seeded by the plan, so that
rows do not depend on the number of workers, and a limit gives the first rows of the unlimited file.

Source: arXiv 2410.03176 section 3; Yufang-Liu/clip_hallucination@8a748e6 utils/generate_negative_samples.py, the order.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from typing import Literal

from llava_ohd.command_line import require_between
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects, Sampler
from llava_ohd.files import sha256_json
from llava_ohd.ohd_caps.coco import CocoImage
from llava_ohd.ohd_caps.exclusions import image_key
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.ohd_caps.records import INSERTIONS
from llava_ohd.ohd_caps.style import Style, study

__all__ = ["INSERTED", "REMOVED", "BuildConfig", "Plan", "Planned", "make_plans"]

INSERTED = ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2))
REMOVED = INSERTED[:-1]
_STUDIED = 50_000  # captions that the style is taken from


@dataclass(frozen=True)
class BuildConfig:
    """How rows are built.

    Attributes:
        seed: Seed of every choice.
        limit: Number of rows; None for all images.
        caption: Which of an image's captions: the one that names most of its objects, the first, or a random one.
        altered: Share of the six removals that are alterations even where a removal is possible. In the authors' test
            files 86 to 95 % are alterations, because their annotations name much that no caption does.
        workers: Processes for rewriting by rule.
    """

    seed: int = 0
    limit: int | None = None
    caption: Literal["most", "first", "random"] = "most"
    altered: float = 0.5
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuses what no file can be built with.

        Raises:
            OptionError: a limit or number of processes below 1, or a share outside 0 .. 1.
        """
        require_between(1, inf, "limit", self.limit)
        require_between(0, 1, "altered", self.altered)
        require_between(1, inf, "workers", self.workers)


@dataclass(frozen=True)
class Plan:
    """What will be written for one image.

    Attributes:
        image: File name relative to the image folder.
        caption: The caption that fits.
        objects: What the image shows: the annotated objects, then those that only its captions name.
        absent: For each strategy three objects that it does not show.
        seed: Seed of everything that is written for this image.
    """

    image: str
    caption: str
    objects: tuple[str, ...]
    absent: dict[str, tuple[str, ...]]
    seed: str

    def inserted(self) -> list[tuple[str, tuple[str, ...]]]:
        """Returns strategy and objects of the 21 insertions, in the authors' order."""
        return [
            (strategy, tuple(self.absent[strategy][index] for index in subset))
            for strategy in INSERTIONS
            for subset in INSERTED
        ]

    def removed(self) -> list[tuple[str, ...]]:
        """Returns the objects of the six removals or alterations; fewer than three present objects repeat."""
        return [tuple(dict.fromkeys(self.objects[index % len(self.objects)] for index in subset)) for subset in REMOVED]


@dataclass(frozen=True)
class Planned:
    """The plans, and what the corpus taught about object names and style.

    Attributes:
        plans: One per row, in the order of the images.
        lexicon: All object names of the corpus.
        captions: The captions that the style is taken from.
        config: How the rows are built.
    """

    plans: tuple[Plan, ...]
    lexicon: Lexicon
    captions: tuple[str, ...]
    config: BuildConfig

    @cached_property
    def style(self) -> Style:
        """How the captions of the corpus are written."""
        return study(self.captions, self.lexicon)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that the rows follow from, but code and rewriter."""
        plans = [asdict(plan) for plan in self.plans]
        return sha256_json([plans, self.lexicon.names, self.captions, self.config.altered])


def make_plans(
    images: Sequence[CocoImage],
    config: BuildConfig,
    *,
    vocabulary: Iterable[str] = (),
    excluded: Collection[str] = (),
) -> Planned:
    """Plans one row per image that has a caption and an object.

    Args:
        images: The images; frequencies and co-occurrence are counted over all that are not excluded.
        config: Seed, limit and choices.
        vocabulary: Further object names to look for in captions, beside those of the annotations.
        excluded: `image_key` of images to leave out, such as those of a test set.

    Raises:
        DataFormatError: no image is left, or they show so few kinds of object that none is absent.
    """
    kept = [image for image in images if image.captions and image_key(image.file_name) not in excluded]
    names = dict.fromkeys(name for image in kept for name in image.objects)
    lexicon = Lexicon([*names, *vocabulary])
    shown = [ImageObjects(image.file_name, _objects(image, lexicon)) for image in kept]
    plans = _plan(kept, shown, lexicon, config)
    if not plans:
        raise DataFormatError(
            f"none of the {len(images)} images has a caption and an object and is not excluded; rows need all three"
        )
    captions = [caption for image in kept for caption in image.captions]
    studied = random.Random(config.seed).sample(captions, min(len(captions), _STUDIED))
    return Planned(tuple(plans), lexicon, tuple(studied), config)


def _objects(image: CocoImage, lexicon: Lexicon) -> tuple[str, ...]:
    named = sorted(set().union(*(lexicon.named(caption) for caption in image.captions)))
    return tuple(dict.fromkeys([*image.objects, *named]))


def _plan(
    images: Sequence[CocoImage], shown: Sequence[ImageObjects], lexicon: Lexicon, config: BuildConfig
) -> list[Plan]:
    choose = _caption_chooser(lexicon, config)
    sampler = Sampler(shown, config.seed)
    plans: list[Plan] = []
    for image, item in zip(images, shown, strict=True):
        if len(plans) == config.limit:
            break
        if item.objects:
            absent = {strategy: _absent(item, strategy, sampler) for strategy in INSERTIONS}
            seed = f"{config.seed} {image.file_name}"
            plans.append(Plan(image.file_name, choose(image), item.objects, absent, seed))
    return plans


def _absent(item: ImageObjects, strategy: str, sampler: Sampler) -> tuple[str, ...]:
    """Three absent objects, each chosen beside another present one as far as there are so many."""
    chosen: list[str] = []
    for index in range(3):
        try:
            chosen.append(sampler.absent(item.objects, item.objects[index % len(item.objects)], strategy, chosen))
        except DataFormatError:
            raise DataFormatError(
                f"{item.image}: a row needs 3 objects that its image does not show; no absent object is left after "
                f"{len(chosen)}, among those of all images and their captions. Give more images, with other objects"
            ) from None
    return tuple(chosen)


def _caption_chooser(lexicon: Lexicon, config: BuildConfig) -> Callable[[CocoImage], str]:
    def most(image: CocoImage) -> str:
        return max(image.captions, key=lambda caption: len(lexicon.named(caption)))

    def drawn(image: CocoImage) -> str:
        return random.Random(f"{config.seed} caption {image.file_name}").choice(image.captions)

    return {"most": most, "first": lambda image: image.captions[0], "random": drawn}[config.caption]
