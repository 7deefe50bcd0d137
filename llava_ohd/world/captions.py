"""What people would write below the pictures of the embedded world.

The captions carry the flaw of web captions that the ComCO paper (arXiv 2502.19842) holds responsible for CLIP's bias:
the largest object comes first and mostly stands alone, colours are often left out. A CLIP trained on them recognises
objects well, yet is never punished for an object too many, a small one missing, or a wrong colour.
"""

import random

from llava_ohd.ohd_caps.grammar import enumerate_phrases
from llava_ohd.world.scenes import Scene, SceneObject

__all__ = ["CAPTIONS_PER_IMAGE", "article", "captions", "describe"]

CAPTIONS_PER_IMAGE = 5
FULL = 0.2  # share of captions that name every object; the others name the largest only
COLOURED = 0.6  # share of captions that give colours
SIZED = 0.15  # share of captions that give sizes

_TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "{} .",
    "a photo of {}",
    "a picture of {}",
    "there is {}",
    "{} in the picture",
    "{} on the floor",
)


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _phrase(item: SceneObject, coloured: bool, sized: bool) -> str:
    words = [("large" if item.is_large else "small") if sized else "", item.colour if coloured else "", item.kind]
    return article(" ".join(word for word in words if word))


def _caption(scene: Scene, full: bool, rng: random.Random) -> str:
    coloured, sized = rng.random() < COLOURED, rng.random() < SIZED
    named = scene.objects if full else scene.objects[:1]
    return rng.choice(_TEMPLATES).format(enumerate_phrases([_phrase(item, coloured, sized) for item in named]))


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Writes five captions, largest object first; at least one names every object.

    Args:
        scene: What the picture shows; its objects stand in descending size.
        rng: Source of randomness.
    """
    full = [rng.random() < FULL for _ in range(CAPTIONS_PER_IMAGE)]
    if not any(full):
        full[rng.randrange(CAPTIONS_PER_IMAGE)] = True
    return [_caption(scene, every, rng) for every in full]


def describe(scene: Scene) -> str:
    """Describes every object with its colour, from left to right."""
    return enumerate_phrases([_phrase(item, True, False) for item in sorted(scene.objects, key=lambda item: item.left)])
