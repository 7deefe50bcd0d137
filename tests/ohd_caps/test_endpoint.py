"""The builder with a chat endpoint, against a real server process that fails in every way that we know of."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError, OptionError, StageFailed
from llava_ohd.files import read_json, read_jsonl
from llava_ohd.ohd_caps import endpoint
from llava_ohd.ohd_caps.build import build_file
from llava_ohd.ohd_caps.by_endpoint import EndpointWriter, intents
from llava_ohd.ohd_caps.by_rule import Written
from llava_ohd.ohd_caps.coco import CocoImage, Instance
from llava_ohd.ohd_caps.endpoint import EndpointConfig
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.ohd_caps.planning import BuildConfig, Planned, make_plans
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.replies import Replies
from llava_ohd.ohd_caps.sources import read_source
from llava_ohd.ohd_caps.validation import Intent, clean, fault

ROOT = Path(__file__).parents[2]
KINDS = ["ball", "cup", "star", "tree", "box", "key", "lamp", "kite", "moon"]
SECRET = "sk-this-must-not-be-written"


def images(n: int, kinds: list[str]) -> list[CocoImage]:
    """Images of three objects, each with one caption."""
    made = []
    for i in range(n):
        names = [kinds[(i * step + step) % len(kinds)] for step in (1, 2, 4)]
        names = list(dict.fromkeys(names))
        caption = " and ".join([", ".join(f"a {name}" for name in names[:-1]), f"a {names[-1]}"])
        made.append(CocoImage(f"{i}.png", tuple(Instance(name, (0, 0, 0, 0)) for name in names), (caption,)))
    return made


def planned(n: int, kinds: list[str] = KINDS) -> Planned:
    return make_plans(images(n, kinds), BuildConfig())


@dataclass
class Server:
    url: str
    log: Path

    def requests(self) -> list[dict]:
        return read_jsonl(self.log) if self.log.exists() else []

    def config(self, **more: object) -> EndpointConfig:
        return EndpointConfig(self.url, "tiny", **{"timeout": 1.0, "concurrency": 4, "retries": 3, **more})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> Server:
        log = tmp_path / f"server{len(processes)}.log"
        words = [sys.executable, str(Path(__file__).with_name("chat_server.py")), str(log), *map(str, arguments)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return Server(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)


def assert_valid(plans: Planned, rows: list[Written]) -> None:
    for plan, item in zip(plans.plans, rows, strict=True):
        assert len(item.row.negatives) == 27
        before: list[str] = []
        for negative in item.row.negatives:
            kind = {"removal": "remove", "alteration": "alter"}.get(negative.strategy, "add")
            intent = Intent(kind, negative.strategy, negative.objects)
            assert fault(negative.caption, intent, plan.caption, before, plans.lexicon) is None, negative
            before.append(negative.caption)


@pytest.mark.usefixtures("quick")
def test_every_fault_is_survived_and_nothing_is_asked_twice(start: Callable[..., Server], tmp_path: Path) -> None:
    server, plans = start("--faults", "--delay", 0.002), planned(8)
    written = EndpointWriter(plans, server.config(), tmp_path / "o.jsonl")(plans.plans)
    assert_valid(plans, written)
    assert [item.fallbacks for item in written] == [0] * 8
    log = server.requests()
    assert {row["path"] for row in log} == {"/v1/chat/completions"}
    assert {row["model"] for row in log} == {"tiny"}
    assert len(log) > 8 * 27 * 1.1  # there were faults
    again = EndpointWriter(plans, server.config(), tmp_path / "o.jsonl")
    assert again(plans.plans) == written
    assert again.endpoint.requests == 0
    assert server.requests() == log


@pytest.mark.usefixtures("quick")
def test_what_the_model_cannot_write_is_written_by_rule(start: Callable[..., Server], tmp_path: Path) -> None:
    server, plans = start(), planned(8, ["umbrella", *KINDS])
    written = EndpointWriter(plans, server.config(), tmp_path / "o.jsonl")(plans.plans)
    wanted = _intents(plans, tmp_path)
    hopeless = [sum(intent.kind == "add" and "umbrella" in intent.objects for intent in row) for row in wanted]
    assert sum(hopeless) > 0
    assert [item.fallbacks for item in written] == hopeless
    for item in written:
        assert all("umbrella" in n.caption for n in item.row.negatives[:21] if "umbrella" in n.objects)
        assert len({n.caption for n in item.row.negatives}) == 27


def _intents(plans: Planned, folder: Path) -> list[list[Intent]]:
    writer = EndpointWriter(plans, EndpointConfig("http://nowhere", "x"), folder / "unused.jsonl")
    return [intents(plan, writer) for plan in plans.plans]


def test_budget_stops_cleanly_and_the_next_run_goes_on(start: Callable[..., Server], tmp_path: Path) -> None:
    server, plans, out = start(), planned(3), tmp_path / "o.jsonl"
    with pytest.raises(StageFailed, match=r"budget of 30 requests \(--max_requests\).*the same command goes on"):
        EndpointWriter(plans, server.config(max_requests=30), out)(plans.plans)
    assert len(server.requests()) == len(Replies(tmp_path / "o.replies.jsonl")) == 30
    with pytest.raises(StageFailed, match=r"budget of 200 tokens"):
        EndpointWriter(plans, server.config(max_tokens=200, concurrency=2), out)(plans.plans)
    spent = len(server.requests())
    assert 50 <= spent <= 51  # ten tokens each; one more was on its way
    assert_valid(plans, EndpointWriter(plans, server.config(), out)(plans.plans))
    assert max(Counter(row["digest"] for row in server.requests()).values()) == 1


@pytest.mark.parametrize(("status", "remedy"), [(401, "LLAVA_OHD_API_KEY"), (404, "--model"), (400, "--sampling")])
def test_a_refusal_stops_at_once(status: int, remedy: str, start: Callable[..., Server], tmp_path: Path) -> None:
    server, plans = start("--refuse", status), planned(3)
    with pytest.raises(StageFailed, match=rf"answered {status}: .*not for you") as caught:
        EndpointWriter(plans, server.config(concurrency=1), tmp_path / "o.jsonl")(plans.plans)
    assert remedy in str(caught.value)
    assert len(server.requests()) == 1


@pytest.mark.usefixtures("quick")
def test_no_server_and_no_address(tmp_path: Path) -> None:
    plans = planned(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        config = EndpointConfig(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "x", retries=1)
    with pytest.raises(StageFailed, match=r"did not answer .* 2 times in a row"):
        EndpointWriter(plans, config, tmp_path / "o.jsonl")(plans.plans)
    with pytest.raises(OptionError, match="as http://localhost:8000/v1"):
        EndpointConfig("localhost:8000/v1", "x")


def command(folder: Path, server: Server, name: str) -> list[str]:
    rows = [
        {"image": image.file_name, "captions": image.captions, "objects": image.objects} for image in images(12, KINDS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--source", folder / "rows.jsonl", "--out", folder / name, "--rewriter", server.url, "--model", "tiny"]
    return [sys.executable, str(ROOT / "scripts" / "build_ohd_caps.py"), *map(str, words), "--concurrency", "3"]


def test_killed_and_started_again_no_answered_request_is_repeated(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--delay", 0.01)
    replies, environment = tmp_path / "o.replies.jsonl", {**os.environ, "LLAVA_OHD_API_KEY": SECRET}
    with subprocess.Popen(command(tmp_path, server, "o.jsonl"), env=environment) as process:
        while not (replies.exists() and replies.read_bytes().count(b"\n") >= 60):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = {row["digest"] for row in read_jsonl(replies)}
    before = len(server.requests())
    assert not (tmp_path / "o.jsonl").exists()
    done = subprocess.run(
        command(tmp_path, server, "o.jsonl"), env=environment, capture_output=True, text=True, check=True
    )
    log = server.requests()
    assert kept.isdisjoint(row["digest"] for row in log[before:])
    assert sum(Counter(row["digest"] for row in log).values()) - len({row["digest"] for row in log}) <= 3
    assert {row["key"] for row in log} == {f"Bearer {SECRET}"}
    assert max(row["in_flight"] for row in log) == 3
    plans, whole = make_plans(read_source(tmp_path / "rows.jsonl"), BuildConfig()), tmp_path / "whole.jsonl"
    build_file(whole, plans, EndpointWriter(plans, start().config(), whole), [], [])
    assert (tmp_path / "o.jsonl").read_bytes() == whole.read_bytes()
    assert len(read_rows(tmp_path / "o.jsonl")) == 12
    record = read_json(tmp_path / "o.provenance.json")
    assert record["rewriter"]["model"] == "tiny"
    assert record["by_rule_instead"] == {"negatives": 0, "rows": 0}
    assert "0 negatives written by rule instead" in done.stdout
    mine = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("server")]
    assert not [path for path in mine if SECRET.encode() in path.read_bytes()]
    assert SECRET not in done.stdout + done.stderr


LEXICON = Lexicon(["person", "dog", "car", "cup", "dining table", "cat"])
CAPTION = "A man and his dog by a table ."


@pytest.mark.parametrize(
    ("kind", "objects", "text", "reason"),
    [
        ("add", ["car"], "A man and his dog by a table and a car .", None),
        ("add", ["car"], "A man and his dog by a table with cars .", None),
        ("add", ["car"], "A man and his dog by a table and a cart .", "must name car"),
        ("add", ["car"], "A man by a table and a car .", "go on naming dog"),
        ("add", ["car"], "Sure! A man and his dog by a table and a car .", "without any remark"),
        ("add", ["car"], "Edited: A man and his dog by a table and a car .", "without any remark"),
        ("add", ["car"], "A man and his dog by a table and a car .\nI hope this helps.", "on one line"),
        ("add", ["car"], '"A man and his dog by a table and a car" is one way', "quotation marks"),
        ("add", ["car"], f"A man, his dog, a table, a car {'and another thing ' * 20}", "too long"),
        ("add", ["car"], "A  man and his dog by the table", "says the same"),
        ("add", ["car"], "A man and his dog near a table and a car.", "given already"),
        ("add", ["car"], "", "no caption"),
        ("remove", ["dog"], "A man by a table .", None),
        ("remove", ["dog"], "A man and his puppies by a table .", "must not name dog"),
        ("remove", ["dog"], "A man and his cat by a table .", "anything new, such as cat"),
        ("alter", ["dog"], "A man and his cat by a table .", None),
        ("alter", ["dog"], "A man and his dog under a table .", None),
        ("alter", ["dog"], "His dog and a man by a table .", "not only left out"),
    ],
)
def test_validation(kind: str, objects: list[str], text: str, reason: str | None) -> None:
    intent = Intent(kind, "x", tuple(objects))
    found = fault(clean(text), intent, CAPTION, ["A man and his dog near the table and the car"], LEXICON)
    assert found is None if reason is None else reason in str(found)


def test_a_caption_may_look_like_chatter_where_the_true_one_does() -> None:
    intent = Intent("add", "random", ("car",))
    assert fault("Here is a dog and a car", intent, "Here is a dog", [], LEXICON) is None
    assert fault("Here is a dog and a car", intent, "There is a dog", [], LEXICON) is not None


def test_thoughts_and_quotation_marks_are_taken_off() -> None:
    assert clean('<think>a dog?\nyes</think>\n "“A dog”" ') == "A dog"
    assert clean("A dog's bone") == "A dog's bone"


def test_waiting_times_that_servers_ask_for() -> None:
    assert endpoint._asked_wait("7") == 7
    assert endpoint._asked_wait("100000") == 600
    assert endpoint._asked_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert endpoint._asked_wait("soon") is None
    assert endpoint._asked_wait(None) is None


def test_a_torn_reply_is_cut_off_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    replies = Replies(path)
    replies.put("a", "one\ntwo\u2028three")
    replies.put("b", "four")
    path.write_bytes(path.read_bytes()[:-5])
    again = Replies(path)
    assert again.get("a") == "one\ntwo\u2028three"
    assert again.get("b") is None
    again.put("b", "five")
    assert Replies(path).get("b") == "five"
    path.write_text("something else\n")
    with pytest.raises(DataFormatError, match="line 1 is not a kept reply"):
        Replies(path)
