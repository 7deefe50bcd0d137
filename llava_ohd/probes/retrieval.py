"""Which of several objects is an embedding nearest to? By place in the caption (TOR), by size in the picture (IOR).

Something with n objects (a caption, a picture) is compared with every class alone (its name, its single picture). Three
families of numbers, as the released code has them, each with what it rests on:

- `complete`: share of items whose n nearest classes are exactly its n objects;
- `conditional`: which of the objects is nearest, among complete items only (sums to 1). The published tables are these;
  for ComCO's pictures they rest on 23 to 283 of 8,000;
- `unconditional`: which object, or an absent class, is nearest, among all items; and `highest`: which of the n objects
  is nearest among them, whatever absent classes are nearer still.

Who is an object of an item is known by number of the class, never looked for in text: by substrings "car" is in
"carrot". Equal cosines share a first place.

Source: arXiv 2502.19842, tables 1-5; clip-oscope/clip-oscope@59f5a52.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.probes.estimates import Estimate, share_of
from llava_ohd.probes.pictures import Picture
from llava_ohd.probes.sentences import as_text, name_alone, name_together, object_orders

__all__ = [
    "Encode",
    "Retrieval",
    "named_in_order",
    "ordinals",
    "picture_retrieval",
    "retrieve",
    "text_retrieval",
    "written_retrieval",
]

Encode = Callable[[Sequence[str]], Tensor]
"""Captions to unit vectors (len(captions), D)."""


@dataclass(frozen=True)
class Retrieval:
    """Which object is nearest.

    Attributes:
        positions: What distinguishes the objects of an item, such as "1st" or "large".
        complete: Share of items whose n nearest classes are its n objects.
        conditional: By position, among complete items.
        unconditional: By position, among all items.
        absent: The rest of these: a class that is not there is nearest.
        highest: By position, nearest among the objects, all items.
        by_class: For each class and position: how often it is `highest` when it stands there.
    """

    positions: tuple[str, ...]
    complete: Estimate
    conditional: tuple[Estimate, ...]
    unconditional: tuple[Estimate, ...]
    absent: Estimate
    highest: tuple[Estimate, ...]
    by_class: tuple[tuple[str, tuple[Estimate, ...]], ...] = ()


def retrieve(
    cosines: Tensor,
    present: Tensor,
    positions: Sequence[str],
    items: Sequence[Hashable],
    classes: Sequence[str] = (),
) -> Retrieval:
    """Counts which object is nearest.

    Args:
        cosines: float (N, C), of every item with every class.
        present: int64 (N, n), the classes of an item by position, all different; n below C.
        positions: n names.
        items: Which independent item each row is of.
        classes: C names; where given, `by_class` is counted.
    """
    n, inside = present.shape[1], cosines.gather(1, present)
    outside = cosines.scatter(1, present, float("-inf")).amax(1)
    complete = (inside.amin(1) > outside).tolist()
    first = _first_places(cosines).gather(1, present)  # (N, n)
    highest = _first_places(inside)
    chosen = [index for index, whole in enumerate(complete) if whole]
    kept = [items[index] for index in chosen]
    return Retrieval(
        tuple(positions),
        share_of(complete, items),
        tuple(share_of([float(first[index, p]) for index in chosen], kept) for p in range(n)),
        tuple(share_of(first[:, p].tolist(), items) for p in range(n)),
        share_of((1 - first.sum(1)).clamp(0, 1).tolist(), items),
        tuple(share_of(highest[:, p].tolist(), items) for p in range(n)),
        tuple((name, _of_class(highest, present == number, items)) for number, name in enumerate(classes)),
    )


def _first_places(values: Tensor) -> Tensor:
    """Returns 1 at the largest value of each row, shared where several are equal."""
    first = (values == values.amax(1, keepdim=True)).double()
    return first / first.sum(1, keepdim=True)


def _of_class(highest: Tensor, there: Tensor, items: Sequence[Hashable]) -> tuple[Estimate, ...]:
    rows = [there[:, p].nonzero().flatten().tolist() for p in range(there.shape[1])]
    return tuple(
        share_of(highest[group, p].tolist(), [items[index] for index in group]) for p, group in enumerate(rows)
    )


def text_retrieval(
    encode: Encode, classes: Sequence[str], count: int, form: str = "list", most: int = 12_000, seed: int = 0
) -> Retrieval:
    """TOR: which of the objects that a caption names is it nearest to, by place in the caption?

    Args:
        encode: The text encoder.
        classes: Names, more than `count`.
        count: Objects per caption.
        form: How they are named, of `sentences.FORMS`.
        most: Captions, about; all orders of all sets where these are fewer.
        seed: Of the draw.

    Raises:
        OptionError: an impossible number, or another form.
    """
    orders, sets = object_orders(len(classes), count, most, seed)
    captions = [name_together([classes[index] for index in row], form) for row in orders]
    alone = encode([name_alone(name, form) for name in classes])
    return retrieve(encode(captions) @ alone.T, torch.tensor(orders), ordinals(count), sets, classes)


def written_retrieval(
    encode: Encode, captions: Sequence[str], classes: Sequence[str], count: int, form: str = "bare"
) -> Retrieval:
    """TOR on captions that people wrote: those that name exactly `count` classes, in the order of their first mention.

    Args:
        encode: The text encoder.
        captions: Any; each different one counts once.
        classes: Names, looked for as whole words with their plurals, longest first ("hot dog" is no dog).
        count: Objects per caption.
        form: How a class alone is named.

    Raises:
        DataFormatError: no caption names exactly so many.
    """
    lexicon = Lexicon([as_text(name) for name in classes])
    found = {text: named_in_order(text, lexicon) for text in captions}
    kept = {text: names for text, names in found.items() if len(names) == count}
    if not kept:
        raise DataFormatError(f"none of {len(found)} captions names exactly {count} of the {len(classes)} classes")
    numbers = {as_text(name): number for number, name in enumerate(classes)}
    present = torch.tensor([[numbers[name] for name in names] for names in kept.values()])
    alone = encode([name_alone(name, form) for name in classes])
    return retrieve(encode(list(kept)) @ alone.T, present, ordinals(count), list(kept), classes)


def named_in_order(caption: str, lexicon: Lexicon) -> tuple[str, ...]:
    """Returns the different objects that a caption names, in the order of their first mention."""
    return tuple(dict.fromkeys(mention.name for mention in lexicon.mentions(caption)))


def picture_retrieval(
    features: Tensor, alone: Tensor, classes: Sequence[str], pictures: Sequence[Picture], by_slot: bool = False
) -> Retrieval:
    """IOR: which of its objects is a picture nearest to, by size or by slot? With names in place of pictures: I2T.

    Args:
        features: Unit vectors (P, D) of the pictures.
        alone: Unit vectors (C, D) of the single pictures of the classes, or of their names.
        classes: C names.
        pictures: What they show, all the same number of objects.
        by_slot: Positions are the slots; otherwise the large object comes first, the small ones in the order of the
            slots.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [picture.objects if by_slot else picture.by_size for picture in pictures]
    present = torch.tensor([[numbers[item.name] for item in row] for row in rows])
    small = [f"small {i}" for i in range(1, len(rows[0]))]
    positions = [item.slot for item in rows[0]] if by_slot else ["large", *small]
    return retrieve(features @ alone.T, present, positions, [picture.image for picture in pictures], classes)


def ordinals(count: int) -> tuple[str, ...]:
    """Returns "1st", "2nd", ..., for fewer than 21."""
    return tuple(f"{i}{('th', 'st', 'nd', 'rd')[i] if i < 4 else 'th'}" for i in range(1, count + 1))
