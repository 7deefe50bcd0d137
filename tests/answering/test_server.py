"""Questions asked of a server: all answered whatever it does, none twice, and its refusal said."""

import gc
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ohd.answering.server import ServerAnswerer, data_url
from llava_ohd.answering.session import ask_server
from llava_ohd.errors import DataFormatError, ImageError, OptionError, StageFailed
from llava_ohd.ohd_caps import endpoint
from llava_ohd.ohd_caps.endpoint import EndpointConfig
from llava_ohd.records import Question

SERVER = Path(__file__).with_name("vision_server.py")
SCRIPT = Path(__file__).parents[2] / "scripts/ask_server.py"
QUESTIONS = [Question(str(n), f"{'red' if n % 2 else 'blue'}.png", f"what is {n // 3}") for n in range(30)]


def write_images(folder: Path) -> None:
    for color in ("red", "blue"):
        Image.new("RGB", (4, 4), color).save(folder / f"{color}.png")


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EndpointConfig]]:
    """Starts a server with the given options; its log is tmp_path/log."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    write_images(tmp_path)
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


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


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


def test_two_servers_in_one_folder_share_nothing(serve: Callable[..., EndpointConfig], tmp_path: Path) -> None:
    first, second = serve("--says", '"Yes"'), serve("--says", '"No"')
    one, two, three = (tmp_path / f"out/{name}.jsonl" for name in ("one", "two", "three"))
    ask_server(first, tmp_path, 7, QUESTIONS, one)
    ask_server(second, tmp_path, 7, QUESTIONS, two)
    assert (set(texts(one)), set(texts(two))) == ({"Yes"}, {"No"})
    with pytest.raises(StageFailed, match="did not answer"):
        ask_server(replace(first, url="http://127.0.0.1:9/v1", retries=0), tmp_path, 7, QUESTIONS, three)
    assert sorted(file.name for file in one.parent.iterdir() if "partial" not in file.name) == [
        "one.jsonl",
        "one.replies.jsonl",
        "two.jsonl",
        "two.replies.jsonl",
    ]


def test_a_reply_is_that_of_its_server_model_image_prompt_and_settings(
    serve: Callable[..., EndpointConfig], tmp_path: Path
) -> None:
    server, question = serve(), QUESTIONS[0]
    other = serve()
    Image.new("RGB", (4, 4), "green").save(tmp_path / "green.png")

    def requests(config: EndpointConfig, asked: Question, length: int = 7) -> int:
        """How many requests reach a server; all replies are kept in one file."""
        before = len(log(tmp_path)) if (tmp_path / "log").exists() else 0
        assert len(list(ServerAnswerer(config, tmp_path, tmp_path / "kept.jsonl").answer([asked], length))) == 1
        return len(log(tmp_path)) - before

    assert requests(server, question) == 1
    assert requests(server, replace(question, id="another")) == 0
    assert requests(replace(server, concurrency=1, retries=0), question) == 0
    assert requests(other, question) == 1
    assert requests(replace(server, model="another"), question) == 1
    assert requests(server, replace(question, image="green.png")) == 1
    assert requests(server, replace(question, prompt="another")) == 1
    assert requests(server, question, length=8) == 1
    assert requests(replace(server, sampling={"seed": 1}), question) == 1
    (tmp_path / "green.png").replace(tmp_path / question.image)  # the image under that name is another one now
    assert requests(server, replace(question, id="the green one")) == 0
    assert requests(server, replace(question, image="red.png")) == 1


OTHERS = [
    '{"question_id": "0", "image": "blue.png", "prompt": "what is 0", "text": "Yes", "metadata": {"run": "other"}}\n',
    '{"question_id": "0", "text": "Yes", "model_id": "llava"}\n',
    '[{"question": "Is there a cup?", "answer": "yes"}]',
    "somebody's notes\n",
]


@pytest.mark.parametrize(
    ("name", "content"),
    [(f"answers[1].partial{rank}.jsonl", content) for rank in ("", "-1") for content in OTHERS[:2]]
    + [("answers[1].jsonl", content) for content in OTHERS],
)
def test_the_rows_of_others_are_never_overwritten(name: str, content: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / name).write_text(content)
    before = sorted(file.name for file in tmp_path.iterdir())
    server = EndpointConfig("http://127.0.0.1:9/v1", "llava", retries=0)
    with pytest.raises(OptionError, match=rf"{re.escape(name)} has 1 rows that are no answers.*give another --out"):
        ask_server(server, tmp_path, 7, QUESTIONS, tmp_path / "answers[1].jsonl")
    assert (tmp_path / name).read_text() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_own_rows_are_gone_on_from(serve: Callable[..., EndpointConfig], tmp_path: Path) -> None:
    server, path = serve(), tmp_path / "answers.jsonl"
    ask_server(server, tmp_path, 7, QUESTIONS[:10], path)
    ask_server(server, tmp_path, 7, QUESTIONS, path)
    whole = path.read_text()
    with pytest.raises(OptionError, match=r"has 20 rows that are no answers"):
        ask_server(server, tmp_path, 7, QUESTIONS[:10], path)  # they would be lost
    path.rename(tmp_path / "answers.partial.jsonl")
    with (tmp_path / "answers.partial.jsonl").open("a") as file:
        file.write('{"question_id": "torn')
    ask_server(server, tmp_path, 7, QUESTIONS, path)
    assert path.read_text() == whole
    with pytest.raises(OptionError, match=r"is a folder; give a file as --out, such as .*answers\.jsonl"):
        ask_server(server, tmp_path, 7, QUESTIONS, tmp_path)


@pytest.mark.parametrize("said", ['""', "null", '" \\n"'])
def test_an_answer_without_text_is_none(serve: Callable[..., EndpointConfig], tmp_path: Path, said: str) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(
        StageFailed, match=r"answered 'what is 0' about blue\.png without text \(finish_reason 'stop'\)"
    ):
        ask_server(serve("--says", said), tmp_path, 7, QUESTIONS[:1], path)
    assert not path.exists()
    assert not (tmp_path / "answers.replies.jsonl").exists()  # else it would be taken from there ever after


@pytest.mark.parametrize("url", ["127.0.0.1:18170/v1", "localhost:8000/v1", "http://", "ftp://a/v1", "http://[a", ""])
def test_an_address_without_scheme_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match=r"is no address of a server: it begins with http:// or https://"):
        EndpointConfig(url, "llava")


def test_what_only_the_client_knows_to_be_no_address(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(StageFailed, match=r"is no address: .* give one like http://localhost:8000/v1"):
        ask_server(EndpointConfig("http://\x01/v1", "llava"), tmp_path, 7, QUESTIONS[:1], tmp_path / "answers.jsonl")


@pytest.mark.parametrize("given", [{"concurrency": 0}, {"concurrency": -1}, {"retries": -1}, {"timeout": 0.0}])
def test_numbers_that_no_run_can_have_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(given))} .* expected"):
        EndpointConfig("http://localhost:8000/v1", "llava", **given)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_advises_flags_that_exist(serve: Callable[..., EndpointConfig], tmp_path: Path, status: int) -> None:
    with pytest.raises(StageFailed, match=f"answered {status}") as stopped:
        ask_server(serve("--refuse", str(status)), tmp_path, 7, QUESTIONS[:1], tmp_path / "answers.jsonl")
    advised = set(re.findall(r"--\w+", str(stopped.value)))
    assert advised or status == 401
    assert advised <= set(re.findall(r'add_argument\("(--\w+)"', SCRIPT.read_text()))


def test_a_refusal_stops(
    serve: Callable[..., EndpointConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StageFailed, match="answered 401: not for you"):
        ask_server(serve("--refuse", "401"), tmp_path, 7, QUESTIONS, tmp_path / "out/answers.jsonl")
    assert not (tmp_path / "out/answers.jsonl").exists()
    assert len(log(tmp_path)) <= 4
    gc.collect()
    assert caplog.text == ""  # asyncio complains there of tasks whose failure nobody looked at


def test_missing_and_damaged_images(tmp_path: Path) -> None:
    nowhere = EndpointConfig("http://127.0.0.1:9/v1", "llava")
    with pytest.raises(DataFormatError, match="is not a folder"):
        ask_server(nowhere, tmp_path / "none", 7, QUESTIONS, tmp_path / "answers.jsonl")
    with pytest.raises(ImageError, match=r"blue\.png does not exist"):
        ask_server(nowhere, tmp_path, 7, QUESTIONS, tmp_path / "answers.jsonl")
    (tmp_path / "red.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"red\.png"):
        data_url(tmp_path / "red.png")


def test_the_command(
    serve: Callable[..., EndpointConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve()
    rows = [{"question_id": q.id, "image": q.image, "text": q.prompt} for q in QUESTIONS[:4]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--server {server.url} --model llava --questions {tmp_path}/asked.jsonl --images {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["ask_server.py", *command.split(), "--out", f"{tmp_path}/out.jsonl", "--suffix"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    answered = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["text"]) for row in answered] == [
        (q.id, f"{q.image[:-4]} phrase.") for q in QUESTIONS[:4]
    ]
    before, argv = (tmp_path / "out.jsonl").read_text(), sys.argv
    for flags, message in (
        (["--server", "127.0.0.1:1/v1"], "it begins with http:// or https://"),
        (["--concurrency", "0"], "concurrency 0: at least 1 is expected (--concurrency)"),
        (["--timeout", "0"], "more than 0 seconds are expected (--timeout)"),
        (["--sampling", "[]"], "--sampling takes a JSON object"),
        (["--max_new_tokens", "0"], "--max_new_tokens is at least 1"),
        (["--max_new_tokens", "9"], "out.jsonl has 4 rows that are no answers"),
    ):
        monkeypatch.setattr(sys, "argv", [*argv, *flags])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert message in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == before
    monkeypatch.setattr(sys, "argv", argv)
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write(json.dumps(rows[0]))
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
