"""Answers that are there already: kept beside their results, never over those of somebody else; idle flags refused."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.answering.options import add_flags
from llava_ohd.errors import OptionError, StorageError
from llava_ohd.evals import pope
from llava_ohd.evals.chair import read_captions, read_ground_truth, read_synonyms
from llava_ohd.evals.given_answers import flags_of, keep, out_beside, refuse_idle, stated, told
from llava_ohd.evals.pope_questions import ImageObjects, build_questions, write_questions
from llava_ohd.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from llava_ohd.report import benchmarks

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = [{"question_id": "random/1", "image": "1.png", "prompt": "?", "text": "Yes"}]


def run(script, *arguments, status=0, where=REPOSITORY):
    command = [sys.executable, REPOSITORY / f"eval/{script}.py", *map(str, arguments)]
    places = {"LLAVA_OHD_DATA": "", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=where, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


# --- what is kept


def test_answers_are_kept_and_what_was_kept_is_replaced(tmp_path):
    given, path = tmp_path / "given.jsonl", tmp_path / "out/answers.jsonl"
    for text in ("Yes", "No"):
        write_jsonl(given, [{"question": "?", "answer": text}])
        keep(path, [ROWS[0] | {"text": text}], [given])
        assert read_jsonl(path) == [ROWS[0] | {"text": text, "metadata": {"scored_from": "given.jsonl"}}]


@pytest.mark.parametrize("there", [[{"text": "x"}], [ROWS[0] | {"metadata": {"run": "1"}}], "{", "null"])
def test_answers_of_somebody_else_are_not_replaced(tmp_path, there):
    given, path = tmp_path / "given.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(given, ROWS)
    path.write_text(there if isinstance(there, str) else "".join(json.dumps(row) for row in there))
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"holds other answers than those given.*as --out"):
        keep(path, ROWS, [given])
    assert path.read_bytes() == before


def test_the_file_that_was_given_stays(tmp_path):
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, ROWS)
    keep(path, ROWS, [path])
    assert read_jsonl(path) == ROWS
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    keep(path, ROWS, [tmp_path / "copy.jsonl"])
    assert read_jsonl(path) == ROWS
    with pytest.raises(StorageError):  # one of several is a part of what was scored
        keep(path, [*ROWS, *ROWS], [path, tmp_path / "copy.jsonl"])


def test_told(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert told([tmp_path / "a.jsonl"]) == [{"name": "a.jsonl", "sha256": sha256_file(tmp_path / "a.jsonl")}]


@pytest.mark.parametrize(
    ("given", "expected"), [("a/b.jsonl", "a/b_scored"), ("m/answers.v1", "m/answers_scored"), ("a/b", "a/b_scored")]
)
def test_where_results_lie(given, expected):
    assert out_beside(Path(given)) == Path(expected)


def test_where_results_of_a_folder_lie(tmp_path, monkeypatch):
    (tmp_path / "model.v1").mkdir()
    monkeypatch.chdir(tmp_path / "model.v1")
    for given in (".", "../model.v1"):
        assert out_beside(Path(given)).resolve() == tmp_path / "model.v1_scored"
    with pytest.raises(OptionError, match="has no name that results"):
        out_beside(Path("/"))


# --- flags


def test_flags_that_are_stated():
    parser = argparse.ArgumentParser()
    add_flags(parser, max_new_tokens=32)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--files", nargs="+", default=None)
    for line, expected in {
        "": set(),
        "--bits 16": {"bits"},  # also where it is what the default says
        "--all --files a b": {"all", "files"},
    }.items():
        sys.argv[1:] = line.split()
        assert stated(parser, parser.parse_args()) == expected


@pytest.fixture(autouse=True)
def _arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])


def test_idle_flags():
    assert {"encoder", "model", "images", "bits", "batch_size", "max_new_tokens", "verify"} <= flags_of(add_flags)
    refuse_idle({"out"}, {"bits", "model"}, "here")
    with pytest.raises(OptionError, match=r"^--bits, --model would change nothing here; leave them out$"):
        refuse_idle({"model", "out", "bits"}, {"bits", "model"}, "here")


# --- the commands


@pytest.fixture
def world(tmp_path):
    """A set of eight images as the world has it, with POPE's questions, and the answers of a model that sees it all."""
    folder, kinds = tmp_path / "set", ("cup", "dog", "ball", "tree", "key")
    shown = [(kinds[n % 5], kinds[(n + 1) % 5]) for n in range(8)]
    images = [ImageObjects(f"test/{n}.png", pair) for n, pair in enumerate(shown)]
    write_questions(folder / "pope", "world", build_questions(images, n_images=8, n_per_image=2, seed=0))
    files = [{"id": n, "file_name": image.image} for n, image in enumerate(images)]
    boxes = [{"image_id": n, "category_id": kinds.index(kind)} for n, pair in enumerate(shown) for kind in pair]
    categories = [{"id": n, "name": kind} for n, kind in enumerate(kinds)]
    instances = {"images": files, "categories": categories, "annotations": boxes}
    write_json(folder / "annotations/instances_test.json", instances)
    write_json(folder / "annotations/captions_test.json", {"images": files, "annotations": []})
    (folder / "synonyms.txt").write_text("\n".join(kinds))
    return folder


def test_answers_to_pope_that_are_there_can_be_compared(tmp_path, world):
    """In the form of OHD-Caps, without ids; what lies beside the results has them, and gives the same numbers."""
    questions = pope.read_questions(world / "pope")
    rows = [{"image": q.image, "text": q.prompt, "answer": q.label.capitalize()} for q in questions]
    wrong = questions[0]
    for row in rows:
        row["answer"] = "No" if (row["image"], row["text"]) == (wrong.image, wrong.prompt) else row["answer"]
    write_jsonl(tmp_path / "given.jsonl", rows)
    run("pope", "--set", world, "--answers", tmp_path / "given.jsonl", "--out", tmp_path / "out")
    record = read_json(tmp_path / "out/results.json")
    assert record["details"]["answers"] == told([tmp_path / "given.jsonl"])
    read = benchmarks.read_pope(tmp_path / "out", benchmarks.Truth(questions))
    assert read.counts.sum() == len(questions)
    shares = {name: sum(right.values()) / len(right) for name, right in read.right.items()}
    assert shares == {name: record["metrics"][name]["value"] for name in shares}
    assert 0 < shares["random/accuracy"] < 1


def test_captions_that_are_there_can_be_compared(tmp_path, world):
    rows = [{"image_id": n, "caption": "a cup and a dog"} for n in range(8)]
    write_jsonl(tmp_path / "given.jsonl", rows)
    run("chair", "--set", world, "--captions", tmp_path / "given.jsonl", "--out", tmp_path / "out")
    record = read_json(tmp_path / "out/results.json")
    assert record["details"]["answers"] == told([tmp_path / "given.jsonl"])
    kept = read_captions(tmp_path / "out/answers.jsonl")
    assert [row.image for row in kept] == [f"test/{n}.png" for n in range(8)]
    vocabulary = read_synonyms(world / "synonyms.txt")
    truth = read_ground_truth(world / "annotations/instances_test.json", None, vocabulary)
    read = benchmarks.read_chair(tmp_path / "out", benchmarks.Truth(None, truth, vocabulary))
    mentions, hallucinated, *_ = read.counts.sum(0)
    assert hallucinated / mentions == record["metrics"]["chair_i"]["value"]


def test_a_models_answers_in_the_out_folder_stay(tmp_path, world):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers.jsonl").write_text(
        '{"question_id": "random/1", "text": "Yes", "metadata": {"run": "x"}}\n'
    )
    rows = [{"question_id": q.id, "text": "Yes"} for q in pope.read_questions(world / "pope")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a cup"}])
    for script, flag, file in (("pope", "--answers", "a.jsonl"), ("chair", "--captions", "c.jsonl")):
        said = run(script, "--set", world, flag, tmp_path / file, "--out", tmp_path / "out", status=2)
        assert "StorageError" in said
        assert "Give another folder as --out" in said
        assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("pope", "--answers a --model m --bits 4", "--bits, --model would change nothing with --answers"),
        ("pope", "--answers a --suffix --probabilities", "--probabilities, --suffix would change nothing"),
        (
            "pope",
            "--answers a --encoder ours",
            "--encoder would change nothing with --answers, where no model is asked",
        ),
        ("chair", "--captions a --encoder ours", "--encoder would change nothing with --captions"),
        ("chair", "--captions a --prompt x --images i", "--images, --prompt would change nothing with --captions"),
        (
            "chair",
            "--captions a --set coco --limit 3 --split x",
            "--limit, --split would change nothing with the set coco",
        ),
        ("chair", "--captions a --rule pattern --split x", "--split would change nothing with the set coco"),
        ("chair", "--limit 0", "--limit 0 leaves no image; give 1 or more"),
        ("chair", "--captions a --limit -2", "--limit -2 leaves no image"),
    ],
)
def test_flags_that_change_nothing_are_refused(script, arguments, message):
    assert f"OptionError: {message}" in run(script, *arguments.split(), status=2)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("hallusionbench --answers", "HallusionBench.json; give another with --data is looked for in $LLAVA_OHD_DATA"),
        ("amber --responses", "AMBER's data; give another folder with --data is looked for in $LLAVA_OHD_DATA"),
    ],
)
def test_where_data_are_looked_for_is_said(script, message):
    assert message in run(*script.split(), "a", status=2)


@pytest.mark.parametrize("script", ["pope --answers", "chair --captions"])
def test_a_folder_where_a_file_is_expected(tmp_path, world, script):
    said = run(*script.split(), ".", "--set", world, status=2, where=tmp_path)
    assert "DataFormatError: . is a folder; a file is expected" in said


def test_an_out_folder_that_cannot_be(tmp_path, world):
    rows = [{"question_id": q.id, "text": "Yes"} for q in pope.read_questions(world / "pope")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    said = run("pope", "--set", world, "--answers", tmp_path / "a.jsonl", "--out", "/proc/none", status=2)
    assert "StorageError: cannot write /proc/none/answers.jsonl: the folder cannot be made" in said
