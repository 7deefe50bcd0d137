"""scripts/reproduce.sh at real size, with commands that only write down how they were called."""

import itertools
import os
import shlex
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "scripts/reproduce.sh"
READ = ("--instances", "--captions", "--data", "--images", "--image_folder", "--data_path", "--set", "--exclude")
READ += ("--deepspeed", "--pretrain_mm_mlp_adapter")
LAYOUT = (
    *(f"annotations/{kind}_{split}.json" for kind in ("instances", "captions") for split in ("train2017", "val2014")),
    *("images/", "ohd_caps/test.jsonl", "pope/coco_pope_random.json", "synonyms.txt"),
    *("llava/pretrain.json", "llava/pretrain_images/", "llava/instruct.json", "llava/instruct_images/"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in LAYOUT:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    return tmp_path / "data"


def reproduce(data: Path, log: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the script; shell functions of these names come before programs."""
    note = '{ printf "%q " "$@" >> "$LOG"; echo >> "$LOG"; }'
    environment = os.environ | {"DATA": str(data), "LOG": str(log), "LLAVA_OHD_HOME": str(data.parent / "home")}
    call = f"python() {note}; deepspeed() {note}; export -f python deepspeed; {shlex.quote(str(SCRIPT))}"
    return subprocess.run(["bash", "-c", call], env=environment, capture_output=True, text=True, check=False)


def test_every_command_reads_what_is_there_or_was_made_before(data: Path, tmp_path: Path) -> None:
    done = reproduce(data, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]
    programs = [next((part for part in command if part.endswith(".py")), "") for command in commands]
    assert [Path(program).stem for program in programs if program][:2] == ["build_ohd_caps", "finetune_clip"]
    assert programs.count("eval/pope.py") == programs.count("eval/chair.py") == 2
    made = {str(data.parent / "home" / "eval" / encoder) for encoder in ("openai", "ours")}
    for command in commands:
        for flag, value in itertools.pairwise(command):
            if flag in READ:
                there = (REPOSITORY / value).exists() or any(value.startswith(folder) for folder in made)
                assert there, f"{flag} {value} in {shlex.join(command)}"
            if flag in ("--out", "--output_dir"):
                made.add(value)


@pytest.mark.parametrize("name", LAYOUT)
def test_what_is_missing_is_said_before_anything_runs(name: str, data: Path, tmp_path: Path) -> None:
    path = data / name
    path.rmdir() if path.is_dir() else path.unlink()
    if name.startswith("pope/"):
        path.parent.rmdir()
    done = reproduce(data, tmp_path / "log")
    assert done.returncode == 2
    assert f"error: {data / name.split('/coco_pope')[0].rstrip('/')} does not exist" in done.stderr
    assert not (tmp_path / "log").exists()
