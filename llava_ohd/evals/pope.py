"""POPE: does the model say that an object is there? Three splits that differ in how the absent object is chosen.

Paper: arXiv 2305.10355. Rule: AoiDragon/POPE evaluate.py @ 08d957b, the same in LLaVA eval_pope.py @ c121f04; four
others in `yes_no`. Accuracy, precision, recall, F1: higher is better; the yes ratio describes. "Yes" is the positive
class.

Properties of the published metric that are kept: anything without the bare word "no" or "not" in the first sentence is
a yes (also "", "None", "NO", "**No**"); "Yes or no" is a no; a label counts as negative only if it is exactly "no".

Two differences: where a quotient is 0/0 (every answer "no": no precision) the official script stops with
ZeroDivisionError; here the value is 0 and the metric's n is 0. And lmms-eval's yes ratio is that of the labels, always
0.5; here it is that of the answers under every rule.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_ohd.errors import AnswersMismatch, LlavaOhdError
from llava_ohd.evals.answers import mismatch
from llava_ohd.evals.pope_answers import SUFFIX, answers_for, bare, match
from llava_ohd.evals.pope_questions import object_of
from llava_ohd.evals.pope_sets import SETS, SPLITS, PopeQuestion, read_questions, read_set
from llava_ohd.evals.yes_no import RULES, Confusion, Rule, confusion, misread_line, strict, unread_line
from llava_ohd.evals.yes_no import official as says_yes
from llava_ohd.records import Answer, Metric
from llava_ohd.results import metric_line

__all__ = [
    "RULE",
    "RULES",
    "SPLITS",
    "SUFFIX",
    "Confusion",
    "PopeQuestion",
    "Scored",
    "answers_for",
    "confusion",
    "evaluate",
    "object_of",
    "read_questions",
    "said_elsewhere",
    "says_yes",
    "score",
]

RULE = str(RULES["official"])
_OVER_ALL = ("f1_macro", "accuracy_macro", "f1_pooled", "accuracy_pooled")
_BARE = ("Yes", "No", "yes", "no")  # what all rules read alike


def score(questions: Sequence[PopeQuestion], answers: Iterable[Answer], rule: Rule = RULES["official"]) -> list[Metric]:
    """Scores answers.

    Args:
        questions: All questions of the set, or those of some splits.
        answers: Exactly one answer to each question, in any order.
        rule: How answers are read.

    Returns:
        `<split>/accuracy|precision|recall|f1|yes_ratio`, then `f1_macro` and `accuracy_macro` (unweighted means over
        the splits; LLaVA's "POPE 85.9" is the former), `f1_pooled` and `accuracy_pooled` (all answers counted
        together; the former is lmms-eval's and VLMEvalKit's number). Describing: `undecided`, the share of answers that
        the rule reads nothing from (the official one always reads something); `unparsed`, that are no plain yes or no
        whatever the rule makes of them; `not_bare`, that are more than the bare word, so that rules may differ;
        `label_yes_ratio`; and what constant answers get over all and in each split, `always_yes/...`, `always_no/...`.

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions.
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("there are no questions to score")
    texts = answers_for(questions, answers)
    n = len(texts)
    constant = [
        replace(metric, name=f"always_{word.lower()}/{metric.name}", better="none")
        for word in ("Yes", "No")
        for metric in _metrics(questions, [word] * n, rule)
        if metric.name in _OVER_ALL or metric.name.endswith(("/accuracy", "/f1"))
    ]
    return [
        *_metrics(questions, texts, rule),
        _undecided(texts, rule),
        Metric("unparsed", sum(strict(text) is None for text in texts) / n, n, "none"),
        Metric("not_bare", sum(text not in _BARE for text in texts) / n, n, "none"),
        Metric("label_yes_ratio", sum(question.label != "no" for question in questions) / n, n, "none"),
        *constant,
    ]


def _undecided(texts: Sequence[str], rule: Rule) -> Metric:
    return Metric("undecided", sum(rule.read(text) is None for text in texts) / len(texts), len(texts), "none")


def _metrics(questions: Sequence[PopeQuestion], texts: Sequence[str], rule: Rule) -> list[Metric]:
    counts = {}
    for split in dict.fromkeys(question.split for question in questions):
        rows = [(t, q.label) for t, q in zip(texts, questions, strict=True) if q.split == split]
        counts[split] = confusion((text for text, _ in rows), (label for _, label in rows), rule)
    pooled = sum(counts.values(), Confusion())
    return [
        *(metric for split, part in counts.items() for metric in part.metrics(f"{split}/")),
        Metric("f1_macro", sum(part.f1 for part in counts.values()) / len(counts), pooled.n, "higher"),
        Metric("accuracy_macro", sum(part.accuracy for part in counts.values()) / len(counts), pooled.n, "higher"),
        Metric("f1_pooled", pooled.f1, pooled.n, "higher"),
        Metric("accuracy_pooled", pooled.accuracy, pooled.n, "higher"),
    ]


@dataclass(frozen=True)
class Scored:
    """What one answer file gives on one set.

    Attributes:
        metrics: As `score`; RePOPE's beside COCO's as `repope/...`, other rules' as `by_<rule>/...`.
        answers: Text by question id.
        answered: For each split how many questions are answered, and how many it has.
        rule: Whose names have no prefix.
        all_rules: Whether the others are there.
    """

    metrics: list[Metric]
    answers: dict[str, str]
    answered: dict[str, tuple[int, int]]
    rule: str = "official"
    all_rules: bool = False

    @property
    def complete(self) -> bool:
        """Whether every question of every split is answered."""
        return all(part == whole for part, whole in self.answered.values())

    @property
    def notes(self) -> list[str]:
        """What must be said aloud of the answers, if anything: that they are no yes or no, or read as another."""
        unread, misread = unread_line(self.answers, strict), misread_line(self.answers, RULES[self.rule])
        return [note for note in (unread and f"{unread}; {_made_of(self.rule)}", misread) if note]

    def rows(self, questions: Iterable[PopeQuestion]) -> list[dict[str, Any]]:
        """Returns the answers as rows of answers.jsonl, in the order of the questions."""
        return [
            {"question_id": q.id, "image": q.image, "prompt": q.prompt, "text": self.answers[q.id]}
            for q in questions
            if q.id in self.answers
        ]

    def __str__(self) -> str:
        lines = [
            f"  {split}: {part} of {whole} answered (NOT COMPLETE)"
            for split, (part, whole) in self.answered.items()
            if part < whole
        ]
        hidden = r"by_.*|always_\w+/\w+/.*" if all(part for part, _ in self.answered.values()) else "by_.*"
        shown = [metric for metric in self.metrics if not re.fullmatch(hidden, metric.name)]
        own = [metric_line(metric, max(len(metric.name) for metric in shown)) for metric in shown]
        own += [f"  {note}" for note in self.notes]
        return "\n".join([*lines, *own, *([_table(self.metrics, self.rule)] if self.all_rules else [])])


def evaluate(
    questions: Sequence[PopeQuestion],
    answers: Sequence[Answer],
    name: str = "",
    rule: str = "official",
    all_rules: bool = False,
    partial: bool = False,
) -> Scored:
    """Joins a file of answers to a set, and scores the splits that it answers.

    Args:
        questions: The whole set.
        answers: Of the file.
        name: Which published set it is; with `coco` RePOPE's labels are scored beside, with `repope` the answers may
            be those to either version of COCO's set.
        rule: A key of `RULES`.
        all_rules: Scores by the others too.
        partial: Scores RePOPE from answers to `coco-2910` too, which lack 87 of its questions.

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions of one or more splits.
    """
    found = _relabelled(name, questions, answers, partial)
    kept = [question for question in questions if question.id in found]
    own = [Answer(question.id, found[question.id]) for question in kept]
    splits = list(dict.fromkeys(question.split for question in questions))
    parts = {split: [question.id in found for question in questions if question.split == split] for split in splits}
    answered = {split: (sum(rows), len(rows)) for split, rows in parts.items()}
    metrics = score(kept, own, RULES[rule])
    if all_rules:
        texts = [answer.text for answer in own]
        metrics += [
            replace(metric, name=f"by_{key}/{metric.name}", better="none")
            for key, other in RULES.items()
            if key != rule
            for metric in [*_metrics(kept, texts, other), _undecided(texts, other)]
        ]
    metrics += _repope_beside(questions, found, RULES[rule]) if name == "coco" else []
    if not all(
        part for part, _ in answered.values()
    ):  # a mean over some of the splits would pass for the mean over all
        metrics = [metric for metric in metrics if metric.name.rpartition("/")[2] not in _OVER_ALL]
    return Scored(metrics, found, answered, rule, all_rules)


def _relabelled(
    name: str, questions: Sequence[PopeQuestion], answers: Sequence[Answer], partial: bool
) -> dict[str, str]:
    """Matches answers to the set, or to another one of which it is a part with other labels."""
    try:
        return match(questions, answers)
    except AnswersMismatch as error:
        first = error
    for base in SETS[name].answered_as if name in SETS else ():
        try:
            theirs = read_set(base)
            found = match(theirs, answers)
        except LlavaOhdError:
            continue
        by_key = {(q.split, q.image, bare(q.prompt)): found[q.id] for q in theirs if q.id in found}
        splits = {split for split, _, _ in by_key}
        asked = {q.id: (q.split, q.image, bare(q.prompt)) for q in questions if q.split in splits}
        missing = [f"{key!r} {where}" for key, where in asked.items() if where not in by_key]
        if missing and not partial:
            raise AnswersMismatch(
                f"{mismatch(len(asked), missing)} They are answers to {base}, which lacks these; --partial scores the "
                "others, marked as not complete"
            )
        return {key: by_key[where] for key, where in asked.items() if where in by_key}
    raise first


def said_elsewhere(
    questions: Sequence[PopeQuestion], found: Mapping[str, str], others: Iterable[PopeQuestion]
) -> list[str]:
    """Returns the answers to the questions of another set, which are among these under other ids.

    Args:
        questions: The set that was answered.
        found: Text by id; some may have none.
        others: Each asks what an answered one of `questions` asks, in the same split.
    """
    by_key = {(q.split, q.image, bare(q.prompt)): found[q.id] for q in questions if q.id in found}
    return [by_key[question.split, question.image, bare(question.prompt)] for question in others]


def _repope_beside(questions: Sequence[PopeQuestion], found: Mapping[str, str], rule: Rule) -> list[Metric]:
    try:
        corrected = read_set("repope")
    except LlavaOhdError:  # RePOPE's files are not there
        return []
    splits = {question.split for question in questions if question.id in found}
    corrected = [question for question in corrected if question.split in splits]
    texts = said_elsewhere(questions, found, corrected)
    return [replace(metric, name=f"repope/{metric.name}") for metric in _metrics(corrected, texts, rule)]


def _made_of(rule: str) -> str:
    """Says what a rule makes of an answer that is no plain yes or no."""
    if rule == "official":
        return 'by the rule official all without "No", "no" or "not" in the first sentence count as a yes'
    meaning = {"no": "are wrong", "lost": "are wrong and in no other count", "left out": "are in no count"}
    return f"by the rule {rule} those that it cannot read {meaning[RULES[rule].undecided]}"


def _table(metrics: Iterable[Metric], rule: str) -> str:
    """Returns the rules side by side, in percent; `rule` is the one that has no prefix."""
    values = {metric.name: metric.value for metric in metrics}
    columns = [f"{split}/{part}" for split in SPLITS for part in ("accuracy", "f1")] + [*_OVER_ALL[:3], "undecided"]
    shown = [column for column in columns if column in values]
    lines = ["  ".join([f"{'rule':12}", *(f"{column:>{max(7, len(column))}}" for column in shown)])]
    for key in [rule, *(other for other in RULES if other != rule)]:
        prefix = "" if key == rule else f"by_{key}/"
        cells = [f"{100 * values[prefix + column]:.1f}" for column in shown]
        lines.append("  ".join([f"{key:12}", *(f"{c:>{max(7, len(n))}}" for c, n in zip(cells, shown, strict=True))]))
    return "\n".join(lines)
