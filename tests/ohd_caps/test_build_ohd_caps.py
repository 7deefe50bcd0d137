"""The builder and its command: 27 negatives per image, the same for the same seed; errors name the file."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl, sha256_file
from llava_ohd.ohd_caps.build import BuildConfig, build_file, build_rows
from llava_ohd.ohd_caps.by_rule import RuleWriter, Written
from llava_ohd.ohd_caps.coco import CocoImage, Instance
from llava_ohd.ohd_caps.exclusions import image_key
from llava_ohd.ohd_caps.planning import Plan, make_plans
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.ohd_caps.shards import write_in_shards

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases" / "pope_builder"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")
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


def test_same_seed_same_rows_and_a_limit_gives_the_first() -> None:
    pictures, config = images(70), BuildConfig(seed=3)
    rows = build_rows(pictures, config)
    assert build_rows(pictures, replace(config, limit=5)) == rows[:5]
    assert build_rows(pictures, replace(config, seed=4)) != rows


def test_the_number_of_workers_does_not_change_the_file(tmp_path: Path) -> None:
    for workers in (1, 2):
        planned = make_plans(images(250), BuildConfig(workers=workers))
        build_file(tmp_path / f"{workers}.jsonl", planned, RuleWriter(planned), [], [])
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("1.jsonl", "1.provenance.json", "2.jsonl", "2.provenance.json")
    ]


def test_shards_of_the_same_making_are_taken_and_others_are_not(tmp_path: Path) -> None:
    plans = make_plans(images(450), BuildConfig()).plans
    asked: list[int] = []

    def write(part: Sequence[Plan]) -> list[Written]:
        asked.append(len(part))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [Written(OhdRow(plan.image, plan.caption, (Negative("x", "random", ("y",)),), ()), 1) for plan in part]

    with pytest.raises(KeyboardInterrupt):
        write_in_shards(tmp_path / "parts", {"a": (1,)}, plans, write, 1)
    written = write_in_shards(tmp_path / "parts", {"a": (1,)}, plans, write, 1)
    assert asked == [200, 200, 200, 50]
    assert written == [item for start in (0, 200, 400) for item in write(plans[start : start + 200])]
    write_in_shards(tmp_path / "parts", {"a": (2,)}, plans, write, 1)
    assert asked[-3:] == [200, 200, 50]


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


def test_objects_that_only_the_caption_names_are_present() -> None:
    pictures = [CocoImage("a.png", (Instance("cup", (0, 0, 1, 1)),), ("a cup and a sofa",)), *images(20)]
    row = build_rows(pictures, BuildConfig(), vocabulary=["sofa"])[0]
    assert row.objects == ("cup", "sofa")


def test_too_little_input_is_refused() -> None:
    with pytest.raises(DataFormatError, match="none of the 1 images"):
        build_rows([CocoImage("a.png", (), ("x",))], BuildConfig())
    with pytest.raises(DataFormatError, match=r"a\.png: .* no absent object is left after 0, .* Give more images"):
        build_rows([CocoImage("a.png", (Instance("cup", (0, 0, 1, 1)),), ("a cup",))], BuildConfig())


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "scripts" / "build_ohd_caps.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def write_source(path: Path, n: int) -> Path:
    rows = [{"image": image.file_name, "captions": image.captions, "objects": image.objects} for image in images(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_killed_and_started_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "rows.jsonl", 750), tmp_path / "o.jsonl"
    words = [sys.executable, str(ROOT / "scripts" / "build_ohd_caps.py"), "--source", str(source), "--out", str(out)]
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        while len(list(tmp_path.glob("o.jsonl.parts/0*.jsonl"))) < 2:
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    left = list(tmp_path.glob("o.jsonl.parts/0*.jsonl"))
    assert 2 <= len(left) < 4
    assert not out.exists()
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=True).returncode == 0
    planned = make_plans(images(750), BuildConfig())
    build_file(tmp_path / "whole.jsonl", planned, RuleWriter(planned), [], [])
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "o.jsonl.parts").exists()


def test_command_leaves_images_out_says_how_many_and_writes_the_origin(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "rows.jsonl", 30), tmp_path / "o.jsonl"
    (tmp_path / "pope.json").write_text('{"image": "test/000003.png", "text": "?"}\n{"image": "none.png"}\n')
    (tmp_path / "ids.txt").write_text("000004\n000005.png\n")
    done = command("--source", source, "--out", out, "--exclude", tmp_path / "pope.json", tmp_path / "ids.txt")
    assert f"left out: 1 of 30 images, because {tmp_path / 'pope.json'} names them" in done.stdout
    assert "left out: 2 of 30 images" in done.stdout
    assert {row.image for row in read_rows(out)}.isdisjoint({f"train/{i:06d}.png" for i in (3, 4, 5)})
    record = read_json(tmp_path / "o.provenance.json")
    assert record["rows"] == 27
    assert record["config"] == {"seed": 0, "limit": None, "caption": "most", "altered": 0.5}
    assert record["sources"] == [{"file": "rows.jsonl", "sha256": sha256_file(source)}]
    assert [(item["file"], item["images_excluded"]) for item in record["exclusions"]] == [
        ("pope.json", 1),
        ("ids.txt", 2),
    ]
    assert record["sha256"] == sha256_file(out)
    assert record["rewriter"] == {"kind": "rule"}
    assert sum(record["negatives"].values()) == 27 * 27
    assert record["negatives"]["random"] == 27 * 7


@needs_cases
@pytest.mark.parametrize("strategy", ["popular", "adversarial"])
def test_absent_objects_are_those_that_pope_asks_for(strategy: str) -> None:
    """The twenty images of POPE's own run; where its choice was no chance, the builder makes the same."""
    expected = CASES / "expected_seed0" / "small"
    rows = read_jsonl(expected / f"small_pope_{strategy}.json")
    objects = {row["image"]: row["objects"] for row in read_jsonl(CASES / "small_segmentation.jsonl")}
    asked: dict[str, list[str]] = {}
    for row in rows:
        if row["label"] == "no":
            asked.setdefault(row["image"], []).append(re.match(r"Is there an? (.*) in the ima", row["text"])[1])
    pictures = [
        CocoImage(name, tuple(Instance(kind, (0, 0, 0, 0)) for kind in objects[name]), ("nothing",)) for name in asked
    ]
    plans = make_plans(pictures, BuildConfig()).plans
    beside = read_json(expected / "small_co_occur.json")
    compared = 0
    for plan, (image, absent) in zip(plans, asked.items(), strict=True):
        assert plan.image == image
        for index, name in enumerate(absent):
            chance = strategy == "adversarial" and name not in beside[objects[image][index]]
            if chance:
                break  # what follows depends on what was drawn
            assert plan.absent[strategy][index] == name
            compared += 1
    assert compared >= {"popular": 60, "adversarial": 30}[strategy]


def test_command_writes_rows_and_prints_the_controls(tmp_path: Path) -> None:
    done = command(
        "--rows", write_source(tmp_path / "rows.jsonl", 30), "--out", tmp_path / "out" / "o.jsonl", "--limit", 9
    )
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out" / "o.jsonl")) == 9
    assert "9 rows of 30 images" in done.stdout
    assert "chance 3.6 %" in done.stdout


def test_the_source_is_not_written_over(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    rows = [("a fork on a table", ["fork"]), ("a dog and a cat", ["dog", "cat"]), ("a man on a horse", ["horse"])]
    rows += [("a red car", ["car"]), ("an apple and a cup", ["apple", "cup"])]
    lines = [json.dumps({"image": f"{n}.jpg", "caption": row[0], "objects": row[1]}) for n, row in enumerate(rows)]
    source.write_text("\n".join(lines))
    before = source.read_bytes()
    done = command("--source", source, "--out", tmp_path / "." / "mine.jsonl")
    assert done.returncode == 2
    assert "is what the rows are made from" in done.stderr
    assert source.read_bytes() == before


def test_command_refuses_wrong_input_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    for source in (tmp_path / "nowhere.json", tmp_path / "empty.json"):
        done = command("--instances", source, "--captions", source, "--out", tmp_path / "o.jsonl")
        assert done.returncode == 2
        assert done.stderr.startswith("error: DataFormatError:")
        assert str(source) in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "o.jsonl").exists()
