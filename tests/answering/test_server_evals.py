"""An evaluation asks a server instead of a model of this machine, and says so in its results."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from llava_ohd.results import read_results

POPE = Path(__file__).parents[2] / "eval/pope.py"
SERVER = Path(__file__).with_name("vision_server.py")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, str(SERVER), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.kill()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    for split in ("random", "popular", "adversarial"):
        row = {"question_id": 1, "image": "red.png", "text": "Is there a ball in the image?", "label": "no"}
        (tmp_path / f"own_pope_{split}.json").write_text(json.dumps(row) + "\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pope.py", *map(str, arguments)])
    runpy.run_path(str(POPE), run_name="__main__")


def test_pope_of_a_server(
    url: str, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--server", url, "--server_model", "llava", "--set", questions, "--images", questions)
    asked += ("--server_sampling", '{"seed": 3}')
    run(monkeypatch, *asked, "--out", questions / "out")
    assert f"POPE, llava at {url}" in capsys.readouterr().out
    results = read_results(questions / "out/results.json")
    assert results["model"] == {"path": "llava", "server": url, "sampling": {"seed": 3}}
    assert results["encoder"] is None
    assert results["metrics"]["random/yes_ratio"]["value"] == 1  # it says the colour, which is no "no"
    assert len((questions / "log").read_text().splitlines()) == 1  # one question under three splits


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--server needs --server_model NAME"),
        (("--server_model", "llava"), "and a folder as --out"),
        (("--server_model", "llava", "--out", "o", "--bits", "4", "--encoder", "ours"), "not heed --encoder, --bits;"),
    ],
)
def test_what_a_server_cannot_heed_is_refused(
    more: tuple[str, ...],
    message: str,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--server", "http://127.0.0.1:1/v1", "--set", questions, *more)
    assert message in capsys.readouterr().err
