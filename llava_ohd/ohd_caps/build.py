"""Builds OHD-Caps rows: for each image one caption and 27 captions that are wrong about it.

For each of POPE's three strategies three absent objects a, b, c are chosen and inserted as a, b, c, ab, bc, ac, abc;
six more negatives remove or alter the first three present objects: x, y, z, xy, yz, xz. This is the authors' order.

Choosing objects is one stream of random numbers over all images; rewriting is seeded per image, so that the rows do not
depend on the number of workers, and a limit gives the first rows of the unlimited file.

Source: arXiv 2410.03176 section 3; Yufang-Liu/clip_hallucination@8a748e6 utils/generate_negative_samples.py, the order.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects, Sampler
from llava_ohd.ohd_caps.coco import CocoImage
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.ohd_caps.records import INSERTIONS, Negative, OhdRow
from llava_ohd.ohd_caps.rewriting import Rewriter
from llava_ohd.ohd_caps.sources import image_key
from llava_ohd.ohd_caps.style import study
from llava_ohd.progress import track

__all__ = ["BuildConfig", "build_rows"]

_SUBSETS = ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2))
_TRIES = 50
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
        workers: Processes for rewriting.
    """

    seed: int = 0
    limit: int | None = None
    caption: Literal["most", "first", "random"] = "most"
    altered: float = 0.5
    workers: int = 1


@dataclass(frozen=True)
class _Plan:
    """What will be written for one image: its caption, its objects, and the absent objects of each strategy."""

    image: str
    caption: str
    objects: tuple[str, ...]
    absent: dict[str, tuple[str, ...]]
    seed: str


def build_rows(
    images: Sequence[CocoImage],
    config: BuildConfig,
    *,
    vocabulary: Iterable[str] = (),
    excluded: Collection[str] = (),
) -> list[OhdRow]:
    """Builds one row per image that has a caption and an object.

    Args:
        images: The images; frequencies and co-occurrence are counted over all that are not excluded.
        config: Seed, limit and choices.
        vocabulary: Further object names to look for in captions, beside those of the annotations.
        excluded: `image_key` of images to leave out, such as those of a test set.

    Returns:
        The rows, in the order of the images.

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
    style = study(random.Random(config.seed).sample(captions, min(len(captions), _STUDIED)), lexicon)
    write = _Writer(Rewriter(lexicon, style), lexicon.names, config.altered)
    if config.workers <= 1:
        return [write(plan) for plan in track(plans, "Writing negative captions")]
    with get_context("spawn").Pool(config.workers) as pool:
        rows = pool.imap(write, plans, chunksize=64)
        return list(track(rows, "Writing negative captions", total=len(plans)))


def _objects(image: CocoImage, lexicon: Lexicon) -> tuple[str, ...]:
    """What the image shows: the annotated objects, then those that only its captions name."""
    named = sorted(set().union(*(lexicon.named(caption) for caption in image.captions)))
    return tuple(dict.fromkeys([*image.objects, *named]))


def _plan(
    images: Sequence[CocoImage], shown: Sequence[ImageObjects], lexicon: Lexicon, config: BuildConfig
) -> list[_Plan]:
    choose = _caption_chooser(lexicon, config)
    sampler = Sampler(shown, config.seed)
    plans: list[_Plan] = []
    for image, item in zip(images, shown, strict=True):
        if len(plans) == config.limit:
            break
        if item.objects:
            absent = {strategy: _absent(item, strategy, sampler) for strategy in INSERTIONS}
            seed = f"{config.seed} {image.file_name}"
            plans.append(_Plan(image.file_name, choose(image), item.objects, absent, seed))
    return plans


def _absent(item: ImageObjects, strategy: str, sampler: Sampler) -> tuple[str, ...]:
    """Three absent objects, each chosen beside another present one as far as there are so many."""
    chosen: list[str] = []
    for index in range(3):
        chosen.append(sampler.absent(item.objects, item.objects[index % len(item.objects)], strategy, chosen))
    return tuple(chosen)


def _caption_chooser(lexicon: Lexicon, config: BuildConfig) -> Callable[[CocoImage], str]:
    def most(image: CocoImage) -> str:
        return max(image.captions, key=lambda caption: len(lexicon.named(caption)))

    def drawn(image: CocoImage) -> str:
        return random.Random(f"{config.seed} caption {image.file_name}").choice(image.captions)

    return {"most": most, "first": lambda image: image.captions[0], "random": drawn}[config.caption]


class _Writer:
    """Turns a plan into a row; an object and not a closure, so that it can be sent to another process."""

    def __init__(self, rewriter: Rewriter, names: tuple[str, ...], altered: float) -> None:
        self.rewriter, self.names, self.altered = rewriter, names, altered

    def __call__(self, plan: _Plan) -> OhdRow:
        rng = random.Random(plan.seed)
        seen = {plan.caption.casefold()}
        negatives = []
        for strategy in INSERTIONS:
            for subset in _SUBSETS:
                objects = tuple(plan.absent[strategy][index] for index in subset)
                negatives.append(self._distinct(partial(self._insert, plan, objects, strategy, rng), seen))
        for subset in _SUBSETS[:-1]:
            objects = tuple(dict.fromkeys(plan.objects[index % len(plan.objects)] for index in subset))
            negatives.append(self._distinct(partial(self._remove_or_alter, plan, objects, rng), seen))
        return OhdRow(plan.image, plan.caption, tuple(negatives), plan.objects)

    def _distinct(self, write: Callable[[], Negative], seen: set[str]) -> Negative:
        """Writes until the result is new; after some tries a repetition is accepted (short captions have few edits)."""
        for _ in range(_TRIES):
            negative = write()
            if negative.caption.casefold() not in seen:
                break
        seen.add(negative.caption.casefold())
        return negative

    def _insert(self, plan: _Plan, objects: tuple[str, ...], strategy: str, rng: random.Random) -> Negative:
        return Negative(self.rewriter.insert(plan.caption, objects, rng), strategy, objects)

    def _remove_or_alter(self, plan: _Plan, objects: tuple[str, ...], rng: random.Random) -> Negative:
        absent = [name for name in self.names if name not in plan.objects]
        removed = None if rng.random() < self.altered else self.rewriter.remove(plan.caption, objects)
        if removed is not None:
            return Negative(removed, "removal", objects)
        text = self.rewriter.alter(plan.caption, objects, absent, rng)
        if text is None:  # nothing in the caption can be removed or altered: name something else that is not there
            text = self.rewriter.insert(plan.caption, [rng.choice(absent)], rng)
        return Negative(text, "alteration", objects)
