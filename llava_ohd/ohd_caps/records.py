"""One row of OHD-Caps: an image, its caption, and the captions that are wrong about it."""

from dataclasses import dataclass

__all__ = ["INSERTIONS", "STRATEGIES", "UNKNOWN", "Negative", "OhdRow"]

INSERTIONS = ("random", "popular", "adversarial")
"""Strategies that insert objects which the image does not show, in the order in which POPE uses them."""

UNKNOWN = "unknown"
"""Strategy of a negative from a flat file, which does not say how it was made."""

STRATEGIES = (*INSERTIONS, "removal", "alteration", UNKNOWN)


@dataclass(frozen=True)
class Negative:
    """A caption that does not fit the image.

    Attributes:
        caption: The wrong caption.
        strategy: How it was made, one of `STRATEGIES`.
        objects: The objects inserted, removed or altered; empty where the source does not say.
    """

    caption: str
    strategy: str
    objects: tuple[str, ...]


@dataclass(frozen=True)
class OhdRow:
    """One image with its caption and its negative captions.

    Attributes:
        image: File name relative to the image folder.
        caption: The caption that fits.
        negatives: The captions that do not; 27 in a full row, 1 to 4 in a compositional row of the authors.
        objects: Objects that the image shows, in the order of the annotations; empty where the source does not say.
    """

    image: str
    caption: str
    negatives: tuple[Negative, ...]
    objects: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption at index 0, then the negatives in order."""
        return (self.caption, *(negative.caption for negative in self.negatives))
