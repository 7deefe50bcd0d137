"""answers.jsonl: written as the answers come, whole only under its own name, and never answered twice.

While answering, lines are appended to answers.partial.jsonl; at the end answers.jsonl takes its place, in the order of
the questions. A run that was killed goes on: a torn last line is dropped, and lines of another model or other settings
do not count.

A row: {"question_id", "image", "prompt", "text", "model_id", "metadata": {"run": what it was answered with, ...}}
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_ohd.files import storage_errors, write_jsonl
from llava_ohd.progress import Progress
from llava_ohd.records import Answerer, Question

__all__ = ["answer_to_file", "recorded"]

_AT_ONCE = 32  # answers appended together


def answer_to_file(
    answerer: Answerer,
    questions: Sequence[Question],
    path: Path,
    *,
    run: str,
    model_id: str,
    max_new_tokens: int,
    label: str = "answering",
) -> None:
    """Answers what is not answered yet, and writes the file.

    Args:
        answerer: Answers.
        questions: All questions, ids distinct.
        path: `answers.jsonl`.
        run: Digest of everything that decides the answers: model, prompt, decoding.
        model_id: Name of the model in the rows.
        max_new_tokens: Tokens at which an answer is cut.
        label: What the progress bar says.

    Raises:
        StorageError: no room, not writable.
        ImageError: an image is missing or truncated; what is answered stays.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    asked = {question.id: question for question in questions}
    done = recorded(path, asked, run) | recorded(partial, asked, run)
    left = [question for question in questions if question.id not in done]
    progress = Progress(label, len(questions))
    progress.update(len(done))
    if left:
        write_jsonl(partial, done.values())  # without torn and foreign lines
        with storage_errors(partial), partial.open("a", encoding="utf-8") as file:
            for rows in _batches(answerer, left, run, model_id, max_new_tokens):
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                file.flush()
                done |= {row["question_id"]: row for row in rows}
                progress.update(len(done))
    write_jsonl(path, [done[question.id] for question in questions])
    partial.unlink(missing_ok=True)


def _batches(
    answerer: Answerer, questions: list[Question], run: str, model_id: str, max_new_tokens: int
) -> Iterator[list[dict[str, Any]]]:
    asked = {question.id: question for question in questions}
    rows: list[dict[str, Any]] = []
    for answer in answerer.answer(questions, max_new_tokens):
        question = asked[answer.question_id]
        head = {"question_id": question.id, "image": question.image, "prompt": question.prompt, "text": answer.text}
        rows.append(head | {"model_id": model_id, "metadata": {"run": run, **answer.metadata}})
        if len(rows) >= _AT_ONCE:
            yield rows
            rows = []
    if rows:
        yield rows


def recorded(path: Path, asked: dict[str, Question], run: str) -> dict[str, dict[str, Any]]:
    """Returns the rows of a file that answer these questions with this run, by question id.

    Lines that are torn, of another run, or of another question under the same id are left out.
    """
    if not path.is_file():
        return {}
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            question = asked[row["question_id"]]
            same = (row["image"], row["prompt"], row["metadata"]["run"]) == (question.image, question.prompt, run)
        except (ValueError, KeyError, TypeError):
            continue
        if same and isinstance(row.get("text"), str):
            rows[question.id] = row
    return rows
