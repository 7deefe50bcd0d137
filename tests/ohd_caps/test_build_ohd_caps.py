"""The builder and its command: 27 negatives per image, the same for the same seed; errors name the file."""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.build import BuildConfig, build_rows
from llava_ohd.ohd_caps.coco import CocoImage, Instance
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.sources import image_key, read_captioned_objects, read_exclusions, read_vocabulary

ROOT = Path(__file__).parents[2]
KINDS = ["ball", "cup", "star", "tree", "umbrella", "box", "key", "lamp", "kite", "moon"]
COLOURS = ["red", "green", "blue", "black"]


def images(n: int = 120) -> list[CocoImage]:
    """Images of 1 to 4 objects, each with one caption of everything, coloured or not, and one of its first object."""
    rng = random.Random(1)
    made = []
    for i in range(n):
        kinds = rng.sample(KINDS, rng.randint(1, 4))
        colours = [f"{rng.choice(COLOURS)} " if i % 2 else "" for _ in kinds]
        phrases = [f"{colour}{kind}" for colour, kind in zip(colours, kinds, strict=True)]
        phrases = [f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}" for phrase in phrases]
        full = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
        instances = tuple(Instance(kind, (0, 0, 1, 1)) for kind in kinds)
        made.append(CocoImage(f"train/{i:06d}.png", instances, (phrases[0], full)))
    return made


def test_every_row_is_complete() -> None:
    pictures = images()
    rows = build_rows(pictures, BuildConfig(seed=0))
    assert [row.image for row in rows] == [image.file_name for image in pictures]
    for row, image in zip(rows, pictures, strict=True):
        assert row.objects == image.objects
        assert row.caption == image.captions[1] or len(image.objects) == 1
        strategies = [negative.strategy for negative in row.negatives]
        assert strategies[:21] == ["random"] * 7 + ["popular"] * 7 + ["adversarial"] * 7
        assert set(strategies[21:]) <= {"removal", "alteration"}
        assert len(row.negatives) == 27
        assert row.captions.count(row.caption) == 1
        # "a lamp" with ten kinds in all has fewer than 27 edits
        assert len(set(row.captions)) == 28 or len(image.objects) == 1
        assert [len(negative.objects) for negative in row.negatives[:7]] == [1, 1, 1, 2, 2, 2, 3]


def test_negatives_are_wrong_about_the_image() -> None:
    for row in build_rows(images(), BuildConfig(seed=0)):
        for negative in row.negatives:
            words = set(negative.caption.replace(",", "").split())
            if negative.strategy in ("random", "popular", "adversarial"):
                assert words.isdisjoint(negative.objects) is False
                assert set(negative.objects) <= words
                assert not set(negative.objects) & set(row.objects)
            elif negative.strategy == "removal":
                assert not set(negative.objects) & words
                assert words & set(KINDS) <= set(row.objects)


def test_popular_objects_are_the_frequent_ones() -> None:
    pictures = images()
    counts = Counter(name for image in pictures for name in image.objects)
    rows = build_rows(pictures, BuildConfig(seed=0))
    for row in rows[:20]:
        absent = [name for name in dict(counts.most_common()) if name not in row.objects]
        assert counts[row.negatives[7].objects[0]] == counts[absent[0]]


def test_same_seed_same_rows_whatever_the_number_of_workers_and_the_limit() -> None:
    pictures, config = images(70), BuildConfig(seed=3)
    rows = build_rows(pictures, config)
    assert build_rows(pictures, replace(config, workers=2)) == rows
    assert build_rows(pictures, replace(config, limit=5)) == rows[:5]
    assert build_rows(pictures, replace(config, seed=4)) != rows


def test_share_of_alterations() -> None:
    def removals(altered: float) -> int:
        rows = build_rows(images(60), BuildConfig(altered=altered))
        return sum(negative.strategy == "removal" for row in rows for negative in row.negatives)

    assert removals(1.0) == 0
    assert 0 < removals(0.5) < removals(0.0)


def test_choice_of_caption() -> None:
    pictures = images(30)
    assert [row.caption for row in build_rows(pictures, BuildConfig(caption="first"))] == [
        image.captions[0] for image in pictures
    ]
    drawn = [row.caption for row in build_rows(pictures, BuildConfig(caption="random"))]
    assert {image.captions.index(caption) for image, caption in zip(pictures, drawn, strict=True)} == {0, 1}


def test_excluded_images_and_images_without_objects_are_left_out() -> None:
    pictures = [
        *images(20),
        CocoImage("empty.png", (), ("a wall",)),
        CocoImage("mute.png", (Instance("cup", (0,) * 4),)),
    ]
    rows = build_rows(pictures, BuildConfig(), excluded={image_key(pictures[0].file_name)})
    assert [row.image for row in rows] == [image.file_name for image in pictures[1:20]]


def test_images_to_leave_out_are_read_from_lists_questions_and_coco_files(tmp_path: Path) -> None:
    list_, questions, coco = tmp_path / "l.txt", tmp_path / "q.json", tmp_path / "instances_val2014.json"
    list_.write_text("COCO_val2014_000000000001.jpg\n")
    questions.write_text('{"image": "COCO_val2014_000000000001.jpg", "text": "?"}\n' * 2)
    coco.write_text(json.dumps({"images": [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"}]}, indent=1))
    for path in (list_, questions, coco):
        assert read_exclusions(path) == {image_key("train2017/000000000001.jpg")}, path


def test_objects_that_only_the_caption_names_are_present() -> None:
    pictures = [CocoImage("a.png", (Instance("cup", (0, 0, 1, 1)),), ("a cup and a sofa",)), *images(20)]
    row = build_rows(pictures, BuildConfig(), vocabulary=["sofa"])[0]
    assert row.objects == ("cup", "sofa")


def test_too_little_input_is_refused() -> None:
    with pytest.raises(DataFormatError, match="none of the 1 images"):
        build_rows([CocoImage("a.png", (), ("x",))], BuildConfig())
    with pytest.raises(DataFormatError, match="no absent object is left"):
        build_rows([CocoImage("a.png", (Instance("cup", (0, 0, 1, 1)),), ("a cup",))], BuildConfig())


def test_image_key_joins_coco_s_names() -> None:
    assert image_key("COCO_val2014_000000310196.jpg") == image_key("train2017/000000310196.jpg") == "000000310196"
    assert image_key("train/000001.png") == "000001"
    assert image_key("images/4159032091.jpg") == "4159032091"


def test_lists_and_rows(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("train2017/000000310196.jpg\n\n")
    (tmp_path / "x.jsonl").write_text('{"image": "COCO_val2014_000000310196.jpg"}\n{"file_path": "b.jpg"}\n')
    assert read_exclusions(tmp_path / "x.txt") == {"000000310196"}
    assert read_exclusions(tmp_path / "x.jsonl") == {"000000310196", "b"}
    (tmp_path / "v.txt").write_text("Dog, puppy\ncat\n")
    assert read_vocabulary(tmp_path / "v.txt") == ["dog", "cat"]
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "a", "caption": "a  cup", "objects": ["cup"]}\n{"image": "a", "captions": ["b"], "objects": []}\n'
    )
    assert read_captioned_objects(tmp_path / "rows.jsonl") == [
        CocoImage("a", (Instance("cup", (0, 0, 0, 0)),), ("a cup", "b"))
    ]
    (tmp_path / "bad.jsonl").write_text('{"image": "a", "caption": "a cup", "objects": ["cup"]}\n{"image": "a"}\n')
    with pytest.raises(DataFormatError, match=r"bad.jsonl row 2"):
        read_captioned_objects(tmp_path / "bad.jsonl")
    for name in ("nowhere.txt", "nowhere.json"):
        with pytest.raises(DataFormatError, match="does not exist"):
            read_exclusions(tmp_path / name)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "scripts" / "build_ohd_caps.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_command_writes_rows_and_prints_the_controls(tmp_path: Path) -> None:
    rows = [{"image": image.file_name, "captions": image.captions, "objects": image.objects} for image in images(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("--rows", tmp_path / "rows.jsonl", "--out", tmp_path / "out" / "o.jsonl", "--limit", 9)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out" / "o.jsonl")) == 9
    assert "9 rows of 30 images" in done.stdout
    assert "chance 3.6 %" in done.stdout


def test_command_refuses_wrong_input_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    for source in (tmp_path / "nowhere.json", tmp_path / "empty.json"):
        done = command("--instances", source, "--captions", source, "--out", tmp_path / "o.jsonl")
        assert done.returncode == 2
        assert done.stderr.startswith("error: DataFormatError:")
        assert str(source) in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "o.jsonl").exists()
