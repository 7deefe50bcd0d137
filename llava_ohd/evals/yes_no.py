"""Reading yes or no out of an answer: the published tools do it in five ways, and score what they cannot read in three.

All agree while every answer is exactly "Yes" or "No". Each rule is cited with its source in `RULES`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from llava_ohd.evals.answers import short
from llava_ohd.records import Metric

__all__ = [
    "RULES",
    "Confusion",
    "Outcome",
    "Rule",
    "confusion",
    "first_word",
    "misread_line",
    "official",
    "strict",
    "unread_line",
]

Outcome = Literal["tp", "fp", "tn", "fn", "lost"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_LOUD = 0.05  # share of answers that could not be read from which on it is said
_FULL_STOPS = 32  # the original hands re.UNICODE (32) to the place of `count`


def official(text: str) -> bool:
    """Reads an answer by POPE's rule; there is no third verdict.

    The text before the first "." is freed of "," and split at single spaces; it is a no if one piece is exactly
    "No", "no" or "not", else a yes.

    Source: AoiDragon/POPE evaluate.py @ 08d957b; haotian-liu/LLaVA llava/eval/eval_pope.py @ c121f04.
    """
    pieces = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in pieces for word in ("No", "no", "not"))


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter in "'’" else " " for letter in text.casefold()).split()


def first_word(text: str) -> bool | None:
    """Reads the first word, whatever its case, marks and emphasis; None if it is neither yes nor no."""
    words = _words(text)
    return {"yes": True, "no": False}.get(words[0]) if words else None


def strict(text: str) -> bool | None:
    """Reads the first word, and nothing from an answer that has both words; None is no plain yes or no."""
    return None if {"yes", "no"} <= set(_words(text)) else first_word(text)


def exact(text: str) -> bool | None:
    """Reads an answer that is nothing but the word: "Yes." is neither.

    Source: EvolvingLMMs-Lab/lmms-eval lmms_eval/tasks/pope/utils.py @ 75571cf.
    """
    return {"yes": True, "no": False}.get(text.lower().strip())


def one_word_of_two(text: str) -> bool | None:
    """Reads whichever of the words yes and no occurs, if the other does not; "not" says nothing.

    A mark that stands beside a space anywhere is deleted, another becomes a space, so that "yes-no" is two words.

    Source: open-compass/VLMEvalKit vlmeval/dataset/utils/yorn.py, vlmeval/smp/misc.py @ e8e78f0.
    """
    lower = text.lower()
    cleaned, in_number = lower, _DIGITS_COMMA.search(lower) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in lower or f" {mark}" in lower
        cleaned = cleaned.replace(mark, "" if beside_space or in_number else " ")
    words = set(_FULL_STOP.sub("", cleaned, count=_FULL_STOPS).split()) & {"yes", "no"}
    return "yes" in words if len(words) == 1 else None


def anywhere(text: str) -> bool | None:
    """Reads the letters "yes" anywhere, else "no" anywhere: "I know" is a no.

    Source: YanNeu/RePOPE src/eval_utils.py @ bcf22e5.
    """
    lower = text.lower()
    return True if "yes" in lower else (False if "no" in lower else None)


@dataclass(frozen=True)
class Rule:
    """How answers are read, and what becomes of those without a verdict.

    Attributes:
        name: As given to `--rule`.
        source: Where it is from.
        read: From the text to yes (True), no (False) or neither (None).
        undecided: `no`: wrong, and a missed object where there is one; `lost`: wrong in the accuracy, in no other
            count; `left out`: in no count at all.
    """

    name: str
    source: str
    read: Callable[[str], bool | None]
    undecided: Literal["no", "lost", "left out"]

    def __str__(self) -> str:
        return f"{self.name} ({self.source})"

    def outcome(self, text: str, label: str) -> Outcome | None:
        """Returns what an answer counts as ("yes" is positive; a label is negative only if it is "no"), or None."""
        said, present = self.read(text), label != "no"
        if said is None:
            if self.undecided == "left out":
                return None
            return "fn" if present and self.undecided == "no" else "lost"
        if said:
            return "tp" if present else "fp"
        return "fn" if present else "tn"


RULES = {
    rule.name: rule
    for rule in (
        Rule("official", "AoiDragon/POPE@08d957b evaluate.py", official, "no"),
        Rule("strict", "llava_ohd: first word, not both words, undecided is wrong", strict, "no"),
        Rule("vlmevalkit", "open-compass/VLMEvalKit@e8e78f0 yorn.py, no judge", one_word_of_two, "no"),
        Rule("lmms-eval", "EvolvingLMMs-Lab/lmms-eval@75571cf tasks/pope/utils.py", exact, "lost"),
        Rule("repope", "YanNeu/RePOPE@bcf22e5 src/eval_utils.py", anywhere, "left out"),
    )
}


@dataclass(frozen=True)
class Confusion:
    """Answers counted against labels; "yes" is positive, `lost` ones are wrong and in no other count."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    lost: int = 0

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def n(self) -> int:
        """Number of answers."""
        return self.tp + self.fp + self.tn + self.fn + self.lost

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _ratio(self.tp + self.tn, self.n)

    @property
    def precision(self) -> float:
        """Share of "yes" answers that are right; 0 if there is none."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of present objects that are seen; 0 if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are 0."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of "yes" answers."""
        return _ratio(self.tp + self.fp, self.n)

    def metrics(self, prefix: str) -> list[Metric]:
        """Returns the five metrics, named `<prefix><name>`."""
        return [
            Metric(f"{prefix}accuracy", self.accuracy, self.n, "higher"),
            Metric(f"{prefix}precision", self.precision, self.tp + self.fp, "higher"),
            Metric(f"{prefix}recall", self.recall, self.tp + self.fn, "higher"),
            Metric(f"{prefix}f1", self.f1, self.n, "higher"),
            Metric(f"{prefix}yes_ratio", self.yes_ratio, self.n, "none"),
        ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def confusion(texts: Iterable[str], labels: Iterable[str], rule: Rule = RULES["official"]) -> Confusion:
    """Counts answers against labels, both in the same order.

    Raises:
        ValueError: there are more of one than of the other.
    """
    counts = dict.fromkeys(("tp", "fp", "tn", "fn", "lost"), 0)
    for text, label in zip(texts, labels, strict=True):
        outcome = rule.outcome(text, label)
        if outcome is not None:
            counts[outcome] += 1
    return Confusion(**counts)


def unread_line(
    answers: Mapping[str, str], read: Callable[[str], bool | None], kind: str = "no plain yes or no"
) -> str | None:
    """Says loudly that answers could not be read, with an example; None if these are 5 % or less.

    Args:
        answers: Texts by id.
        read: From a text to its verdict, None for no verdict.
        kind: What such an answer is.
    """
    return _loud("UNREAD", answers, lambda text: read(text) is None, kind)


def misread_line(answers: Mapping[str, str], rule: Rule) -> str | None:
    """Says loudly that a rule makes something else of plain answers, such as a yes of "NO"; None if of 5 % or less."""
    kind = f"a plain yes or no that the rule {rule.name} does not read as such"
    return _loud("MISREAD", answers, lambda text: strict(text) is not None and strict(text) != rule.read(text), kind)


def _loud(mark: str, answers: Mapping[str, str], is_one: Callable[[str], bool], kind: str) -> str | None:
    found = {name: text for name, text in answers.items() if is_one(text)}
    if len(found) <= _LOUD * len(answers):
        return None
    name, text = next(iter(found.items()))
    share = 100 * len(found) / len(answers)
    return f"{mark}: {len(found)} of {len(answers)} answers ({share:.1f} %) are {kind}, first: {name}: {short(text)}"
