"""`python -m llava_ohd.explain` and `eval/dense.py`, as they are typed."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

from llava_ohd import tower
from llava_ohd.clip.embedding import embed_captions
from llava_ohd.evals.dense_items import WordItem
from llava_ohd.explain.__main__ import main
from llava_ohd.explain.evaluate import _references, world_foils
from llava_ohd.explain.explainer import is_published_scale
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.world.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=300)


def test_one_caption(stock: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["--encoder", stock, "--template", "", "--out", tmp_path / "out"]
    done = run("-m", "llava_ohd.explain", pictures / "red.png", r"a price of $\tree$ coins", *options)
    assert done.returncode == 0, done.stderr  # matplotlib reads formulas between dollars
    done = run("-m", "llava_ohd.explain", pictures / "red.png", "a red ball, a tree", *options)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:6]] == ["a", "red", "ball", ",", "a", "tree"]
    assert "\033" not in done.stdout  # not a terminal
    assert f"was found for ViT-H/14, {stock} has another scale" in done.stdout
    with Image.open(tmp_path / "out/explanation.png") as picture:
        assert picture.size[0] > 500
    page = (tmp_path / "out/explanation.html").read_text()
    assert page.count("<span") == 6
    assert "data:image/png;base64," in page


def test_a_threshold_that_was_given_needs_no_note(stock: Path, pictures: Path) -> None:
    said = StringIO()
    with redirect_stdout(said):
        main([str(pictures / "red.png"), "a cup", "--encoder", str(stock), "--template", "", "--threshold=-1e-3"])
    assert "threshold -100" in said.getvalue()
    assert "note:" not in said.getvalue()
    published = {"text_config": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}}
    assert is_published_scale(published)
    assert not is_published_scale({"text_config": published["text_config"] | {"num_attention_heads": 12}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png", "a cup"], "nothing.png does not exist"),
        (["red.png", "  "], "has no word; give a caption"),
        (["red.png"], "give IMAGE and a caption"),
        (["red.png", "cup " * 99], "has 101 tokens with the template ''"),
        (["red.png", "a cup", "--variant", "x"], "variant 'x'"),
        (["red.png", "a cup", "--layers", "9"], "layers 9: the text tower has 3"),
        (["red.png", ""], "has no word; give a caption"),
        (["red.png", "a cup", "--threshold", "nan"], "--threshold nan: a number from -1 to 1 is expected"),
        (["red.png", "a cup", "--chair", "world"], "--chair has no effect here"),
        (["red.png", "a cup", "--out", __file__], "a folder is expected"),
        ([str(Path(__file__).parent), "a cup"], "an image file is expected"),
        (["--captions", "no.jsonl"], "--captions needs --images DIR"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], message: str, stock: Path, pictures: Path) -> None:
    if arguments[0].endswith(".png"):
        arguments = [str(pictures / arguments[0]), *arguments[1:]]
    said = StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as end:
        main([*arguments, "--encoder", str(stock), "--template", ""])
    assert end.value.code == 2
    assert message in said.getvalue()
    assert "Traceback" not in said.getvalue()


def test_foils_of_the_world_change_one_object_to_an_absent_one() -> None:
    rows = [
        OhdRow(f"{i}.png", "a large red ball, a small blue cup and a key", (), ("ball", "cup", "key"))
        for i in range(30)
    ]
    items = world_foils([*rows, OhdRow("x.png", "two cups", (), ("cup",))], KINDS, seed=1)
    assert len(items) == 60
    changed = set()
    for right, foil in zip(items[::2], items[1::2], strict=True):
        before, after = right.caption.split(), foil.caption.split()
        places = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(places) == 1
        assert after[places[0]].strip(",") == foil.wrong[0] not in rows[0].objects
        assert foil.group == {"ball": "large", "cup": "small"}.get(before[places[0]].strip(","), "")
        changed.add(before[places[0]])
    assert len(changed) == 3
    assert items == world_foils(rows, KINDS, seed=1)
    assert items != world_foils(rows, KINDS, seed=2)


def test_references_are_compared_behind_the_template(stock: Path) -> None:
    model, tokenizer = tower.load(stock).eval(), tower.load_tokenizer(stock)
    items = [
        WordItem("1", "", "1.png", "a red ball", True, references=("a tree", "a red ball")),
        WordItem("2", "", "1.png", "a cup", True),
        WordItem("3", "", "1.png", "a star", True, references=("a blue key",)),
    ]
    same, none, other = _references(model, tokenizer, items, "a photo of ")
    assert (same, none) == (pytest.approx(1.0, abs=1e-6), None)
    (one, two), _ = embed_captions(model, tokenizer, ["a photo of a star", "a photo of a blue key"])
    assert other == pytest.approx(float(one @ two), abs=1e-6)


def test_dense_on_a_file(stock: Path, pictures: Path, tmp_path: Path) -> None:
    rows = {
        f"{name}": {
            "image_file": f"{name}.png",
            "caption": f"a {name} box",
            "foil": f"a {name} tree",
            "classes_foil": "tree",
            "mturk": {"caption": 3},
        }
        for name in ("red", "green", "blue")
    }
    (tmp_path / "foil.json").write_text(json.dumps(rows))
    options = ["--data", tmp_path / "foil.json", "--images", pictures, "--encoder", stock, "--template", "", "--out"]
    done = run("eval/dense.py", *options, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out/words.jsonl").read_text().splitlines()]
    lowest = [min(line["words"], key=lambda word: word[1])[0] == "tree" for line in lines if line["wrong"]]
    assert record["metrics"]["localisation"]["value"] == sum(lowest) / 3
    assert record["metrics"]["localisation_chance"]["value"] == pytest.approx(1 / 3)
    assert record["settings"]["set"] == "foil"
    refused = run("eval/dense.py", *options, tmp_path / "out2", "--images", tmp_path)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
