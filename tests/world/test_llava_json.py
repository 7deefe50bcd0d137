"""LLaVA's training json from COCO files: format, descriptions, and questions whose answers cannot be guessed."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.coco import CocoImage, Instance, describe, read_coco
from llava_ohd.world.llava_json import DESCRIBE, instruct_rows, pretrain_rows, write_llava_json

KINDS = ["ball", "cup", "star", "tree", "umbrella", "box", "key", "lamp"]


def images(n: int = 300) -> list[CocoImage]:
    rng = random.Random(1)
    return [
        CocoImage(
            f"train/{i:06d}.png",
            tuple(Instance(kind, (rng.random(), 0, 1, 1), "red") for kind in rng.sample(KINDS, rng.randint(1, 5))),
            ("a red ball", f"picture {i}"),
        )
        for i in range(n)
    ]


def coco(folder: Path, boxes: list[dict[str, Any]], captions: list[dict[str, Any]]) -> tuple[Path, Path]:
    pictures = [{"id": i, "file_name": f"train/{i}.png", "width": 9, "height": 9} for i in (1, 2)]
    categories = [{"id": 7, "name": "ball"}, {"id": 8, "name": "umbrella"}]
    (folder / "i.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": categories}))
    (folder / "c.json").write_text(json.dumps({"images": pictures, "annotations": captions}))
    return folder / "i.json", folder / "c.json"


def test_files_have_llava_s_format(tmp_path: Path) -> None:
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 0, 1, 1], "color": "blue"},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [1, 0, 1, 1], "color": "red"},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [1, 0, 1, 1]},
    ]
    captions = [{"image_id": 1, "caption": "A blue ball ."}, {"image_id": 2, "caption": "ball"}]
    instances, texts = coco(tmp_path, boxes, captions)
    write_llava_json(instances, texts, tmp_path / "p.json", tmp_path / "i2.json", seed=0)
    pretrain = json.loads((tmp_path / "p.json").read_text())
    assert pretrain[0] == {
        "id": "000000",
        "image": "train/1.png",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A blue ball ."}],
    }
    instruct = json.loads((tmp_path / "i2.json").read_text())
    assert [row["image"] for row in instruct] == ["train/1.png", "train/1.png", "train/2.png", "train/2.png"]
    assert instruct[0]["conversations"] == [
        {"from": "human", "value": f"<image>\n{DESCRIBE}"},
        {"from": "gpt", "value": "a red umbrella and a blue ball"},
    ]
    for row in instruct:
        values = [turn["value"] for turn in row["conversations"]]
        assert [("<image>" in value) for value in values] == [True] + [False] * (len(values) - 1)
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(values) // 2)
    assert len({row["id"] for row in instruct}) == len(instruct)


def test_description_groups_and_counts() -> None:
    boxes = [("dog", 5.0), ("car", 1.0), ("person", 3.0), ("car", 9.0)]
    instances = [Instance(name, (left, 0, 1, 1), crowd=name == "person") for name, left in boxes]
    assert describe(instances) == "two cars, several people and a dog"


def test_answers_are_right_balanced_and_never_repeated() -> None:
    pictures = images()
    by_name = {image.file_name: image for image in pictures}
    labels: Counter[str] = Counter()
    for row in instruct_rows(pictures, seed=0):
        turns = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        if turns[0] == DESCRIBE:
            continue
        names = [text.removesuffix(" in the image?").split(" ", 3)[3] for text in turns[::2]]
        assert len(set(names)) == len(names)
        for name, answer in zip(names, turns[1::2], strict=True):
            assert (name in by_name[row["image"]].objects) == (answer == "Yes")
        labels.update(turns[1::2])
    assert 0.9 < labels["Yes"] / labels["No"] < 1.1


def test_the_answers_given_do_not_tell_the_next() -> None:
    after: dict[str, Counter[str]] = {"Yes": Counter(), "No": Counter()}
    for row in instruct_rows(images(2000), seed=0):
        answers = [turn["value"] for turn in row["conversations"][1::2]]
        for previous, answer in pairwise(answers):
            if previous in after:
                after[previous][answer] += 1
    for counts in after.values():
        assert abs(counts["Yes"] / counts.total() - 0.5) < 0.07


def test_same_seed_same_rows() -> None:
    pictures = images(50)
    assert instruct_rows(pictures, seed=3) == instruct_rows(pictures, seed=3)
    assert instruct_rows(pictures, seed=3) != instruct_rows(pictures, seed=4)
    assert pretrain_rows(pictures, seed=3) == pretrain_rows(pictures, seed=3)


def test_number_of_captions_and_questions() -> None:
    pictures = images(20)
    assert len(pretrain_rows(pictures, seed=0)) == 20
    assert len(pretrain_rows(pictures, seed=0, n_captions=9)) == 40
    assert len(instruct_rows(pictures, seed=0, n_questions=0)) == 20


def test_an_image_with_every_object_still_gets_a_question() -> None:
    everything = CocoImage("a.png", tuple(Instance(kind, (0, 0, 1, 1)) for kind in KINDS))
    for seed in range(20):
        _, questions = instruct_rows([everything], seed=seed)
        assert {turn["value"] for turn in questions["conversations"][1::2]} == {"Yes"}


def test_broken_files_are_named(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 0, 1, 1]}
    text = {"image_id": 1, "caption": "ball"}
    cases = [
        ([{**box, "image_id": 99}], [text], "i.json is not a COCO file"),
        ([{"id": 1, "image_id": 1, "category_id": 7}], [text], "'bbox' is missing"),
        ([box], [{"image_id": 99, "caption": "ball"}], "same split"),
        ([box], [{"image_id": 1}], "c.json is not a COCO file"),
        ([], [text], "has any object"),
    ]
    for boxes, texts, said in cases:
        instances, captions = coco(tmp_path, boxes, texts)
        with pytest.raises(DataFormatError, match=said):
            write_llava_json(instances, captions, tmp_path / "p.json", tmp_path / "q.json", seed=0)
        assert not (tmp_path / "p.json").exists()
    with pytest.raises(DataFormatError, match="does not exist"):
        read_coco(tmp_path / "nowhere.json")
