"""Linear probes read what features hold, and nothing where they hold nothing."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.classification import ProbeConfig, classify, picture_classification, text_classification
from llava_ohd.probes.estimates import wilson
from llava_ohd.probes.pictures import Layout, Picture, Placed

CLASSES = ("ball", "cup", "key", "star", "tree")
QUICK = ProbeConfig(epochs=40, batch=16, learning_rate=0.05)


@pytest.mark.parametrize("place", [0, 2])
def test_a_caption_encoder_that_keeps_one_place(place: int) -> None:
    def encode(captions: Sequence[str]) -> Tensor:
        words = [[word for word in caption.replace(",", " ").split() if word in CLASSES] for caption in captions]
        return F.one_hot(torch.tensor([CLASSES.index(row[min(place, len(row) - 1)]) for row in words]), 5).float()

    found = text_classification(encode, CLASSES, 3, "articles", most=600, config=QUICK)
    values = [estimate.value or 0.0 for estimate in found.accuracy]
    assert found.positions == ("1st", "2nd", "3rd")
    assert found.chance == 0.2
    assert values[place] == 1.0
    # the others are another class for sure: no better than one of the four others
    assert max(value for index, value in enumerate(values) if index != place) < 0.6


def test_intervals_of_captions_count_sets_not_orders() -> None:
    """40 captions are tested, of fewer sets: orders of one set are not independent."""
    features = torch.eye(5).repeat(80, 1)
    labels = torch.arange(5).repeat(80)[:, None]
    sets = [row // 20 for row in range(400)]
    [found] = classify(features, labels, 5, ("1st",), ProbeConfig(), sets).accuracy
    assert found.n == 60
    assert found.independent <= 20
    assert (found.low, found.high) == wilson(found.value or 0.0, found.independent)
    classes = tuple("abcdefgh")
    read = text_classification(lambda texts: torch.rand(len(texts), 4), classes, 3, most=100, config=QUICK)
    assert read.accuracy[0].n == 14  # of 99 captions of 33 sets
    assert read.accuracy[0].independent < 14


def test_pictures_that_show_one_slot() -> None:
    generator = torch.Generator().manual_seed(1)
    kinds = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(300)])
    pictures = tuple(
        Picture(str(i), (Placed(CLASSES[a], "L", False), Placed(CLASSES[b], "R", True)))
        for i, (a, b) in enumerate(kinds.tolist())
    )
    found = picture_classification(
        F.one_hot(kinds[:, 1], 5).float(), CLASSES, Layout("x", ("L", "R"), "R", pictures), QUICK
    )
    assert found.accuracy[1].value == 1.0
    assert (found.accuracy[0].value or 0.0) < 0.6
    assert (found.accuracy[0].n, found.trained_on) == (45, 225)


def test_layers_side_by_side_are_those_of_one_alone() -> None:
    """No layer learns from another's labels: shuffled labels elsewhere change nothing."""
    generator = torch.Generator().manual_seed(2)
    features = F.normalize(torch.randn(200, 8, generator=generator), dim=-1)
    labels = torch.randint(5, (200, 2), generator=generator)
    other = labels.clone()
    other[:, 1] = labels[:, 1].flip(0)
    first = classify(features, labels, 5, ("a", "b"), ProbeConfig())
    second = classify(features, other, 5, ("a", "b"), ProbeConfig())
    assert first.accuracy[0] == second.accuracy[0]


def test_too_few_items_are_refused() -> None:
    with pytest.raises(DataFormatError, match="3 items are too few"):
        classify(torch.eye(3), torch.zeros(3, 1, dtype=torch.long), 3, ("a",), ProbeConfig())
