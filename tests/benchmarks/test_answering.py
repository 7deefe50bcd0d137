"""benchmarks/answering.py at toy size: all ways answer the same, another answer is refused, the floor is one."""

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ohd.answering import speed
from llava_ohd.errors import DataFormatError, StageFailed
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


@pytest.mark.parametrize("words", [100, 5000])
def test_the_vocabulary_is_that_of_the_tokenizer(
    words: int, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama's 32,000 pieces had no place in the toy's 512, and what a larger vocabulary says is no text."""
    monkeypatch.setitem(speed.GEOMETRIES, "tiny", replace(speed.GEOMETRIES["tiny"], words=words))
    speed.write_images(tmp_path, ["0.png"])
    stage = speed.Stage("tiny", tiny_llama_dir, tmp_path, 9)
    asked = [Question(str(n), "0.png", f"Is there a {kind}?") for n, kind in enumerate(KINDS)]
    ours, plain = (stage.answers(way, asked, 8) for way in ("ours", "one by one"))
    assert ours == plain
    assert stage.geometry.words == len(stage.tokenizer) == stage.model.get_output_embeddings().out_features


def test_some_questions_at_even_distances() -> None:
    questions = [Question(str(n), "0.png", "") for n in range(10)]
    assert [question.id for question in speed.spread(questions, 4)] == ["0", "2", "5", "7"]
    assert speed.spread(questions, 10) == speed.spread(questions, 11) == speed.spread(questions, None) == questions


def test_where_questions_and_tokenizer_are_looked_for(data: Path, tmp_path: Path) -> None:
    program = runpy.run_path(str(SCRIPT))
    root, own = tmp_path / "root", tmp_path / "root/pope/some"
    (root / "tokenizers/llama").mkdir(parents=True)
    own.mkdir(parents=True)
    for given in (root, root / "pope", own):
        assert program["_asked"](given, "some") == own
        assert program["_tokenizer"](given) == root.resolve() / "tokenizers/llama"
    assert program["_asked"](data, "some") == data
    shutil.rmtree(root / "tokenizers")
    with pytest.raises(
        DataFormatError, match=r"no tokenizers/llama in it or in the folders above it; give --tokenizer"
    ):
        program["_tokenizer"](own)


def test_other_answers_are_refused() -> None:
    with pytest.raises(StageFailed, match=r"1 of 2 answers differ in float32, first 2: 'No' one by one, 'Yes'"):
        speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes", "2": "Yes"})
    assert speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes", "2": "Yes"}, exact=False) == ["2"]
    with pytest.raises(StageFailed, match="2 questions, 1 answers"):
        speed.differing({"1": "Yes", "2": "No"}, {"1": "Yes"})


def test_the_command(data: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "pope/some").mkdir(parents=True)
    for file in data.glob("some_pope_*.json"):
        shutil.copy(file, root / "pope/some")
    shutil.copytree(tiny_llama_dir, root / "tokenizers/llama")
    flags = "--geometry tiny --data root --set some --images 2 --repetitions 2 --length 4 --one_by_one 5 --out out"
    command = [sys.executable, str(SCRIPT), *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/tiny.json").read_text())
    assert (record["questions"], record["distinct_prompts"]) == (72, 48)
    assert record["distinct_answers"] > 1  # else equal answers would mean little
    assert set(record["differing"].values()) == {0}
    assert [len(record["costs"][way]) for way in speed.WAYS] == [2, 2, 2]
    assert {way: numbers["questions"] for way, numbers in record["ways"].items()} == {
        "one by one": 10,
        "padded": 72,
        "ours": 72,
    }
    each = [
        (one["wall"] / 5) / (ours["wall"] / 36)
        for one, ours in zip(record["costs"]["one by one"], record["costs"]["ours"], strict=True)
    ]
    assert record["speedup"]["one by one"]["wall"] == pytest.approx(sum(each) / 2)
    assert done.stdout.splitlines()[-1] == f"speedup {sum(each) / 2:.2f}"
    assert "| one by one | 10 |" in (tmp_path / "out/tiny.md").read_text()
    refused = subprocess.run([*command, "--one_by_one", "0"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, "--one_by_one 0: at least 1 is expected" in refused.stderr) == (2, True)
