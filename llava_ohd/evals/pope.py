"""POPE: does the model say that an object is there? Three splits that differ in how the absent object is chosen.

Paper: arXiv 2305.10355. Rule: AoiDragon/POPE evaluate.py @ 08d957b, the same in LLaVA eval_pope.py @ c121f04.
Accuracy, precision, recall, F1: higher is better; the yes ratio describes. "Yes" is the positive class.

Properties of the published metric that are kept: anything without the bare word "no" or "not" in the first sentence is
a yes (also "", "None", "NO", "**No**"); "Yes or no" is a no; a label counts as negative only if it is exactly "no".

One difference: where a quotient is 0/0 (every answer "no": no precision) the official script stops with
ZeroDivisionError; here the value is 0 and the metric's n is 0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.answers import RecordedAnswer, join
from llava_ohd.evals.pope_questions import STRATEGIES as SPLITS
from llava_ohd.files import read_jsonl
from llava_ohd.records import Answer, Metric, Question

__all__ = [
    "RULE",
    "SPLITS",
    "SUFFIX",
    "Confusion",
    "PopeQuestion",
    "answers_for",
    "confusion",
    "read_questions",
    "says_yes",
    "score",
]

RULE = "official (AoiDragon/POPE@08d957b evaluate.py)"
SUFFIX = "\nAnswer the question using a single word or phrase."
_LLAVA_FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}


@dataclass(frozen=True)
class PopeQuestion(Question):
    """A question with its label; the id is `<split>/<question_id>`.

    Attributes:
        split: `random`, `popular` or `adversarial`.
        label: "no", or anything else for yes.
    """

    split: str
    label: str


@dataclass(frozen=True)
class Confusion:
    """Answers counted against labels; "yes" is positive."""

    tp: int
    fp: int
    tn: int
    fn: int

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.tn + other.tn, self.fn + other.fn)

    @property
    def n(self) -> int:
        """Number of answers."""
        return self.tp + self.fp + self.tn + self.fn

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
        """Returns the five metrics, named `<prefix>/<name>`."""
        return [
            Metric(f"{prefix}/accuracy", self.accuracy, self.n, "higher"),
            Metric(f"{prefix}/precision", self.precision, self.tp + self.fp, "higher"),
            Metric(f"{prefix}/recall", self.recall, self.tp + self.fn, "higher"),
            Metric(f"{prefix}/f1", self.f1, self.n, "higher"),
            Metric(f"{prefix}/yes_ratio", self.yes_ratio, self.n, "none"),
        ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def says_yes(text: str) -> bool:
    """Reads an answer by the official rule.

    The text before the first "." is freed of "," and split at single spaces; it is a no if one piece is exactly
    "No", "no" or "not", else a yes.

    Source: AoiDragon/POPE evaluate.py @ 08d957b.
    """
    pieces = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in pieces for word in ("No", "no", "not"))


def confusion(texts: Iterable[str], labels: Iterable[str]) -> Confusion:
    """Counts answers against labels, both in the same order.

    Raises:
        ValueError: there are more of one than of the other.
    """
    counts = {(said, true): 0 for said in (True, False) for true in (True, False)}
    for text, label in zip(texts, labels, strict=True):
        counts[says_yes(text), label != "no"] += 1
    return Confusion(counts[True, True], counts[True, False], counts[False, False], counts[False, True])


def read_questions(folder: Path, prefix: str = "") -> list[PopeQuestion]:
    """Reads the three files `{prefix}_pope_{random,popular,adversarial}.json` of a folder (JSON Lines or one array).

    Args:
        folder: The folder; other files in it do no harm.
        prefix: How the file names begin; needed only where the folder holds several sets.

    Returns:
        The questions, split by split, in file order.

    Raises:
        DataFormatError: not exactly one file per split, a row without the four keys, or an id used twice.
    """
    questions: list[PopeQuestion] = []
    for split in SPLITS:
        path = _split_file(folder, prefix, split)
        for number, row in enumerate(read_jsonl(path), 1):
            try:
                name, image, text, label = (row[key] for key in ("question_id", "image", "text", "label"))
            except KeyError as error:
                raise DataFormatError(
                    f"{path} row {number} lacks {error}; question_id, image, text and label are expected"
                ) from None
            if not all(isinstance(value, str) for value in (image, text, label)):
                raise DataFormatError(f"{path} row {number}: image, text and label must be text")
            questions.append(PopeQuestion(f"{split}/{name}", image, text, split, label))
    if len({question.id for question in questions}) < len(questions):
        raise DataFormatError(f"{folder}: a question_id occurs twice in one file; answers could not be told apart")
    return questions


def _split_file(folder: Path, prefix: str, split: str) -> Path:
    if not folder.is_dir():
        raise DataFormatError(
            f"{folder} is not a folder; give one with POPE's question files (the embedded world's: `make quickstart`)"
        )
    found = sorted(folder.glob(f"{prefix}*pope*_{split}.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataFormatError(
            f"{folder} must hold one file *_pope_{split}.json{f' that begins with {prefix!r}' if prefix else ''}; "
            f"found: {names}. Give the folder with all three splits, and the prefix if it holds several sets."
        )
    return found[0]


def answers_for(questions: Sequence[PopeQuestion], answers: Iterable[Answer]) -> list[str]:
    """Finds the answer to each question; ids as here (`random/7`) or as in LLaVA's files (10000007).

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions.
    """
    return join(questions, [_with_own_id(answer) for answer in answers], same_prompt=_bare)


def _with_own_id(answer: Answer) -> Answer:
    # A bare number says too little: another version of the files has other questions under it. So the prompt must
    # be there to check.
    prompt = getattr(answer, "prompt", None)
    if not answer.question_id.isdigit() or prompt is None:
        return answer
    number = int(answer.question_id)
    split, first = max(
        ((split, first) for split, first in _LLAVA_FIRST_ID.items() if first < number or first == 0),
        key=lambda row: row[1],
    )
    return RecordedAnswer(f"{split}/{number - first}", answer.text, getattr(answer, "image", None), prompt)


def _bare(prompt: str) -> str:
    """Takes away what does not make another question: LLaVA's suffix, and the old files' typo "imange"."""
    bare = prompt.replace("<image>", "").replace(SUFFIX, "").replace("imange", "image")
    return re.sub(r"\s+", " ", bare).strip()


def score(questions: Sequence[PopeQuestion], answers: Iterable[Answer]) -> list[Metric]:
    """Scores answers by the official rule.

    Args:
        questions: All questions of the set, or those of some splits.
        answers: Exactly one answer to each question, in any order.

    Returns:
        `<split>/accuracy|precision|recall|f1|yes_ratio`, then `f1_macro` and `accuracy_macro` (unweighted means over
        the splits; LLaVA's "POPE 85.9" is the former) and `f1_pooled` (all answers counted together).

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions.
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("there are no questions to score")
    texts = answers_for(questions, answers)
    counts = {}
    for split in dict.fromkeys(question.split for question in questions):
        rows = [(t, q.label) for t, q in zip(texts, questions, strict=True) if q.split == split]
        counts[split] = confusion((text for text, _ in rows), (label for _, label in rows))
    pooled = sum(counts.values(), Confusion(0, 0, 0, 0))
    return [
        *(metric for split, part in counts.items() for metric in part.metrics(split)),
        Metric("f1_macro", sum(part.f1 for part in counts.values()) / len(counts), pooled.n, "higher"),
        Metric("accuracy_macro", sum(part.accuracy for part in counts.values()) / len(counts), pooled.n, "higher"),
        Metric("f1_pooled", pooled.f1, pooled.n, "higher"),
    ]
