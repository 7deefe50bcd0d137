"""Answer files, and the join of answers to questions.

The official scorers pair answers with labels by line position and stop at the shorter list, so that another version of
the question file gives a plausible score near chance (AoiDragon/POPE issue 17). Here a join is by id, is checked
against image and prompt where the answer file has them, and is whole or refused.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.files import read_jsonl
from llava_ohd.records import Answer, Question

__all__ = ["RecordedAnswer", "join", "mismatch", "read_answers", "same_image", "short", "whole_characters"]


_CUT_OFF = "the last ones, as in a file that was cut off: copy or make it again"


@dataclass(frozen=True)
class RecordedAnswer(Answer):
    """An answer as it stands in a file, with what was asked, where the file says so; the id is "" where there is none.

    Attributes:
        image: File name of the image, or None.
        prompt: What was asked, or None.
    """

    image: str | None = None
    prompt: str | None = None


def read_answers(path: Path) -> list[RecordedAnswer]:
    """Reads answers in the form of this package or LLaVA, of POPE, or of OHD-Caps; JSON Lines or one array.

    This package and LLaVA: `question_id`, `text` (the answer), optionally `image` and `prompt`. POPE: `question`,
    `answer`. OHD-Caps: the question's row (`question_id`, `image`, `text`: the question) with `answer`.

    Raises:
        DataFormatError: missing, empty, not JSON Lines, or a row that is none of the three.
    """
    return [_recorded(path, number, row) for number, row in enumerate(read_jsonl(path, unique_keys=True), 1)]


def _recorded(path: Path, number: int, row: dict[str, Any]) -> RecordedAnswer:
    if "answer" in row:
        name, text, prompt = row.get("question_id", ""), row["answer"], row.get("question", row.get("text"))
        known = prompt is not None
    else:
        name, text, prompt = row.get("question_id"), row.get("text"), row.get("prompt")
        known = name is not None
    if not known or not isinstance(text, str):
        raise DataFormatError(
            f"{path} row {number} has the keys {short(sorted(row)[:9])}; question_id and text (a string) are expected, "
            "or question and answer"
        )
    image = row.get("image")
    if (
        not isinstance(name, str | int)
        or isinstance(name, bool)
        or not all(value is None or isinstance(value, str) for value in (image, prompt))
    ):
        raise DataFormatError(
            f"{path} row {number}: the question_id must be a number or text, image and prompt must be text"
        )
    whole_characters(path, number, str(name), text, image, prompt)
    return RecordedAnswer(str(name), text, image, prompt)


def whole_characters(path: Path, number: int, *texts: str | None) -> None:
    """Refuses a row with half a character: what was said is not known, and no file can hold it.

    Raises:
        DataFormatError: there is one.
    """
    try:
        "".join(text for text in texts if text).encode()
    except UnicodeEncodeError as error:
        raise DataFormatError(
            f"{path} row {number} has half a character (a lone surrogate): {error}; write the file again as UTF-8"
        ) from None


def short(value: object, length: int = 160) -> str:
    """Returns how a message shows a value: as Python writes it, its end left out where it is long."""
    shown = repr(value[: 2 * length] if isinstance(value, str) else value)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."


def join(
    questions: Sequence[Question],
    answers: Iterable[Answer],
    *,
    same_prompt: Callable[[str], str] = str.strip,
    allowed: str = "",
) -> list[str]:
    """Finds the answer to each question.

    Args:
        questions: Questions with distinct ids.
        answers: Answers in any order; `RecordedAnswer`s are also compared by image and prompt.
        same_prompt: Two prompts are the same question if this function maps them to the same text.
        allowed: Says what may stand around a question, for the message.

    Returns:
        The answer texts in the order of `questions`.

    Raises:
        AnswersMismatch: answers are missing, left over, given twice, or to another image or prompt.
    """
    answers = list(answers)
    counts = Counter(answer.question_id for answer in answers)
    by_id = {answer.question_id: answer for answer in answers}
    known = {question.id: question for question in questions}
    missing = [_shown(question) for question in questions if question.id not in by_id]
    extra = [f"{name!r}" for name in by_id if name not in known]
    twice = [f"{name!r}" for name, count in counts.items() if count > 1]
    other = [
        f"{_shown(question)} was asked as {_asked(by_id[name])}"
        for name, question in known.items()
        if name in by_id and not _same(question, by_id[name], same_prompt)
    ]
    if missing or extra or twice or other:
        cut_off = bool(missing) and all(question.id not in by_id for question in questions[-len(missing) :])
        said = allowed if other else ""
        raise mismatch(len(questions), missing, extra, twice, other, allowed=said, cut_off=cut_off)
    return [by_id[question.id].text for question in questions]


def same_image(name: str, given: str) -> bool:
    """Says whether a path that an answer file gives is that of an image of the set, in whatever folder."""
    given, name = given.replace("\\", "/"), name.lstrip("/")
    return given == name or given.endswith(f"/{name}")


def _same(question: Question, answer: Answer, same_prompt: Callable[[str], str]) -> bool:
    if not isinstance(answer, RecordedAnswer):
        return True
    if answer.image is not None and not same_image(question.image, answer.image):
        return False
    return answer.prompt is None or same_prompt(answer.prompt) == same_prompt(question.prompt)


def _shown(question: Question) -> str:
    return f"{question.id!r} ({question.image}: {question.prompt!r})"


def _asked(answer: Answer) -> str:
    return f"{short(getattr(answer, 'image', None) or 'image not given')}: {short(getattr(answer, 'prompt', None))}"


def mismatch(
    total: int,
    missing: Sequence[str] = (),
    extra: Sequence[str] = (),
    twice: Sequence[str] = (),
    other: Sequence[str] = (),
    *,
    allowed: str = "",
    cut_off: bool = False,
) -> AnswersMismatch:
    """Makes the error from what is missing, left over, given twice, and to another question, each shown as text.

    Args:
        total: Number of questions.
        missing: Questions without an answer.
        extra: Answers without a question.
        twice: Questions with several answers.
        other: Questions whose answers are to another one.
        allowed: Says what may stand around a question, where that is what is wrong.
        cut_off: Whether all that is missing stands at the end.
    """
    parts = [f"{total - len(missing)} of {total} questions answered"]
    for found, kind, remedy in (
        (
            missing,
            "missing",
            _CUT_OFF if cut_off else "answer these, too; if the file was cut off, copy or make it again",
        ),
        (extra, "without a question", "score them against the question set they were made from"),
        (twice, "answered more than once", "keep one answer to each"),
        (other, "to a different question", "use the version of the question files that was answered"),
    ):
        if found:
            shown = "; ".join(text if len(text) <= 400 else f"{text[:397]}..." for text in found[:3])
            parts.append(f"{len(found)} {kind}, first: {shown} ({remedy})")
    return AnswersMismatch(". ".join([*parts, *([allowed] if allowed else [])]) + ". Nothing was scored.")
