"""Compares recorded answers with those of plain generation, one question at a time.

In float32 none differs. In half precision sums depend on the size of the batch, and near ties fall either way (LLaVA
issue 1928): how often is what is counted here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from llava_ohd.files import read_jsonl
from llava_ohd.progress import track
from llava_ohd.records import Answer, Question

__all__ = ["OneByOne", "verify"]

_SHOWN = 5  # differing answers
_LONGEST = 80  # characters of each


class OneByOne(Protocol):
    """Anything that can answer the plain way."""

    dtype: str

    def one_by_one(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[Answer]:
        """Yields one answer per question, in order."""
        ...


def verify(
    answerer: OneByOne, questions: Sequence[Question], path: Path, count: int, max_new_tokens: int
) -> dict[str, Any]:
    """Answers some questions again, one by one, and prints how many answers differ.

    Args:
        answerer: Who answered.
        questions: All of them.
        path: Their answers.jsonl.
        count: How many are asked again: those with the smallest digest of their id, in whatever order they come.
        max_new_tokens: As when they were answered.

    Returns:
        `questions`: how many were asked, `differing`: how many answers differ, `dtype`: of the model.
    """
    texts = {row["question_id"]: row["text"] for row in read_jsonl(path)}
    chosen = sorted(questions, key=lambda question: hashlib.sha256(question.id.encode()).digest())[:count]
    again = answerer.one_by_one(chosen, max_new_tokens)
    label = f"answering {len(chosen)} questions one by one"
    differing = [answer for answer in track(again, label, len(chosen)) if answer.text != texts[answer.question_id]]
    print(f"verified: {len(differing)} of {len(chosen)} answers differ from one-by-one generation ({answerer.dtype})")
    for answer in differing[:_SHOWN]:
        batched = texts[answer.question_id]
        print(f"  {answer.question_id}: {batched[:_LONGEST]!r}, one by one {answer.text[:_LONGEST]!r}")
    return {"questions": len(chosen), "differing": len(differing), "dtype": answerer.dtype}
