"""`transformers serve` with an export of ours on loopback: its greedy answers in float32 are those of our engine.

`make test-serve` makes the environment: fastapi, uvicorn and openai beside everything else. No network is needed.
"""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy
import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.answering.session import Session, ask, ask_server
from llava_ohd.errors import StageFailed
from llava_ohd.evals.pope import read_questions
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.model import build
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.llava15.stages import trainable
from llava_ohd.ohd_caps.endpoint import EndpointConfig
from llava_ohd.records import Question
from llava_ohd.results import read_results
from llava_ohd.world import MINI_CLIP, MINI_LLAMA

ROOT = Path(__file__).parents[2]
NEEDED = ("fastapi", "uvicorn", "openai")
MISSING = [name for name in NEEDED if find_spec(name) is None]
FLAGS = {
    "image_aspect_ratio": "pad",
    "mm_vision_select_layer": -2,
    "model_max_length": 256,
    "tune_mm_mlp_adapter": True,
}
WHO = ("ours", "theirs")
KINDS = ("ball", "cup", "star", "tree", "house", "key")

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}; `make test-serve` brings them")


@dataclass(frozen=True)
class Served:
    """A model folder, its export, and the server that has the export."""

    llava: Path
    encoder: Path
    export: Path
    config: EndpointConfig
    log: Path

    def requests(self) -> int:
        return self.log.read_text().count("POST /v1/chat/completions")


def write_llava(folder: Path, language: Path, encoder: Path) -> None:
    """A model folder of stage 1, its projector random, and so large that pictures matter."""
    eyes = tower.check(encoder)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = trainable(build(language, eyes), "projector")
        for weight in model.model.multi_modal_projector.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2)
    record = {
        "stage": "projector",
        "encoder": {"path": str(eyes.path), "digest": eyes.digest, "name": eyes.name},
        "base": {"path": str(language), "sha256": model_dir.base_sha256(language)},
        "config": FLAGS,
    }
    model_dir.write(folder, model_dir.trained_weights(model), record, llava_config(language, eyes, FLAGS))


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    opener, end = build_opener(ProxyHandler({})), time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            opener.open(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url}: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Path], Served]]:
    """Puts a model together, exports it by the command, and starts the server on a free port."""
    processes = []

    def start(language: Path, encoder: Path) -> Served:
        folder = tmp_path_factory.mktemp("served")
        llava, export, log = folder / "llava", folder / "export", folder / "log"
        write_llava(llava, language, encoder)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        convert = [ROOT / "scripts/convert_llava.py", "--source", llava, "--out", export, "--dtype", "float32"]
        subprocess.run([sys.executable, *map(str, convert)], check=True, env=environment, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(export), "--port", str(port)]
        command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        processes.append(process)
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        config = EndpointConfig(f"http://127.0.0.1:{port}/v1", str(export), concurrency=4, retries=1)
        return Served(llava, encoder, export, config, log)

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(serve: Callable[[Path, Path], Served]) -> Served:
    return serve(MINI_LLAMA, MINI_CLIP)


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in POPE's form on six pictures, wide, tall and square; JPEG and PNG."""
    folder = tmp_path_factory.mktemp("pope")
    random = numpy.random.default_rng(0)
    names = []
    sizes = {"wide": (60, 100), "tall": (110, 50), "square": (64, 64)}
    for name, size in ((f"{shape}.{ending}", sizes[shape]) for shape in sizes for ending in ("jpg", "png")):
        blocks = random.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=numpy.uint8)
        Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST).save(folder / name)
        names.append(name)
    for place, split in enumerate(("random", "popular", "adversarial")):
        rows = [
            {"question_id": n, "image": name, "text": f"Is there a {kind} in the image?", "label": "yes"}
            for n, (name, kind) in enumerate((name, kind) for name in names for kind in KINDS[place : place + 4])
        ]
        (folder / f"some_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts(path: Path) -> dict[str, str]:
    return {row["question_id"]: row["text"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def tiny_language(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """The tiny language model with a tokenizer of as many pieces that keeps spaces as Llama's does."""
    folder = tmp_path / "language"
    shutil.copytree(tiny_llama_dir, folder)
    shutil.copy(MINI_LLAMA / "tokenizer.model", folder)
    return folder


def written(text: str) -> str:
    """Bytes that are no UTF-8, which only random weights put together, are written otherwise by tokenizers and by
    SentencePiece: as one sign each for all bytes of a run, or for the wrong ones alone."""
    return re.sub("[\ufffd\\x00-\\x1f]+", "?", text)


def assert_same_answers(model: Served, pope: Path, folder: Path) -> None:
    """POPE's questions, and a long answer about each picture; several distinct ones, else it would mean little."""
    asked: list[Question] = [*read_questions(pope)]
    asked += [Question(f"long/{name}", name, "Describe the image.") for name in sorted({q.image for q in asked})]
    ask(Session(str(model.encoder), model.llava, pope, 24), asked, folder / "ours.jsonl")
    ask_server(model.config, pope, 24, asked, folder / "theirs.jsonl")
    ours, theirs = ({name: written(text) for name, text in texts(folder / f"{who}.jsonl").items()} for who in WHO)
    assert len(set(ours.values())) >= 3
    assert theirs == ours


def test_greedy_answers_are_those_of_our_engine(served: Served, pope: Path, tmp_path: Path) -> None:
    assert_same_answers(served, pope, tmp_path)


def test_so_are_those_of_random_weights(
    serve: Callable[[Path, Path], Served], tiny_language: Path, tiny_encoder_dir: Path, pope: Path, tmp_path: Path
) -> None:
    assert_same_answers(serve(tiny_language, tiny_encoder_dir), pope, tmp_path)


def test_the_commands_from_export_to_score(
    served: Served, pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ask_server.py, killed half way and started again, then eval/pope.py --answers."""
    distinct = len({(question.image, question.prompt) for question in read_questions(pope)})
    assert distinct < len(read_questions(pope))
    before = served.requests()
    out = tmp_path / "answers.jsonl"
    few = [question for question in read_questions(pope) if question.image == "tall.png"]
    ask_server(served.config, pope, 32, few, tmp_path / "few.jsonl")
    (tmp_path / "few.replies.jsonl").rename(tmp_path / "answers.replies.jsonl")  # what a kill leaves
    flags = ["--server", served.config.url, "--model", served.config.model, "--questions", pope, "--images", pope]
    monkeypatch.setattr(sys, "argv", ["ask_server.py", *map(str, flags), "--out", str(out)])
    for _ in range(2):  # the second time nothing is left to ask
        runpy.run_path(str(ROOT / "scripts/ask_server.py"), run_name="__main__")
        assert served.requests() - before == distinct
    arguments = ["pope.py", "--set", str(pope), "--answers", str(out), "--out", str(tmp_path / "scored")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "eval/pope.py"), run_name="__main__")
    results = read_results(tmp_path / "scored/results.json")
    yes = sum(text.startswith("Yes") for text in texts(out).values())
    assert results["n"] == len(texts(out)) == 72
    assert results["metrics"]["accuracy_pooled"]["value"] == pytest.approx(yes / 72)
    assert "f1_macro" in capsys.readouterr().out


def test_another_model_is_refused_in_the_servers_words(served: Served, pope: Path, tmp_path: Path) -> None:
    wrong = EndpointConfig(served.config.url, "another", retries=0)
    with pytest.raises(StageFailed, match=r"answered 400: .*Server is pinned to") as stopped:
        ask_server(wrong, pope, 4, read_questions(pope)[:1], tmp_path / "answers.jsonl")
    assert "--model" in str(stopped.value)
