"""What a linear layer can read off a frozen embedding: the object at each place of a caption (TOC), in each slot (IOC).

One linear layer per place on the unit vectors, cross-entropy, Adam at 1e-3; the layers of all places learn side by
side, which changes nothing (no parameter is shared, and Adam works on each number alone). The accuracy is on items that
were held out.

|  | items | epochs | batch | split |
|---|---|---|---|---|
| TOC | 180,000 captions "a X and a Y and a Z and a W" | 10 | 32 | 75 / 10 / 15 % |
| IOC | pictures of one layout | 25 | 8 | 80 / 20 % |

That is a fixed number of small steps: an encoder whose vectors lie closer together is read worse by them. `LONG` trains
until the loss hardly moves, so that both are seen.

Source: clip-oscope/clip-oscope@59f5a52; arXiv 2502.19842
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.estimates import Estimate, share_of
from llava_ohd.probes.pictures import Layout
from llava_ohd.probes.retrieval import Encode, ordinals
from llava_ohd.probes.sentences import name_together, object_orders

__all__ = [
    "FEWEST",
    "LONG",
    "PICTURE",
    "TEXT",
    "Classification",
    "ProbeConfig",
    "classify",
    "picture_classification",
    "text_classification",
]


@dataclass(frozen=True)
class ProbeConfig:
    """How the linear layers are trained.

    Attributes:
        epochs: Passes over the training items.
        batch: Items per step.
        learning_rate: Adam's.
        train: Share of items to train on.
        test: Share to test on; the rest is not used (the released code keeps 10 % for a validation that decides
            nothing).
        seed: Of the split, of the first weights and of the order.
    """

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 1e-3
    train: float = 0.75
    test: float = 0.15
    seed: int = 42


TEXT = ProbeConfig()
PICTURE = ProbeConfig(epochs=25, batch=8, train=0.8, test=0.2)
FEWEST = 20  # items that a linear probe is trained and tested on
LONG = {
    TEXT: replace(TEXT, epochs=60, batch=64, learning_rate=1e-2),
    PICTURE: replace(PICTURE, epochs=200, batch=64, learning_rate=1e-2),
}
"""The same splits trained until the loss hardly moves: what is there to be read, not what is read in a few steps."""


@dataclass(frozen=True)
class Classification:
    """What linear layers read.

    Attributes:
        positions: Places or slots.
        accuracy: On held-out items, by position.
        chance: One over the number of classes.
        trained_on: Number of training items.
    """

    positions: tuple[str, ...]
    accuracy: tuple[Estimate, ...]
    chance: float
    trained_on: int


def classify(
    features: Tensor,
    labels: Tensor,
    classes: int,
    positions: Sequence[str],
    config: ProbeConfig,
    items: Sequence[Hashable] | None = None,
) -> Classification:
    """Trains a linear layer per position and tests it.

    Args:
        features: float (N, D), unit vectors.
        labels: int64 (N, P), the class at each position.
        classes: Number of classes.
        positions: P names.
        config: How.
        items: Which independent item (set of objects) each row is of; None: each is one of its own. It says how wide
            intervals are; the split is over rows, as published.

    Raises:
        DataFormatError: too few items for a split.
    """
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(features), generator=generator)
    n_train, n_test = int(config.train * len(order)), int(config.test * len(order))
    if len(order) < FEWEST:
        raise DataFormatError(f"{len(order)} items are too few for a linear probe; give at least {FEWEST}")
    train, test = order[:n_train], order[len(order) - n_test :]
    weight, bias = _fit(features[train], labels[train], classes, config, generator)
    with torch.no_grad():
        hits = _logits(features[test], weight, bias).argmax(-1) == labels[test]
    tested = None if items is None else [items[row] for row in test.tolist()]
    accuracy = tuple(share_of(hits[:, place].tolist(), tested) for place in range(labels.shape[1]))
    return Classification(tuple(positions), accuracy, 1 / classes, n_train)


def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns (N, P, C)."""
    return torch.einsum("nd,pcd->npc", features, weight) + bias


def _fit(
    features: Tensor, labels: Tensor, classes: int, config: ProbeConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    places, width = labels.shape[1], features.shape[1]
    bound = width**-0.5  # as nn.Linear begins
    weight = torch.empty(places, classes, width).uniform_(-bound, bound, generator=generator).requires_grad_()
    bias = torch.empty(places, classes).uniform_(-bound, bound, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=config.learning_rate, foreach=True)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(features), generator=generator).split(config.batch):
            logits = _logits(features[rows], weight, bias)
            # the sum over places: the gradient of each layer is that of its own mean loss
            loss = F.cross_entropy(logits.transpose(1, 2), labels[rows], reduction="sum") / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach(), bias.detach()


def text_classification(
    encode: Encode,
    classes: Sequence[str],
    count: int = 4,
    form: str = "articles",
    most: int = 12_000,
    config: ProbeConfig = TEXT,
    seed: int = 0,
) -> Classification:
    """TOC: the object at each place of a caption of `count` objects, read off its embedding.

    Every set is there in several orders, so that no place is told by the set. The orders are those of `object_orders`.
    The split is over captions, so that most sets that are tested on were learnt from in other orders.

    Raises:
        OptionError: an impossible number, or another form.
    """
    orders, sets = object_orders(len(classes), count, most, seed)
    captions = [name_together([classes[index] for index in row], form) for row in orders]
    return classify(encode(captions), torch.tensor(orders), len(classes), ordinals(count), config, sets)


def picture_classification(
    features: Tensor, classes: Sequence[str], layout: Layout, config: ProbeConfig = PICTURE
) -> Classification:
    """IOC: the object in each slot of a layout's pictures, read off their embeddings.

    Args:
        features: Unit vectors (P, D) of the layout's pictures.
        classes: Names of all classes.
        layout: What the pictures show.
        config: How.

    Raises:
        DataFormatError: too few pictures.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([[numbers[name] for name in picture.names] for picture in layout.pictures])
    return classify(features, labels, len(classes), layout.slots, config)
