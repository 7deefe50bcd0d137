"""How several objects are named in one caption, and in which orders.

Released code takes `combinations` of an ordered list of classes: an earlier place in the sentence then means an earlier
place in the list, so that position is one with identity. Here every object of a set stands in every place equally
often.

Source: arXiv 2502.19842; clip-oscope/clip-oscope@59f5a52 (the defect).
"""

import random
from collections.abc import Sequence
from itertools import combinations, permutations
from math import perm

from llava_ohd.errors import OptionError
from llava_ohd.ohd_caps.grammar import enumerate_phrases, with_article

__all__ = ["FORMS", "as_text", "name_alone", "name_together", "object_orders"]

FORMS = {
    "list": "a ball, a cup and a key (what the mini CLIP of the embedded world was trained on)",
    "bare": "ball and cup and key (ComCO)",
    "articles": "a ball and a cup and a key (ComCO's text classification)",
}


def as_text(name: str) -> str:
    """Returns a class as a caption names it: names of files have `_` where captions have a blank."""
    return name.replace("_", " ")


def name_together(names: Sequence[str], form: str) -> str:
    """Returns a caption that names objects in this order.

    Args:
        names: At least one.
        form: One of `FORMS`.

    Raises:
        OptionError: another form.
    """
    names = [as_text(name) for name in names]
    if form == "bare":
        return " and ".join(names)
    phrases = [with_article(name) for name in names]
    if form == "articles":
        return " and ".join(phrases)
    if form == "list":
        return enumerate_phrases(phrases)
    raise OptionError(f"--captions {form}: one of {', '.join(FORMS)} is expected")


def name_alone(name: str, form: str) -> str:
    """Returns the caption of one object, as it stands in the others."""
    return name_together([name], form)


def object_orders(total: int, count: int, most: int, seed: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Returns orders in which `count` of `total` objects can be named.

    Where there are at most `most`, these are all of them. Otherwise sets are drawn, and each is given in `count`
    orders, rotations of a random one: every object of the set once in every place.

    Args:
        total: Number of classes.
        count: Objects per caption.
        most: Number of orders, about.
        seed: Of the draw.

    Returns:
        The orders, as numbers of classes, and which set each is of (orders of one set are not independent).

    Raises:
        OptionError: fewer classes than objects, or `most` below one set.
    """
    if not 1 <= count <= total or most < count:
        raise OptionError(f"{count} objects of {total} classes in at most {most} orders: none can be made")
    if perm(total, count) <= most:
        sets = list(combinations(range(total), count))
        orders = [list(permutations(row)) for row in sets]
    else:
        rng = random.Random(f"orders {total} {count} {seed}")
        drawn: dict[frozenset[int], tuple[int, ...]] = {}
        while len(drawn) < most // count and len(drawn) < perm(total, count) // perm(count, count):
            row = tuple(rng.sample(range(total), count))
            drawn.setdefault(frozenset(row), row)
        orders = [[row[i:] + row[:i] for i in range(count)] for row in drawn.values()]
    return [row for rows in orders for row in rows], [index for index, rows in enumerate(orders) for _ in rows]
