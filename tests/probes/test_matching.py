"""Trials of the scenarios and of the crossed design, checked by hand; whoever knows everything wins all."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
import torch

from llava_ohd.clip.scorers import ReadCaptions
from llava_ohd.probes.matching import Trial, captions_of, crossed, judge, scenario, shares, shares_by_object
from llava_ohd.probes.pictures import Picture, Placed

CLASSES = ("a", "b", "c", "x", "y")


def _picture(large: int, names: tuple[str, ...] = ("a", "b", "c")) -> Picture:
    return Picture(
        f"{large}{names}", tuple(Placed(name, f"s{index}", index == large) for index, name in enumerate(names))
    )


def _rows(trials: list[Trial]) -> list[tuple[str, str, str, str]]:
    return [(trial.right, trial.wrong, trial.replaced, trial.absent) for trial in trials]


@pytest.mark.parametrize(
    ("large", "first", "second"),
    [
        (0, ("a and b and c", "x and b and c", "a"), ("c and b and a", "a and b and x", "c")),
        (1, ("b and a and c", "x and a and c", "b"), ("a and c and b", "b and a and x", "c")),
        (2, ("c and b and a", "x and b and a", "c"), ("a and b and c", "c and b and x", "a")),
    ],
)
def test_published_scenarios(large: int, first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    one, two = (scenario(number, [_picture(large)], CLASSES, "bare") for number in (1, 2))
    assert _rows(one)[0] == (*first, "x")
    assert _rows(two)[0] == (*second, "x")
    assert [trial.absent for trial in one] == ["x", "y"]  # all that are not there
    assert {(t.cell.replaced, t.cell.place, t.cell.order) for t in one} == {("large", "1st", "same")}
    assert {(t.cell.replaced, t.cell.place, t.cell.order) for t in two} == {("small", "3rd", "other")}
    drawn = scenario(1, [_picture(large)], CLASSES, "bare", absent=1, seed=3)
    assert len(drawn) == 1
    assert drawn == scenario(1, [_picture(large)], CLASSES, "bare", absent=1, seed=3)


def test_crossed_design_has_every_cell_once_per_picture() -> None:
    pictures = [_picture(large, names) for large in range(3) for names in (("a", "b", "c"), ("x", "a", "y"))]
    trials = crossed(pictures, CLASSES, "bare")
    per_picture: dict[str, Counter[object]] = defaultdict(Counter)
    for trial in trials:
        right, wrong = trial.right.split(" and "), trial.wrong.split(" and ")
        picture = next(picture for picture in pictures if picture.image == trial.picture)
        large = picture.by_size[0].name
        place = {"1st": 0, "2nd": 1, "3rd": 2}[trial.cell.place]
        assert set(right) == set(picture.names)
        assert wrong[place] == trial.absent
        assert trial.absent not in picture.names
        assert (trial.cell.replaced == "large") == (trial.replaced == large)
        restored = [*wrong[:place], trial.replaced, *wrong[place + 1 :]]
        assert right == (restored if trial.cell.order == "same" else restored[::-1])
        per_picture[trial.picture][trial.cell] += 1
    assert len(per_picture) == 6
    for cells in per_picture.values():
        assert len(cells) == 2 * 3 * 2
        assert set(cells.values()) == {1}


def _reader(trials: list[Trial], vector: Callable[[str], torch.Tensor]) -> ReadCaptions:
    captions = captions_of(trials)
    texts = torch.stack([vector(caption) for caption in captions])
    return ReadCaptions(texts, [(n,) for n in range(len(captions))], lambda c: c.mean(-1), (len(captions),) * 2)


def test_trials_are_won_by_who_sees_them() -> None:
    pictures = [_picture(large) for large in range(3)]
    trials = [*scenario(1, pictures, CLASSES, "bare"), *scenario(2, pictures, CLASSES, "bare")]
    trials += crossed(pictures, CLASSES, "bare")

    def bag(caption: str) -> torch.Tensor:
        return torch.tensor([float(name in caption.split()) for name in CLASSES])

    def first(caption: str) -> torch.Tensor:
        return torch.tensor([float(caption.split()[0] == name) for name in CLASSES])

    seen = {picture.image: torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]) for picture in pictures}
    assert all(judge(trials, seen, _reader(trials, bag)))
    # an encoder of the first word, pictures of the large object only: the published bias, and what crossing shows of it
    large = {picture.image: first(picture.by_size[0].name) for picture in pictures}
    won = judge(trials, large, _reader(trials, first))
    found = {(c.design, c.replaced, c.place, c.order): e for c, e in shares(trials, won).items()}
    assert found["scenario 1", "large", "1st", "same"].value == 1.0
    assert found["scenario 2", "small", "3rd", "other"].value == 0.0
    assert found["crossed", "small", "3rd", "same"].value == 0.0  # ties are lost: the same first word in both
    assert found["crossed", "large", "1st", "same"].value == 1.0
    assert found["crossed", "large", "1st", "same"].independent == 3
    by_object = shares_by_object(trials, won)
    assert {size for _, size in by_object} == {"large", "small"}
    assert sum(estimate.n for estimate in by_object.values()) == len(trials)


def test_trials_of_one_picture_do_not_narrow_the_interval() -> None:
    trials = scenario(1, [_picture(0)], (*CLASSES, *"uvwz"), "bare")
    (estimate,) = shares(trials, [True] * len(trials)).values()
    assert (estimate.n, estimate.independent) == (6, 1)
    assert (estimate.low or 0.0) < 0.25  # Wilson, one of one
