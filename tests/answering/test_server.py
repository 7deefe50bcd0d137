"""Questions asked of a server: all answered whatever it does, none twice, and its refusal said."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ohd.answering.server import data_url
from llava_ohd.answering.session import ask_server
from llava_ohd.errors import DataFormatError, ImageError, StageFailed
from llava_ohd.ohd_caps import endpoint
from llava_ohd.ohd_caps.endpoint import EndpointConfig
from llava_ohd.records import Question

SERVER = Path(__file__).with_name("vision_server.py")
QUESTIONS = [Question(str(n), f"{'red' if n % 2 else 'blue'}.png", f"what is {n // 3}") for n in range(30)]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EndpointConfig]]:
    """Starts a server with the given options; its log is tmp_path/log."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    for color in ("red", "blue"):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{color}.png")
    processes = []

    def start(*options: str) -> EndpointConfig:
        command = [sys.executable, str(SERVER), str(tmp_path / "log"), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        return EndpointConfig(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", "llava", concurrency=4)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("options", [(), ("--faults",)])
def test_every_question_is_answered(
    serve: Callable[..., EndpointConfig], tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "out/answers.jsonl"
    asked = ask_server(serve(*options), tmp_path, 7, QUESTIONS, path, suffix=" x")
    assert asked["model"] == "llava"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [question.id for question in QUESTIONS]
    assert [row["text"] for row in rows] == [f"{question.image[:-4]} x" for question in QUESTIONS]
    requests = log(tmp_path)
    distinct = len({(question.image, question.prompt) for question in QUESTIONS})
    assert len(requests) == distinct * (2 if options else 1)
    assert {(r["max_tokens"], r["temperature"], r["path"]) for r in requests} == {(7, 0, "/v1/chat/completions")}
    assert 1 < max(request["in_flight"] for request in requests) <= 4


def test_nothing_is_asked_twice(serve: Callable[..., EndpointConfig], tmp_path: Path) -> None:
    server, path = serve(), tmp_path / "out/answers.jsonl"
    ask_server(server, tmp_path, 7, QUESTIONS[:10], path)
    before = len(log(tmp_path))
    ask_server(server, tmp_path, 7, QUESTIONS[:10], path)
    assert len(log(tmp_path)) == before
    path.unlink()  # as after a kill before the file was whole
    ask_server(server, tmp_path, 7, QUESTIONS, path)
    assert len(log(tmp_path)) == len({(question.image, question.prompt) for question in QUESTIONS})
    assert len(path.read_text().splitlines()) == 30


def test_a_refusal_stops(serve: Callable[..., EndpointConfig], tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="answered 401: not for you"):
        ask_server(serve("--refuse", "401"), tmp_path, 7, QUESTIONS, tmp_path / "out/answers.jsonl")
    assert not (tmp_path / "out/answers.jsonl").exists()
    assert len(log(tmp_path)) <= 4


def test_missing_and_damaged_images(tmp_path: Path) -> None:
    nowhere = EndpointConfig("http://127.0.0.1:9/v1", "llava")
    with pytest.raises(DataFormatError, match="is not a folder"):
        ask_server(nowhere, tmp_path / "none", 7, QUESTIONS, tmp_path / "answers.jsonl")
    with pytest.raises(ImageError, match=r"blue\.png does not exist"):
        ask_server(nowhere, tmp_path, 7, QUESTIONS, tmp_path / "answers.jsonl")
    (tmp_path / "red.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"red\.png"):
        data_url(tmp_path / "red.png")


def test_the_command(serve: Callable[..., EndpointConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    rows = [{"question_id": q.id, "image": q.image, "text": q.prompt} for q in QUESTIONS[:4]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--server {server.url} --model llava --questions {tmp_path}/asked.jsonl --images {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["ask_server.py", *command.split(), "--out", f"{tmp_path}/out.jsonl", "--suffix"])
    runpy.run_path(str(Path(__file__).parents[2] / "scripts/ask_server.py"), run_name="__main__")
    answered = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["text"]) for row in answered] == [
        (q.id, f"{q.image[:-4]} phrase.") for q in QUESTIONS[:4]
    ]
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write(json.dumps(rows[0]))
    with pytest.raises(SystemExit):
        runpy.run_path(str(Path(__file__).parents[2] / "scripts/ask_server.py"), run_name="__main__")
