"""answers.jsonl after a kill, a torn line, another model."""

import json
from collections import Counter
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
    answer_to_file(lambda: answerer, QUESTIONS, path, run=run, model_id="llava", max_new_tokens=3)


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


def rank_asks(answerer: Echo, path: Path, rank: int, ranks: int) -> None:
    more = {"model_id": "llava", "max_new_tokens": 3, "rank": rank, "ranks": ranks}
    answer_to_file(lambda: answerer, QUESTIONS, path, run="run", **more)  # type: ignore[arg-type]


def test_ranks_share_the_images_and_make_the_file_of_one(tmp_path: Path) -> None:
    ask(Echo(), tmp_path / "one/answers.jsonl")
    path, answerers = tmp_path / "three/answers.jsonl", [Echo(), Echo(), Echo()]
    for rank in (2, 1, 0):
        rank_asks(answerers[rank], path, rank, 3)
    assert path.read_bytes() == (tmp_path / "one/answers.jsonl").read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]
    by_image = Counter(question.image for question in QUESTIONS)
    expected = [sum(by_image[f"{image}.png"] for image in range(rank, 7, 3)) for rank in range(3)]
    assert [answerer.asked for answerer in answerers] == expected


def test_a_killed_run_goes_on_with_another_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ohd.answering.recorded._AT_ONCE", 8)
    path = tmp_path / "answers.jsonl"
    rank_asks(Echo(), path, 1, 3)
    for rank in (2, 0):
        with pytest.raises(KeyboardInterrupt):
            rank_asks(Echo(stop=20), path, rank, 3)
    kept = sum(len(file.read_text().splitlines()) for file in tmp_path.iterdir())
    assert kept == 29 + 16 + 16
    rest = [Echo(), Echo()]
    for rank in (1, 0):
        rank_asks(rest[rank], path, rank, 2)
    assert sum(answerer.asked for answerer in rest) == 100 - kept
    ask(Echo(), tmp_path / "one/answers.jsonl")
    assert path.read_bytes() == (tmp_path / "one/answers.jsonl").read_bytes()


def test_rank_0_waits_for_the_share_of_this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank left behind under another number of ranks is no share; it is waited for."""
    path, looks = tmp_path / "answers.jsonl", []
    rank_asks(Echo(), path, 1, 3)

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            rank_asks(Echo(), path, 1, 2)

    monkeypatch.setattr("llava_ohd.answering.recorded.time.sleep", look)
    rank_asks(Echo(), path, 0, 2)
    assert len(looks) == 3
    assert len(path.read_text().splitlines()) == 100


def test_a_line_separator_in_an_answer_tears_no_row(tmp_path: Path) -> None:
    class Separated(Echo):
        def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
            return (Answer(one.question_id, "a\u2028b\x85c") for one in super().answer(questions, max_new_tokens))

    ask(Separated(), tmp_path / "answers.jsonl")
    again = Echo()
    ask(again, tmp_path / "answers.jsonl")
    assert again.asked == 0
