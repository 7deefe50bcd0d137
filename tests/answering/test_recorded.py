"""answers.jsonl after a kill, a torn line, another model."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llava_ohd.answering.recorded import answer_to_file, recorded
from llava_ohd.records import Answer, Question

QUESTIONS = [Question(f"random/{i}", f"{i % 7}.png", f"Is there a thing {i}?") for i in range(100)]


class Echo:
    """Answers with the prompt, in reverse order; stops like a killed process after `stop` answers."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.asked = stop, 0

    def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
        for question in reversed(list(questions)):
            if self.asked == self.stop:
                raise KeyboardInterrupt
            self.asked += 1
            yield Answer(question.id, f"{question.prompt} {max_new_tokens}")


def ask(answerer: Echo, path: Path, run: str = "run") -> None:
    answer_to_file(answerer, QUESTIONS, path, run=run, model_id="llava", max_new_tokens=3)


def test_a_whole_file_in_the_order_of_the_questions(tmp_path: Path) -> None:
    path = tmp_path / "out" / "answers.jsonl"
    ask(Echo(), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [question.id for question in QUESTIONS]
    assert rows[5] == {
        "question_id": "random/5",
        "image": "5.png",
        "prompt": "Is there a thing 5?",
        "text": "Is there a thing 5? 3",
        "model_id": "llava",
        "metadata": {"run": "run"},
    }
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Echo(stop=70), path)
    assert not path.exists()
    partial = tmp_path / "answers.partial.jsonl"
    kept = len(partial.read_text().splitlines())
    assert kept == 64
    torn = partial.read_text()[:-10]
    partial.write_text(torn)
    rest = Echo()
    ask(rest, path)
    assert rest.asked == 100 - (kept - 1)
    assert len(recorded(path, {question.id: question for question in QUESTIONS}, "run")) == 100
    assert not partial.exists()


def test_nothing_is_asked_twice_unless_the_run_is_another(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    ask(Echo(), path)
    again = Echo()
    ask(again, path)
    assert again.asked == 0
    other = Echo()
    ask(other, path, run="another model")
    assert other.asked == 100


def test_foreign_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked = {question.id: question for question in QUESTIONS}
    good = {"question_id": "random/1", "image": "1.png", "prompt": "Is there a thing 1?", "text": "Yes"}
    good["metadata"] = {"run": "run"}  # type: ignore[assignment]
    lines = [
        json.dumps(good | {"question_id": "random/1000"}),
        json.dumps(good | {"prompt": "Another question?"}),
        json.dumps(good | {"image": "2.png"}),
        json.dumps(good | {"text": None}),
        json.dumps(good | {"metadata": {}}),
        '["a list"]',
        "3",
        json.dumps(good),
        json.dumps(good)[:-3],
    ]
    path.write_text("\n".join(lines))
    assert recorded(path, asked, "run") == {"random/1": good}
