"""answers.jsonl: written as the answers come, whole only under its own name, and never answered twice.

While answering, lines are appended to answers.partial.jsonl; at the end answers.jsonl takes its place, in the order of
the questions. A run that was killed goes on: a torn last line is dropped, and lines of another model or other settings
do not count.

Several ranks (torchrun, accelerate launch) share the images out and meet on disk alone: rank R appends to
answers.partial-R.jsonl, which is answers.done-R.jsonl when its share is whole; rank 0 waits for these and makes the one
file, the same whatever the number of ranks. If a rank dies the launcher ends the others, and the same command goes on,
with any number of ranks.

A row: {"question_id", "image", "prompt", "text", "model_id", "metadata": {"run": what it was answered with, ...}}
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl, storage_errors, write_jsonl
from llava_ohd.progress import Progress
from llava_ohd.records import Answerer, Question

__all__ = ["answer_to_file", "make_way", "recorded", "row_of_run"]

_AT_ONCE = 32  # answers appended together
_LOOK = 0.5  # seconds between looks whether another rank is done


def answer_to_file(
    answerer: Callable[[], Answerer],
    questions: Sequence[Question],
    path: Path,
    *,
    run: str,
    model_id: str,
    max_new_tokens: int,
    label: str = "answering",
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Answers what is not answered yet, and writes the file.

    Args:
        answerer: Gives who answers; called where something is left to answer.
        questions: All questions, ids distinct.
        path: `answers.jsonl`.
        run: Digest of everything that decides the answers: model, prompt, decoding.
        model_id: Name of the model in the rows.
        max_new_tokens: Tokens at which an answer is cut.
        label: What the progress bar says.
        rank: Number of this process; one above 0 returns when its share is whole.
        ranks: Processes that run this together, each with the same questions.

    Raises:
        StorageError: no room, not writable.
        ImageError: an image is missing or truncated; what is answered stays.
    """
    asked = {question.id: question for question in questions}
    own = asked if ranks == 1 else {question.id: question for question in _share(questions, rank, ranks)}
    partial, whole = (_beside(path, f"{state}-{rank}" if rank else state) for state in ("partial", "done"))
    done = _read(path, own, run)
    left = [question for question in own.values() if question.id not in done]
    if left:
        write_jsonl(partial, (recorded(partial, asked, run) | done).values())  # without torn and foreign lines
        progress = Progress(label if ranks == 1 else f"{label}, {len(own)} of them on rank 0", len(own))
        progress.update(len(done))
        with storage_errors(partial), partial.open("a", encoding="utf-8") as file:
            for rows in _batches(answerer(), left, run, model_id, max_new_tokens):
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                file.flush()
                done |= {row["question_id"]: row for row in rows}
                if rank == 0:
                    progress.update(len(done))
    if rank:
        write_jsonl(whole, (recorded(whole, asked, run) | done).values())  # maybe of another number of ranks
        partial.unlink(missing_ok=True)
        return
    for other in range(1, ranks):
        done |= _wait(_beside(path, f"done-{other}"), _share(questions, other, ranks), run)
    write_jsonl(path, [done[question.id] for question in questions])
    for file_beside in _all_beside(path):
        file_beside.unlink(missing_ok=True)


def _share(questions: Sequence[Question], rank: int, ranks: int) -> list[Question]:
    """Returns the questions of a rank: of every `ranks`-th image all of them, so that each image is seen once."""
    images = {name: place % ranks for place, name in enumerate(dict.fromkeys(one.image for one in questions))}
    return [question for question in questions if images[question.image] == rank]


def _beside(path: Path, state: str) -> Path:
    return path.with_name(f"{path.stem}.{state}{path.suffix}")


def _all_beside(path: Path) -> list[Path]:
    return [file for state in ("partial", "done") for file in path.parent.glob(f"{path.stem}.{state}*{path.suffix}")]


def _read(path: Path, asked: dict[str, Question], run: str) -> dict[str, dict[str, Any]]:
    """Returns what is answered, in the file or in what any number of ranks left beside it."""
    return {name: row for file in [*_all_beside(path), path] for name, row in recorded(file, asked, run).items()}


def _wait(file: Path, share: Sequence[Question], run: str) -> dict[str, dict[str, Any]]:
    """Returns the answers of another rank when it has all of them."""
    asked = {question.id: question for question in share}
    while len(rows := recorded(file, asked, run)) < len(asked):
        time.sleep(_LOOK)
    return rows


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
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # some models say U+2028
    except FileNotFoundError:  # maybe another rank has just renamed it
        return {}
    found = (row_of_run(line, asked, run) for line in lines)
    return {row["question_id"]: row for row in found if row is not None and isinstance(row.get("text"), str)}


def row_of_run(line: str | bytes, asked: dict[str, Question], run: str) -> dict[str, Any] | None:
    """Returns the row of a line if it answers one of these questions in this run, else None, as for a torn line."""
    try:
        row: dict[str, Any] = json.loads(line)
        question = asked[row["question_id"]]
        same = (row["image"], row["prompt"], row["metadata"]["run"]) == (question.image, question.prompt, run)
    except (ValueError, KeyError, TypeError):
        return None
    return row if same else None


def make_way(path: Path, run: str, model: str) -> None:
    """Moves what another run of the same model left in a folder into replaced/, so that nothing is lost.

    Args:
        path: `answers.jsonl`, results.json beside it.
        run: Of the answers to come.
        model: `path` of the model in results.json.

    Raises:
        DataFormatError: the answers are those of another model or not made here; or the folder has other results.
        StorageError: not writable, or no folder.
    """
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    other = f"give another folder as --out, or remove {path.parent}"
    results = path.with_name("results.json")
    before = (read_json(results).get("model") or {}) if results.is_file() else {}
    if before and before.get("path") != model:
        raise DataFormatError(f"{path.parent} has results of the model {before.get('path')}, not of {model}; {other}")
    if not path.is_file():
        return
    try:
        made = {row["metadata"]["run"] for row in read_jsonl(path)}
    except (DataFormatError, KeyError, TypeError):
        made = set()
    if not made:
        raise DataFormatError(f"{path} holds answers that were not made here, and would be lost; {other}")
    if run in made:
        return
    with storage_errors(path.parent):
        aside = path.parent / "replaced" / next(iter(made))[:12]
        aside.mkdir(parents=True, exist_ok=True)
        for file in (path, results):
            if file.is_file():
                file.replace(aside / file.name)
    print(f"other settings than before; earlier answers: {aside}")
