"""Writes the 27 wrong captions of a plan by rule: offline, some four hundred rows a second and process."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llava_ohd.ohd_caps.planning import Plan, Planned
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.ohd_caps.rewriting import Rewriter

__all__ = ["RuleWriter", "Written", "distinct"]

_TRIES = 50


@dataclass(frozen=True)
class Written:
    """A row, and how many of its negatives were written by rule because an endpoint did not manage."""

    row: OhdRow
    fallbacks: int = 0


class RuleWriter:
    """Turns plans into rows; an object and not a closure, so that it can be sent to another process."""

    def __init__(self, planned: Planned) -> None:
        self.rewriter = Rewriter(planned.lexicon, planned.style)
        self.names, self.altered = planned.lexicon.names, planned.config.altered
        self.identity: dict[str, Any] = {"kind": "rule"}

    def __call__(self, plans: Sequence[Plan]) -> list[Written]:
        return [Written(self.write(plan)) for plan in plans]

    def write(self, plan: Plan) -> OhdRow:
        """Writes the row of a plan."""
        rng = random.Random(plan.seed)
        seen = {plan.caption.casefold()}
        negatives = [
            distinct(partial(self.insert, plan, objects, strategy, rng), seen) for strategy, objects in plan.inserted()
        ]
        negatives += [distinct(partial(self.remove_or_alter, plan, objects, rng), seen) for objects in plan.removed()]
        return OhdRow(plan.image, plan.caption, tuple(negatives), plan.objects)

    def insert(self, plan: Plan, objects: tuple[str, ...], strategy: str, rng: random.Random) -> Negative:
        """Writes a negative that names these absent objects."""
        return Negative(self.rewriter.insert(plan.caption, objects, rng), strategy, objects)

    def remove_or_alter(self, plan: Plan, objects: tuple[str, ...], rng: random.Random) -> Negative:
        """Writes a negative without these objects, or with them or another part of the caption altered."""
        absent = [name for name in self.names if name not in plan.objects]
        removed = None if rng.random() < self.altered else self.rewriter.remove(plan.caption, objects)
        if removed is not None:
            return Negative(removed, "removal", objects)
        text = self.rewriter.alter(plan.caption, objects, absent, rng)
        if text is None:  # nothing in the caption can be removed or altered: name something else that is not there
            text = self.rewriter.insert(plan.caption, [rng.choice(absent)], rng)
        return Negative(text, "alteration", objects)


def distinct(write: Callable[[], Negative], seen: set[str]) -> Negative:
    """Writes until the result is new; after some tries a repetition is accepted (short captions have few edits)."""
    for _ in range(_TRIES):
        negative = write()
        if negative.caption.casefold() not in seen:
            break
    seen.add(negative.caption.casefold())
    return negative
