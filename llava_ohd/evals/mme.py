"""MME, hallucination subset: existence, count, position and color of objects, two questions on each image.

Paper: arXiv 2306.13394. Rule: calculation.py of MME's eval_tool (BradyFU/Awesome-Multimodal-Large-Language-Models,
branch Evaluation; a zip without versions). Higher is better.

accuracy is the share of right answers, accuracy_plus the share of images with both right, score 100 times their sum: up
to 200 per task, 800 in all. One of an image's questions is a yes and one a no, so that a constant answer gets 50 + 0.

Kept: an answer is read in lower case, exactly, or from "yes", else "no", in its first four characters ("Not" and "Know"
are a no, "**Yes**" is nothing); others are wrong. Not kept: the tool pairs neighbouring lines, whatever their images,
and leaves out lines that have not four fields; here questions are grouped by image, and such lines are refused.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals.answers import short
from llava_ohd.evals.yes_no import unread_line
from llava_ohd.files import read_text
from llava_ohd.records import Metric

__all__ = ["IMAGES", "RULE", "TASKS", "MmeAnswer", "first_four", "notes", "read_answers", "score"]

RULE = "official (MME eval_tool calculation.py)"
TASKS = ("existence", "count", "position", "color")
IMAGES = 30  # of each task
_UNREAD = 'without "yes" and "no" in the first four characters'


@dataclass(frozen=True)
class MmeAnswer:
    """A line of an answer file: whose label is part of it.

    Attributes:
        image: File name.
        question: What was asked.
        label: Whether yes is right.
        text: The answer.
    """

    image: str
    question: str
    label: bool
    text: str


def first_four(text: str) -> bool | None:
    """Reads the first four characters: yes (True), no (False), neither (None)."""
    start = text.lower()[:4]
    return True if "yes" in start else (False if "no" in start else None)


def read_answers(folder: Path) -> dict[str, list[MmeAnswer]]:
    """Reads `{existence,count,position,color}.txt`; lines are image, question, label (Yes or No) and answer, by tabs.

    Returns:
        The answers of the tasks that are there.

    Raises:
        DataFormatError: no task is there, or a line has not four fields or another label.
        AnswersMismatch: a question twice, an image with other than two or with two of one label, or more images than
            the task has.
    """
    files = {task: folder / f"{task}.txt" for task in TASKS}
    there = {task: file for task, file in files.items() if file.exists()}
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "does not exist"
        raise DataFormatError(f"{folder} {wrong}; give the folder that has {', '.join(f.name for f in files.values())}")
    if not there:
        raise DataFormatError(
            f"{folder} has none of {', '.join(file.name for file in files.values())}; give the folder of answers in "
            "MME's form (LLaVA: convert_answer_to_mme.py makes it)"
        )
    return {task: _read_task(file) for task, file in there.items()}


def _read_task(file: Path) -> list[MmeAnswer]:
    found: dict[tuple[str, str], MmeAnswer] = {}
    images: dict[str, int] = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 4 or fields[2].lower() not in ("yes", "no"):
            raise DataFormatError(
                f"{file} line {number} is {line[:120]!r}; image, question, Yes or No, and answer are expected, with a "
                "tab between them and none inside"
            )
        image, question, label, text = fields
        if (image, question) in found:
            raise AnswersMismatch(
                f"{file} line {number} answers {short(image)[1:-1]}: {short(question)} once more; keep one answer"
            )
        found[image, question] = MmeAnswer(image, question, label.lower() == "yes", text)
        images[image] = images.get(image, 0) + 1
    if odd := [f"{short(image)[1:-1]} has {count}" for image, count in images.items() if count != 2]:
        raise AnswersMismatch(
            f"{file}: each image has two questions, but {'; '.join(odd[:3])} ({len(odd)} such images)"
        )
    _refuse_equal_labels(file, found.values())
    if len(images) > IMAGES:
        raise AnswersMismatch(f"{file} answers about {len(images)} images; MME's {file.stem} has {IMAGES}")
    return list(found.values())


def _refuse_equal_labels(file: Path, rows: Iterable[MmeAnswer]) -> None:
    """Refuses an image whose two questions have one label: a constant answer would get accuracy_plus for it."""
    labels: dict[str, set[bool]] = {}
    for row in rows:
        labels.setdefault(row.image, set()).add(row.label)
    if equal := [(image, "Yes" if True in found else "No") for image, found in labels.items() if len(found) < 2]:
        image, label = equal[0]
        raise AnswersMismatch(
            f"{file}: one of an image's questions is a Yes and one a No, but both of {short(image)[1:-1]} are a "
            f"{label} ({len(equal)} such images); take the labels from MME's files again"
        )


def score(answers: dict[str, list[MmeAnswer]]) -> list[Metric]:
    """Scores the tasks that are there.

    Returns:
        `<task>/accuracy`, `<task>/accuracy_plus` (fractions), `<task>/score` (points, 0 to 200); `score` (to 800) if
        all four are there; then, describing, `yes_ratio`, `unparsed`, `always_yes/score`, `always_no/score`.
    """
    rows = [row for task in answers.values() for row in task]
    n = len(rows)
    said = [first_four(row.text) for row in rows]
    constant = [
        replace(metric, name=f"{name}/{metric.name}", better="none")
        for name, word in (("always_yes", True), ("always_no", False))
        for metric in _scores(answers, lambda _, word=word: word)  # type: ignore[misc]
        if metric.name == "score"
    ]
    return [
        *_scores(answers, first_four),
        Metric("yes_ratio", said.count(True) / n, n, "none"),
        Metric("unparsed", said.count(None) / n, n, "none"),
        *constant,
    ]


def notes(answers: dict[str, list[MmeAnswer]]) -> list[str]:
    """Says aloud when answers could not be read."""
    said = {f"{task}: {row.image}: {row.question}": row.text for task, rows in answers.items() for row in rows}
    unread = unread_line({short(name)[1:-1]: text for name, text in said.items()}, first_four, _UNREAD)
    return [f"{unread}; they count as wrong"] if unread else []


def _scores(answers: dict[str, list[MmeAnswer]], read: Callable[[str], bool | None]) -> list[Metric]:
    metrics: list[Metric] = []
    for task, rows in answers.items():
        right = [read(row.text) == row.label for row in rows]
        both = _both(zip((row.image for row in rows), right, strict=True))
        accuracy, plus = sum(right) / len(right), sum(both) / len(both)
        metrics += [
            Metric(f"{task}/accuracy", accuracy, len(right), "higher"),
            Metric(f"{task}/accuracy_plus", plus, len(both), "higher"),
            Metric(f"{task}/score", accuracy * 100 + plus * 100, len(both), "higher"),
        ]
    if set(answers) == set(TASKS):
        points = [metric for metric in metrics if metric.name.endswith("/score")]
        total = sum(metric.value for metric in points)
        metrics.append(Metric("score", total, sum(metric.n for metric in points), "higher"))
    return metrics


def _both(rows: Iterable[tuple[str, bool]]) -> list[bool]:
    found: dict[str, bool] = {}
    for image, right in rows:
        found[image] = found.get(image, True) and right
    return list(found.values())
