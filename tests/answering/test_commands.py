"""eval/pope.py and eval/chair.py on a tiny model: answered, scored, never answered twice; wrong models refused."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.model import build
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.llava15.stages import trainable
from llava_ohd.results import read_results

EVAL = Path(__file__).parents[2] / "eval"
FLAGS: dict[str, Any] = {
    "image_aspect_ratio": "pad",
    "mm_vision_select_layer": -2,
    "model_max_length": 256,
    "tune_mm_mlp_adapter": True,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder_dir: Path, tiny_llama_dir: Path) -> Path:
    """A home with a world of two images, and a LLaVA model registered for the encoder `ours`."""
    home = tmp_path / "home"
    monkeypatch.setenv("LLAVA_OHD_HOME", str(home))
    folder = home / "world"
    for part in ("images/test", "pope", "annotations"):
        (folder / part).mkdir(parents=True)
    images, captions = [], []
    for number, color in enumerate(("red", "blue"), 1):
        Image.new("RGB", (40, 30), color).save(folder / f"images/test/{number}.png")
        images.append({"id": number, "file_name": f"test/{number}.png", "width": 40, "height": 30})
        captions.append({"id": number, "image_id": number, "caption": f"a {color} ball"})
    rows = [
        {"question_id": n, "image": f"test/{1 + n % 2}.png", "text": f"Is there a {kind} in the image?", "label": label}
        for n, (kind, label) in enumerate((("ball", "yes"), ("cup", "no")))
    ]
    for split in ("random", "popular", "adversarial"):
        (folder / f"pope/world_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    boxes = [{"id": 1, "image_id": 1, "category_id": 1}, {"id": 2, "image_id": 2, "category_id": 1}]
    kinds = [{"id": 1, "name": "ball"}, {"id": 2, "name": "cup"}]
    instances = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "annotations/instances_test.json").write_text(json.dumps(instances))
    (folder / "annotations/captions_test.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "synonyms.txt").write_text("ball\ncup\n")
    encoder = tower.check(tiny_encoder_dir)
    model = trainable(build(tiny_llama_dir, encoder), "projector")
    record = {
        "stage": "projector",
        "encoder": {"path": str(encoder.path), "digest": encoder.digest, "name": "ours"},
        "base": {"path": str(tiny_llama_dir), "sha256": model_dir.base_sha256(tiny_llama_dir)},
        "config": FLAGS,
    }
    config = llava_config(tiny_llama_dir, encoder, FLAGS)
    model_dir.write(home / "llava", model_dir.trained_weights(model), record, config)
    tower.register("ours", encoder.path, model=home / "llava")
    return folder


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EVAL / name), run_name="__main__")


def test_pope_answers_scores_and_does_not_answer_twice(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pope.py", monkeypatch, "--encoder", "ours", "--suffix", "--max_new_tokens", 4)
    out = world.parent / "eval/ours/pope"
    results = read_results(out / "results.json")
    assert results["n"] == 6
    assert results["encoder"]["name"] == "ours"
    assert results["model"]["digest"] == model_dir.read(world.parent / "llava").digest
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert rows[0]["question_id"] == "random/0"
    assert rows[0]["prompt"].endswith("Answer the question using a single word or phrase.")
    assert "f1_macro" in capsys.readouterr().out

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("llava_ohd.answering.engine.load", never)
    run("pope.py", monkeypatch, "--encoder", "ours", "--suffix", "--max_new_tokens", 4)
    assert read_results(out / "results.json")["metrics"] == results["metrics"]


def test_answers_are_verified_one_by_one(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pope.py", monkeypatch, "--max_new_tokens", 4, "--verify", 5)
    out = world.parent / "eval/ours/pope"
    assert "verified: 0 of 5 answers differ from one-by-one generation (float32)" in capsys.readouterr().out
    verified = read_results(out / "results.json")["model"]["verified"]
    assert verified == {"questions": 5, "differing": 0, "dtype": "float32"}
    rows = [json.loads(line) | {"text": "something else"} for line in (out / "answers.jsonl").read_text().splitlines()]
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("pope.py", monkeypatch, "--max_new_tokens", 4, "--verify", 5)
    assert "verified: 5 of 5 answers differ" in (printed := capsys.readouterr().out)
    assert "'something else', one by one" in printed


def test_an_image_that_changed_is_asked_about_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("chair.py", monkeypatch, "--max_new_tokens", 4)
    answers = world.parent / "eval/ours/chair/answers.jsonl"
    before = [json.loads(line)["metadata"]["run"] for line in answers.read_text().splitlines()]
    Image.new("RGB", (40, 30), "green").save(world / "images/test/1.png")
    run("chair.py", monkeypatch, "--max_new_tokens", 4)
    after = [json.loads(line)["metadata"]["run"] for line in answers.read_text().splitlines()]
    assert not set(before) & set(after)


def test_scoring_a_file_leaves_the_results_beside_it_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("pope.py", monkeypatch, "--max_new_tokens", 4)
    out = world.parent / "eval/ours/pope"
    before = (out / "results.json").read_bytes()
    run("pope.py", monkeypatch, "--answers", out / "answers.jsonl")
    scored = read_results(out / "answers_scored/results.json")
    assert (out / "results.json").read_bytes() == before
    assert scored["metrics"] == json.loads(before)["metrics"]
    assert scored["model"] is None
    assert "max_new_tokens" not in scored["settings"]


def test_answers_of_other_settings_are_kept(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pope.py", monkeypatch, "--max_new_tokens", 4)
    out = world.parent / "eval/ours/pope"
    before = {name: (out / name).read_bytes() for name in ("answers.jsonl", "results.json")}
    run("pope.py", monkeypatch, "--max_new_tokens", 3)
    [kept] = (out / "replaced").iterdir()
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert f"earlier answers: {kept}" in capsys.readouterr().out
    assert read_results(out / "results.json")["settings"]["max_new_tokens"] == 3


def test_answers_of_another_model_or_of_others_are_not_lost(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pope.py", monkeypatch, "--max_new_tokens", 4)
    shutil.copytree(world.parent / "llava", world.parent / "another")
    results = world.parent / "eval/ours/pope/results.json"
    before = results.read_bytes()
    model = ("--model", world.parent / "another", "--max_new_tokens", 5)
    with pytest.raises(SystemExit):
        run("pope.py", monkeypatch, *model)  # the encoder is that of the model
    assert "has results of the model llava, not of another; give another folder as --out" in capsys.readouterr().err
    assert results.read_bytes() == before
    (world.parent / "theirs").mkdir()
    theirs = world.parent / "theirs/answers.jsonl"
    theirs.write_text('{"question_id": 1, "text": "Yes"}\n')
    with pytest.raises(SystemExit):
        run("pope.py", monkeypatch, *model, "--out", theirs.parent)
    assert "holds answers that were not made here" in capsys.readouterr().err
    assert theirs.read_text() == '{"question_id": 1, "text": "Yes"}\n'
    run("pope.py", monkeypatch, *model, "--out", world.parent / "own")
    made = read_results(world.parent / "own/results.json")
    assert (made["encoder"]["name"], made["model"]["path"]) == ("ours", "another")
    how = {key: made["model"][key] for key in ("image_aspect_ratio", "image_backend", "template", "dtype")}
    assert how == {
        "image_aspect_ratio": "pad",
        "image_backend": "pillow",
        "template": "llava_v1",
        "dtype": "float16" if torch.cuda.is_available() else "float32",
    }


@pytest.mark.parametrize("flag", ["--max_new_tokens", "--batch_size"])
def test_nothing_below_one_is_answered(
    flag: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("pope.py", monkeypatch, flag, 0)
    assert f"{flag} 0: give a number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pope.py", "chair.py"])
def test_results_of_several_encoders_or_sets_never_share_a_place(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("--encoder", tower.resolve("ours")), ("--set", world)):
        with pytest.raises(SystemExit):
            run(name, monkeypatch, *arguments)
        assert "give a folder as --out" in capsys.readouterr().err


def test_chair_describes_and_scores(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("chair.py", monkeypatch, "--encoder", "ours", "--max_new_tokens", 4, "--out", tmp_path / "out")
    assert read_results(tmp_path / "out/results.json")["n"] == 2
    said = [{"image": f"test/{number}.png", "caption": "a ball and a cup"} for number in (1, 2)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    run("chair.py", monkeypatch, "--answers", tmp_path / "said.jsonl", "--out", tmp_path / "scored")
    metrics = read_results(tmp_path / "scored/results.json")["metrics"]
    assert metrics["chair_i"]["value"] == 0.5
    assert metrics["chair_s"]["value"] == 1.0


@pytest.mark.parametrize("name", ["pope.py", "chair.py"])
def test_wrong_encoders_models_and_images_are_refused(
    name: str,
    world: Path,
    tiny_encoder_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    clip = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    tower.write(clip, tmp_path / "other", files_from=tiny_encoder_dir, name="other", parents=[], config={})
    shutil.copytree(world, tmp_path / "torn")
    whole = (tmp_path / "torn/images/test/1.png").read_bytes()
    (tmp_path / "torn/images/test/1.png").write_bytes(whole[: len(whole) // 2])
    for arguments, message in (
        (("--encoder", "nobody"), "EncoderNotFound: unknown encoder 'nobody'"),
        (("--encoder", tmp_path / "other"), "ModelNotFound: no LLaVA model is registered"),
        (("--encoder", tmp_path / "other", "--model", world.parent / "llava"), "ModelFormatError"),
        (("--model", tmp_path / "other"), "ModelFormatError"),
        (("--model", tmp_path / "none"), "ModelNotFound"),
        (("--images", tmp_path / "none"), "DataFormatError"),
        (("--set", tmp_path / "none"), "DataFormatError"),
        (("--set", tmp_path / "torn"), "ImageError"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(name, monkeypatch, *arguments, "--out", tmp_path / "out")
        assert stopped.value.code == 2
        assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out/results.json").exists()
    assert not (tmp_path / "out/answers.jsonl").exists()


def test_two_ranks_write_the_file_of_one(world: Path, tmp_path: Path) -> None:
    """The launcher shares the two images out; rank 0 alone scores and speaks."""
    root, environment = EVAL.parent, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EVAL.parent)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, before in (("one", [sys.executable]), ("two", launch)):
        command = [*before, str(EVAL / "pope.py"), "--max_new_tokens", "4", "--out", str(tmp_path / name)]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("results: ") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    assert (two / "answers.jsonl").read_bytes() == (one / "answers.jsonl").read_bytes()
    assert (two / "results.json").read_bytes() == (one / "results.json").read_bytes()
    assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())
