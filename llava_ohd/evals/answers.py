"""Answer files, and the join of answers to questions.

The official scorers pair answers with labels by line position and stop at the shorter list, so that another version of
the question file gives a plausible score near chance (AoiDragon/POPE issue 17). Here a join is by id, is checked
against image and prompt where the answer file has them, and is whole or refused.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.files import read_jsonl
from llava_ohd.records import Answer, Question

__all__ = ["RecordedAnswer", "join", "read_answers"]


@dataclass(frozen=True)
class RecordedAnswer(Answer):
    """An answer as it stands in a file, with what was asked, where the file says so.

    Attributes:
        image: File name of the image, or None.
        prompt: What was asked, or None.
    """

    image: str | None = None
    prompt: str | None = None


def read_answers(path: Path) -> list[RecordedAnswer]:
    """Reads `answers.jsonl` of this package or of LLaVA: `question_id`, `text`, optionally `image` and `prompt`.

    Raises:
        DataFormatError: missing, empty, not JSON Lines, or a row without `question_id` or a `text` that is text.
    """
    answers = []
    for number, row in enumerate(read_jsonl(path), 1):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise DataFormatError(
                f"{path} row {number} has the keys {sorted(row)}; question_id and text (a string) are expected"
            )
        answers.append(RecordedAnswer(str(row["question_id"]), row["text"], row.get("image"), row.get("prompt")))
    return answers


def join(
    questions: Sequence[Question],
    answers: Iterable[Answer],
    *,
    same_prompt: Callable[[str], str] = str.strip,
) -> list[str]:
    """Finds the answer to each question.

    Args:
        questions: Questions with distinct ids.
        answers: Answers in any order; `RecordedAnswer`s are also compared by image and prompt.
        same_prompt: Two prompts are the same question if this function maps them to the same text.

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
        raise AnswersMismatch(_message(len(questions), missing, extra, twice, other))
    return [by_id[question.id].text for question in questions]


def _same(question: Question, answer: Answer, same_prompt: Callable[[str], str]) -> bool:
    if not isinstance(answer, RecordedAnswer):
        return True
    same_image = answer.image is None or answer.image == question.image
    return same_image and (answer.prompt is None or same_prompt(answer.prompt) == same_prompt(question.prompt))


def _shown(question: Question) -> str:
    return f"{question.id!r} ({question.image}: {question.prompt!r})"


def _asked(answer: Answer) -> str:
    return f"{getattr(answer, 'image', None) or 'image not given'}: {getattr(answer, 'prompt', None)!r}"


def _message(total: int, missing: list[str], extra: list[str], twice: list[str], other: list[str]) -> str:
    parts = [f"{total - len(missing)} of {total} questions answered"]
    for count, kind, remedy in (
        (missing, "missing", "answer again with the same --out, it goes on where it stopped"),
        (extra, "without a question", "score them against the question set they were made from"),
        (twice, "answered more than once", "delete the answers file and answer again"),
        (other, "to a different question", "use the version of the question files that was answered"),
    ):
        if count:
            parts.append(f"{len(count)} {kind}, first: {'; '.join(count[:3])} ({remedy})")
    return ". ".join(parts) + ". Nothing was scored."
