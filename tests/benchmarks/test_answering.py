"""benchmarks/answering.py at toy size: all ways answer the same, another answer is refused, the floor is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.answering import speed
from llava_ohd.errors import StageFailed
from llava_ohd.records import Question

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "answering.py"
KINDS = ("ball", "box", "cup", "star", "ring", "key")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """POPE's files: 4 images, 6 questions in each split, half of them the same in all."""
    for place, split in enumerate(("random", "popular", "adversarial")):
        asked = [KINDS[:3] + tuple(f"{kind} {place}" for kind in KINDS[3:])] * 4
        rows = [
            {"image": f"{image}.png", "text": f"Is there a {kind} in the image?", "label": "yes"}
            for image, kinds in enumerate(asked)
            for kind in kinds
        ]
        lines = (json.dumps({"question_id": number} | row) + "\n" for number, row in enumerate(rows))
        (tmp_path / f"some_pope_{split}.json").write_text("".join(lines))
    return tmp_path


def test_the_floor_is_below_ours_and_ours_below_the_others(tiny_llama_dir: Path, tmp_path: Path) -> None:
    questions = [Question(str(n), "0.png", f"Is there a {kind}?") for n, kind in enumerate(KINDS * 3)]
    speed.write_images(tmp_path, ["0.png"])
    stage = speed.Stage("tiny", tiny_llama_dir, tmp_path, 9)
    flops = {way: speed.count_flops(stage, way, questions, 2) for way in speed.WAYS}
    floor = speed.floor_flops(stage, questions, 2)
    assert 0.5 * flops["ours"] < floor < flops["ours"] < flops["one by one"] / 3 < flops["padded"] / 2


def test_other_answers_are_refused() -> None:
    with pytest.raises(StageFailed, match=r"1 of 2 answers differ in float32, first 2: 'No' one by one, 'Yes'"):
        speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes", "2": "Yes"})
    assert speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes", "2": "Yes"}, exact=False) == ["2"]
    with pytest.raises(StageFailed, match="2 questions, 1 answers"):
        speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes"})


def test_the_command(data: Path, tiny_llama_dir: Path) -> None:
    command = f"--geometry tiny --data {data} --tokenizer {tiny_llama_dir} --images 2 --repetitions 2 --length 4"
    done = subprocess.run(
        [sys.executable, SCRIPT, *command.split(), "--out", data / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((data / "out" / "tiny.json").read_text())
    assert done.stdout.splitlines()[-1] == f"speedup {record['speedup']['one by one']['wall']:.2f}"
    assert (record["questions"], record["distinct_prompts"]) == (72, 48)
    assert record["distinct_answers"] > 1  # else equal answers would mean little
    assert set(record["differing"].values()) == {0}
    assert [len(record["costs"][way]) for way in speed.WAYS] == [2, 2, 2]
    assert "| ours |" in (data / "out" / "tiny.md").read_text()
