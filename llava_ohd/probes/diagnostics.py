"""What all probes of one encoder found, and how much was asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_ohd.probes.attention import ObjectAttention
from llava_ohd.probes.caption_positions import LargestPosition
from llava_ohd.probes.classification import Classification
from llava_ohd.probes.estimates import Estimate
from llava_ohd.probes.matching import Cell, Trial
from llava_ohd.probes.retrieval import Retrieval

__all__ = ["Diagnostics", "Matching", "ProbesConfig"]


@dataclass(frozen=True)
class ProbesConfig:
    """How much is asked.

    Attributes:
        form: How objects are named, of `sentences.FORMS`.
        probe_form: The same in TOC.
        captions: Captions of TOR and TOC for each number of objects, about.
        pictures: Pictures for image-text matching for each number of objects, drawn from all layouts alike.
        absent: Absent objects per picture in the published scenarios; None: all.
        scorers: Ways of comparing that matching is done with.
        seed: Of every draw.
    """

    form: str = "list"
    probe_form: str = "list"
    captions: int = 12_000
    pictures: int = 240
    absent: int | None = None
    scorers: tuple[str, ...] = ("whole", "split-mean", "split-min", "split-softmin", "split-mean+whole", "permuted")
    seed: int = 0


@dataclass(frozen=True)
class Matching:
    """Image-text matching with one way of comparing.

    Attributes:
        scorer: The way.
        captions: Number of different captions.
        texts: Texts that were encoded for them.
        cells: Share of trials won in each cell.
        by_object: Share won by replaced object and its size, crossed design.
    """

    scorer: str
    captions: int
    texts: int
    cells: Mapping[Cell, Estimate]
    by_object: Mapping[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Diagnostics:
    """Everything that was measured; a mapping is empty where the set does not have what it needs.

    Attributes:
        text: TOR by number of objects.
        written: TOR on captions that people wrote, by number of objects.
        pictures: IOR by number of objects; positions by size.
        pictures_small: The same with small single pictures.
        names: I2T by number of objects; positions by size.
        slots: IOR by layout; positions by slot.
        text_probe: TOC by number of objects.
        text_probe_long: The same, trained longer.
        picture_probe: IOC by layout, where it has pictures enough.
        picture_probe_long: The same, trained longer.
        large_slots: Which slot of each layout is large.
        attention: By number of objects; positions `large` and `small`.
        attention_slots: By layout.
        matching: One per way of comparing.
        trials: Of the matching, each with the ways of comparing that won it.
        largest: Where captions name the largest object; None where no captions were given.
    """

    text: Mapping[int, Retrieval]
    written: Mapping[int, Retrieval]
    pictures: Mapping[int, Retrieval]
    pictures_small: Mapping[int, Retrieval]
    names: Mapping[int, Retrieval]
    slots: Mapping[str, Retrieval]
    text_probe: Mapping[int, Classification]
    text_probe_long: Mapping[int, Classification]
    picture_probe: Mapping[str, Classification]
    picture_probe_long: Mapping[str, Classification]
    large_slots: Mapping[str, str]
    attention: Mapping[int, ObjectAttention]
    attention_slots: Mapping[str, ObjectAttention]
    matching: Sequence[Matching]
    trials: Sequence[tuple[Trial, tuple[str, ...]]]
    largest: LargestPosition | None = None
