"""The class names and prompts that OpenAI used for CLIP, and which label of a data set means which class.

A label is looked up by what the data call it, never by its number: EuroSAT's folders, for one, are in another order
than OpenAI's classes, and a shifted order is an accuracy at chance that nobody notices.

prompts.json: per set `templates`, and `classes` as lists `[OpenAI's name, what data sets call it ...]`: EuroSAT's
folders, GTSRB's numbers, ImageNet's WordNet id and lemmas.

Source: openai/CLIP@d05afc4 data/prompts.md, notebooks/Prompt_Engineering_for_ImageNet.ipynb (MIT, (c) 2021 OpenAI).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json

__all__ = ["SETS", "PromptSet", "prompt_set"]

SETS = ("cifar10", "cifar100", "stl10", "eurosat", "gtsrb", "imagenet")


@dataclass(frozen=True)
class PromptSet:
    """The classes of a data set and how to ask for them.

    Attributes:
        name: One of `SETS`.
        names: OpenAI's name of each class; ImageNet has two names twice ("missile", "sunglasses").
        labels: What data sets call each class; the name is one of them.
        templates: Prompts with `{}` for the name.
    """

    name: str
    names: Sequence[str]
    labels: Sequence[Sequence[str]]
    templates: Sequence[str]

    def prompts(self) -> list[list[str]]:
        """Returns the prompts of each class."""
        return [[template.format(name) for template in self.templates] for name in self.names]

    def places(self, labels: Sequence[str]) -> list[int]:
        """Returns which class each label of a data set is.

        Args:
            labels: The label names of the data, in the order of the data's own numbers.

        Raises:
            DataFormatError: a label that is no class, two that are the same class, or a class without a label.
        """
        known: dict[str, set[int]] = defaultdict(set)
        for place, others in enumerate(self.labels):
            for label in others:
                known[_plain(label)].add(place)
        found = [_one_of(known.get(_plain(label), set()), number) for number, label in enumerate(labels)]
        unknown = [label for label, place in zip(labels, found, strict=True) if place is None]
        missing = sorted(set(range(len(self.names))) - set(found))
        twice = len(labels) - len(unknown) - len(set(found) - {None})
        if unknown or missing or twice:
            raise DataFormatError(
                f"the data name {len(labels)} classes, {self.name} has {len(self.names)}: {len(unknown)} of them are "
                f"unknown{_some(unknown)}, {twice} name a class again, {len(missing)} are not there"
                f"{_some([self.names[place] for place in missing])}. Give the data of {self.name}, or another --set"
            )
        return [place for place in found if place is not None]


def _one_of(places: set[int], number: int) -> int | None:
    """Returns the only place; of several (ImageNet has two classes called "crane") the one with the label's number."""
    if len(places) == 1:
        return next(iter(places))
    return number if number in places else None


def _plain(label: str) -> str:
    """Returns what distinguishes a label: letters and digits, a number without its leading zeros."""
    text = re.sub(r"[^a-z0-9]", "", label.lower())
    return str(int(text)) if text.isdigit() else text


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''})" if names else ""


@cache
def prompt_set(name: str) -> PromptSet:
    """Returns the prompts of one of `SETS`."""
    record = read_json(Path(__file__).with_name("prompts.json"))["sets"][name]
    classes = [tuple(row) for row in record["classes"]]
    return PromptSet(name, tuple(row[0] for row in classes), tuple(classes), tuple(record["templates"]))
