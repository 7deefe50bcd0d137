"""Does an encoder see that an object of a caption is not in the picture? Published scenarios, and a crossed design.

A trial is a picture with one large object, a caption that names its objects, and one in which an object is replaced by
one that is not there. It is won where the right caption is strictly nearer.

| | right caption | wrong caption |
|---|---|---|
| scenario 1 | large first | the same, the *large* object replaced |
| scenario 2 | large last | large first, and the *last* of the others replaced: another order, too |

Between the two scenarios, what is replaced, where, and whether the order changes move together. The crossed design has
every combination of replaced {large, small} x its place in the wrong caption x {the right caption in the same order,
reversed}, one trial of each per picture; the other objects stand in random order.

Source: clip-oscope/clip-oscope@59f5a52 Image_Text_Matching.py; arXiv 2502.19842, image-text matching.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from llava_ohd.clip.scorers import ReadCaptions
from llava_ohd.probes.estimates import Estimate, share_of
from llava_ohd.probes.pictures import Picture
from llava_ohd.probes.retrieval import ordinals
from llava_ohd.probes.sentences import name_together

__all__ = ["Cell", "Trial", "captions_of", "crossed", "judge", "scenario", "shares", "shares_by_object"]


@dataclass(frozen=True)
class Cell:
    """What a group of trials has in common.

    Attributes:
        design: `scenario 1`, `scenario 2` or `crossed`.
        count: Objects in the picture.
        replaced: `large` or `small`.
        place: Where the absent object stands in the wrong caption, such as "1st".
        order: Of the right caption: `same` as the wrong one, `other` (scenario 2) or `reversed`.
    """

    design: str
    count: int
    replaced: str
    place: str
    order: str


@dataclass(frozen=True)
class Trial:
    """One comparison.

    Attributes:
        picture: Image name.
        right: Caption that names the objects of the picture.
        wrong: Caption in which one is replaced.
        replaced: The object that is left out.
        absent: The one in its place.
        cell: The group.
    """

    picture: str
    right: str
    wrong: str
    replaced: str
    absent: str
    cell: Cell


def scenario(
    number: int,
    pictures: Iterable[Picture],
    classes: Sequence[str],
    form: str = "list",
    absent: int | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Makes the trials of a published scenario.

    Args:
        number: 1 or 2.
        pictures: With one large object each.
        classes: All names.
        form: How objects are named, of `sentences.FORMS`.
        absent: Absent objects per picture, drawn; None: all, as published.
        seed: Of the draw.
    """
    rng = random.Random(f"scenario {number} {seed}")
    trials = []
    for picture in pictures:
        names, large = picture.names, picture.by_size[0].name
        first, last = _swapped(names, large, 0), _swapped(names, large, -1)
        missing = [name for name in classes if name not in names]
        for other in missing if absent is None else rng.sample(missing, min(absent, len(missing))):
            right, place = (first, 0) if number == 1 else (last, len(names) - 1)
            wrong = (*first[:place], other, *first[place + 1 :])
            cell = _cell(f"scenario {number}", first, large, place, "same" if number == 1 else "other")
            trials.append(_trial(picture, right, wrong, first[place], other, cell, form))
    return trials


def crossed(pictures: Iterable[Picture], classes: Sequence[str], form: str = "list", seed: int = 0) -> list[Trial]:
    """Makes the trials of the crossed design: of every picture one for each replaced object's size, place and order.

    Args:
        pictures: With one large object each.
        classes: All names.
        form: How objects are named, of `sentences.FORMS`.
        seed: Of the absent objects, of which small one is replaced, and of the order of the others.
    """
    rng = random.Random(f"crossed {seed}")
    trials = []
    for picture in pictures:
        large, *small = (item.name for item in picture.by_size)
        missing = [name for name in classes if name not in picture.names]
        for replaced in (large, rng.choice(small)):
            for place in range(len(picture.names)):
                others = [name for name in picture.names if name != replaced]
                rng.shuffle(others)
                absent = rng.choice(missing)
                named = (*others[:place], replaced, *others[place:])
                wrong = (*others[:place], absent, *others[place:])
                for order, right in (("same", named), ("reversed", named[::-1])):
                    cell = _cell("crossed", named, large, place, order)
                    trials.append(_trial(picture, right, wrong, replaced, absent, cell, form))
    return trials


def _swapped(names: Sequence[str], large: str, place: int) -> tuple[str, ...]:
    """The names with the large one exchanged for the one at a place."""
    row, where = list(names), names.index(large)
    row[where], row[place] = row[place], row[where]
    return tuple(row)


def _cell(design: str, named: Sequence[str], large: str, place: int, order: str) -> Cell:
    return Cell(design, len(named), "large" if named[place] == large else "small", ordinals(len(named))[place], order)


def _trial(
    picture: Picture, right: Sequence[str], wrong: Sequence[str], replaced: str, absent: str, cell: Cell, form: str
) -> Trial:
    return Trial(picture.image, name_together(right, form), name_together(wrong, form), replaced, absent, cell)


def captions_of(trials: Iterable[Trial]) -> list[str]:
    """Returns the different captions of trials, in the order of their first trial."""
    return list(dict.fromkeys(caption for trial in trials for caption in (trial.right, trial.wrong)))


def judge(trials: Sequence[Trial], seen: Mapping[str, Tensor], read: ReadCaptions) -> list[bool]:
    """Says which trials are won.

    Args:
        trials: The trials.
        seen: Unit vector (D,) of each picture.
        read: The captions of `captions_of(trials)`, in this order.
    """
    numbers = {caption: number for number, caption in enumerate(captions_of(trials))}
    by_picture: dict[str, list[int]] = defaultdict(list)
    for index, trial in enumerate(trials):
        by_picture[trial.picture].append(index)
    won = [False] * len(trials)
    for picture, group in by_picture.items():
        asked = [numbers[text] for index in group for text in (trials[index].right, trials[index].wrong)]
        cosines = read.cosines(asked, seen[picture]).view(-1, 2)
        for index, hit in zip(group, (cosines[:, 0] > cosines[:, 1]).tolist(), strict=True):
            won[index] = hit
    return won


def shares(trials: Sequence[Trial], won: Sequence[bool]) -> dict[Cell, Estimate]:
    """Returns the share of trials won in each cell, in the order of the first trial; chance is a half."""
    return {
        cell: share_of(*rows) for cell, rows in _grouped((trial.cell, trial, hit) for trial, hit in _zip(trials, won))
    }


def shares_by_object(trials: Sequence[Trial], won: Sequence[bool]) -> dict[tuple[str, str], Estimate]:
    """Returns the share won by replaced object and its size (`large`, `small`)."""
    rows = (((trial.replaced, trial.cell.replaced), trial, hit) for trial, hit in _zip(trials, won))
    return {key: share_of(*group) for key, group in sorted(_grouped(rows))}


def _zip(trials: Sequence[Trial], won: Sequence[bool]) -> Iterator[tuple[Trial, bool]]:
    return zip(trials, won, strict=True)


def _grouped(rows: Iterable[tuple]) -> Iterator[tuple]:  # type: ignore[type-arg]
    groups: dict[object, tuple[list[bool], list[str]]] = {}
    for key, trial, hit in rows:
        hits, pictures = groups.setdefault(key, ([], []))
        hits.append(hit)
        pictures.append(trial.picture)
    yield from groups.items()
