"""Retrieval by place and size: what encoders of known bias must give, and counting by hand."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.errors import DataFormatError, OptionError
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.probes.pictures import Picture, Placed
from llava_ohd.probes.retrieval import (
    named_in_order,
    picture_retrieval,
    retrieve,
    text_retrieval,
    written_retrieval,
)
from llava_ohd.probes.sentences import name_together, object_orders

CLASSES = ("ball", "cup", "key", "star", "tree", "boat", "car", "carrot")


def _encoder(weigh: Callable[[int], list[float]]) -> Callable[[Sequence[str]], Tensor]:
    """An encoder that adds up word vectors with the given weights by place."""
    generator = torch.Generator().manual_seed(0)
    vectors = dict(zip(CLASSES, torch.randn(len(CLASSES), 64, generator=generator), strict=True))

    def encode(captions: Sequence[str]) -> Tensor:
        rows = []
        for caption in captions:
            words = [word for word in caption.replace(",", " ").split() if word in vectors]
            weights = torch.tensor(weigh(len(words)))
            # sorted, so that equal sums are equal to the last bit in every order
            parts = sorted(zip(words, weights, strict=True))
            rows.append(torch.stack([weight * vectors[word] for word, weight in parts]).sum(0))
        return F.normalize(torch.stack(rows), dim=-1)

    return encode


@pytest.mark.parametrize(("count", "most"), [(2, 10_000), (4, 10_000), (4, 40), (5, 100)])
@pytest.mark.parametrize("form", ["list", "bare", "articles"])
def test_an_encoder_that_averages_words_has_no_place(count: int, most: int, form: str) -> None:
    found = text_retrieval(_encoder(lambda n: [1.0] * n), CLASSES, count, form, most)
    for family in (found.highest, found.unconditional):
        assert [estimate.value for estimate in family] == pytest.approx([1 / count] * count)
    assert found.complete.value == 1.0


@pytest.mark.parametrize("form", ["list", "bare", "articles"])
def test_an_encoder_that_keeps_the_first_word_has_only_the_first_place(form: str) -> None:
    found = text_retrieval(_encoder(lambda n: [1.0] + [0.0] * (n - 1)), CLASSES, 4, form)
    assert [estimate.value for estimate in found.highest] == [1.0, 0.0, 0.0, 0.0]
    assert [estimate.value for estimate in found.unconditional] == [1.0, 0.0, 0.0, 0.0]
    assert found.highest[0].n == 8 * 7 * 6 * 5
    assert found.highest[0].independent == 70  # sets: orders of one set are not independent
    shares = [row[0].value for _, row in found.by_class]
    assert shares == [1.0] * len(CLASSES)


def test_weights_by_place_are_found_again() -> None:
    found = text_retrieval(_encoder(lambda n: [0.2, 0.2, 1.0][:n] if n > 1 else [1.0]), CLASSES, 3)
    assert [estimate.value for estimate in found.conditional] == [0.0, 0.0, 1.0]


def test_counting_by_hand() -> None:
    cosines = torch.tensor(
        [
            [0.9, 0.8, 0.1, 0.2],  # 0 and 1: complete, the first is nearest
            [0.3, 0.5, 0.9, 0.1],  # 0 and 1: an absent class is nearest; of the two the second
            [0.4, 0.4, 0.1, 0.1],  # 1 and 0: complete, a tie
        ]
    )
    found = retrieve(cosines, torch.tensor([[0, 1], [0, 1], [1, 0]]), ("a", "b"), ["x", "x", "y"])
    assert found.complete.value == pytest.approx(2 / 3)
    assert (found.complete.n, found.complete.independent) == (3, 2)
    assert [e.value for e in found.conditional] == pytest.approx([0.75, 0.25])
    assert [e.value for e in found.unconditional] == pytest.approx([0.5, 1 / 6])
    assert found.absent.value == pytest.approx(1 / 3)
    assert [e.value for e in found.highest] == pytest.approx([0.5, 0.5])
    nothing = retrieve(cosines[1:2], torch.tensor([[0, 1]]), ("a", "b"), ["x"])
    assert [(e.value, e.n) for e in nothing.conditional] == [(None, 0), (None, 0)]


@pytest.mark.parametrize(("total", "count", "most"), [(6, 3, 1000), (20, 4, 2000), (30, 5, 500)])
def test_orders_are_balanced_within_every_set(total: int, count: int, most: int) -> None:
    orders, sets = object_orders(total, count, most, seed=1)
    assert len(set(orders)) == len(orders) <= most
    by_set: dict[int, list[tuple[int, ...]]] = {}
    for row, index in zip(orders, sets, strict=True):
        by_set.setdefault(index, []).append(row)
    assert len({frozenset(rows[0]) for rows in by_set.values()}) == len(by_set)
    for rows in by_set.values():
        assert len({frozenset(row) for row in rows}) == 1
        places = Counter((name, place) for row in rows for place, name in enumerate(row))
        assert set(places.values()) == {len(rows) // count}
    assert (orders, sets) == object_orders(total, count, most, seed=1)


def test_all_orders_where_there_are_few() -> None:
    orders, _ = object_orders(4, 2, 12, seed=0)
    assert sorted(orders) == sorted(itertools.permutations(range(4), 2))
    with pytest.raises(OptionError, match="5 objects of 4 classes"):
        object_orders(4, 5, 100, seed=0)


def test_forms_of_captions() -> None:
    names = ("ball", "umbrella", "key")
    assert name_together(names, "bare") == "ball and umbrella and key"
    assert name_together(names, "articles") == "a ball and an umbrella and a key"
    assert name_together(names, "list") == "a ball, an umbrella and a key"
    assert name_together(("tennis_racket", "orange"), "list") == "a tennis racket and an orange"
    with pytest.raises(OptionError, match="--captions other: one of list, bare, articles"):
        name_together(names, "other")


def test_names_are_whole_words_longest_first() -> None:
    lexicon = Lexicon(["car", "carrot", "dog", "hot dog", "bear", "teddy bear"])
    assert named_in_order("a carrot, a hot dog and two teddy bears", lexicon) == ("carrot", "hot dog", "teddy bear")
    assert named_in_order("dogs beside a car and a dog", lexicon) == ("dog", "car")


def test_captions_that_people_wrote() -> None:
    captions = [
        "a ball on a cup",
        "a cup and a ball",
        "a ball",
        "two keys beside a carrot and a car",
        "a ball on a cup",
    ]
    found = written_retrieval(_encoder(lambda n: [1.0] + [0.0] * (n - 1)), captions, CLASSES, 2, "bare")
    assert found.highest[0].value == 1.0
    assert found.highest[0].n == 2  # different captions with two classes
    with pytest.raises(DataFormatError, match="none of 1 captions names exactly 3 of the 8 classes"):
        written_retrieval(_encoder(lambda n: [1.0] * n), ["a ball"], CLASSES, 3)


def test_classes_with_an_underscore_are_found_as_they_are_written() -> None:
    asked: list[str] = []

    def encode(captions: Sequence[str]) -> Tensor:
        asked.extend(captions)
        return torch.tensor([[float("racket" in text), float("cup" in text)] for text in captions])

    captions = ["a cup behind two tennis rackets", "a tennis racket"]
    found = written_retrieval(encode, captions, ["cup", "tennis_racket"], 2, "bare")
    assert found.complete.n == 1
    assert asked == ["cup", "tennis racket", "a cup behind two tennis rackets"]


def test_pictures_by_size_and_by_slot() -> None:
    alone = torch.eye(4)
    slots = ("UL", "Middle", "BR")
    rows = [("b", "a", "c"), ("c", "d", "a")]
    pictures = [
        Picture(str(number), tuple(Placed(name, slot, slot == "Middle") for name, slot in zip(row, slots, strict=True)))
        for number, row in enumerate(rows)
    ]
    features = torch.tensor([[0.9, 0.3, 0.2, 0.1], [0.2, 0.1, 0.9, 0.3]])  # nearest: a (large), c (UL, small 1)
    by_size = picture_retrieval(features, alone, "abcd", pictures)
    assert by_size.positions == ("large", "small 1", "small 2")
    assert [e.value for e in by_size.highest] == [0.5, 0.5, 0.0]
    by_slot = picture_retrieval(features, alone, "abcd", pictures, by_slot=True)
    assert by_slot.positions == slots
    assert [e.value for e in by_slot.highest] == [0.5, 0.5, 0.0]
