"""The question builder, against the files that the original code writes and the tables that its authors published."""

import json
import re
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import (
    STRATEGIES,
    ImageObjects,
    Sampler,
    build_questions,
    co_occurrence,
    frequency,
    question_text,
    read_coco_objects,
    write_questions,
)
from llava_ohd.files import read_json, read_jsonl

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CASES = SHARED / "cases" / "pope_builder"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")

KITCHEN = [
    ImageObjects("1.jpg", ("cup", "table", "spoon")),
    ImageObjects("2.jpg", ("table", "cup", "apple")),
    ImageObjects("3.jpg", ("dog", "ball", "tree")),
    ImageObjects("4.jpg", ("cup", "dog")),
]


def read_rows(path: Path) -> list[ImageObjects]:
    return [ImageObjects(row["image"], tuple(row["objects"])) for row in read_jsonl(path)]


@needs_cases
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seed_0_gives_the_files_of_the_original(strategy):
    built = build_questions(read_rows(CASES / "small_segmentation.jsonl"), n_images=20, n_per_image=3, seed=0)
    text = (CASES / "expected_seed0" / "small" / f"small_pope_{strategy}.json").read_text().replace("imange", "image")
    assert built[strategy] == [json.loads(line) for line in text.splitlines()]


@needs_cases
def test_frequency_and_co_occurrence_of_the_original():
    expected = CASES / "expected_seed0" / "small"
    order = dict.fromkeys(row["image"] for row in read_jsonl(expected / "small_pope_random.json"))
    objects = {image.image: image for image in read_rows(CASES / "small_segmentation.jsonl")}
    selected = [objects[name] for name in order]
    counts = frequency(selected)
    assert list(counts.items()) == list(read_json(expected / "small_ground_truth_objects.json").items())
    beside = co_occurrence(selected)
    assert list(beside.items()) == list(read_json(expected / "small_co_occur.json").items())


@needs_cases
@pytest.mark.parametrize(("strategy", "agree"), [("popular", 1500), ("adversarial", 1497)])
def test_the_published_negatives_follow_from_the_published_tables(strategy, agree):
    """The other three adversarial ones are the random fallback, whose stream nobody knows."""
    present = {row["image"]: row["objects"] for row in read_json(CASES / "coco_pope_500_images_objects.json")}
    counts = read_json(CASES / "coco_ground_truth_objects_frequency.json")
    sampler = Sampler([ImageObjects("", (name,)) for name in counts for _ in range(counts[name])], seed=0)
    sampler._beside = read_json(CASES / "coco_co_occur.json")
    rows = read_jsonl(SHARED / "data" / "pope" / "coco_official_08d957b" / f"coco_pope_{strategy}.json")
    found, history, image = 0, [], None
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        history = history if yes["image"] == image else []
        image = yes["image"]
        positive, negative = (re.match(r"Is there an? (.*) in the image", row["text"])[1] for row in (yes, no))
        found += sampler.absent(present[image], positive, strategy, [*history, positive]) == negative
        history += [positive, negative]
    assert found == agree


def test_counts_keep_the_order_first_seen():
    assert list(frequency(KITCHEN).items()) == [
        ("cup", 3), ("table", 2), ("spoon", 1), ("apple", 1), ("dog", 2), ("ball", 1), ("tree", 1),
    ]  # fmt: skip
    assert co_occurrence(KITCHEN)["cup"] == ["table", "spoon", "apple", "dog"]


def test_strategies():
    sampler = Sampler(KITCHEN, seed=0)
    assert sampler.absent(["spoon"], "spoon", "popular", []) == "cup"
    assert sampler.absent(["spoon"], "spoon", "popular", ["cup"]) == "table"
    assert sampler.absent(["ball"], "ball", "adversarial", []) == "dog"
    drawn = {sampler.absent(["cup", "dog"], "cup", "random", ["tree"]) for _ in range(100)}
    assert drawn == {"table", "spoon", "apple", "ball"}
    with pytest.raises(ValueError, match="strategy 'often' is not one of random, popular, adversarial"):
        sampler.absent(["cup"], "cup", "often", [])


def test_adversarial_falls_back_to_any_absent_object():
    sampler = Sampler(KITCHEN, seed=0)
    assert sampler.absent(["dog", "ball", "tree"], "ball", "adversarial", []) in {"cup", "table", "spoon", "apple"}


def test_nothing_absent_left():
    with pytest.raises(DataFormatError, match="all 7 known objects"):
        Sampler(KITCHEN, seed=0).absent(list(frequency(KITCHEN)), "cup", "random", [])


def test_questions_alternate_and_never_repeat():
    built = build_questions(KITCHEN, n_images=3, seed=1)
    present = {image.image: set(image.objects) for image in KITCHEN}
    for strategy in STRATEGIES:
        rows = built[strategy]
        assert [row["question_id"] for row in rows] == list(range(1, 19))
        assert [row["label"] for row in rows] == ["yes", "no"] * 9
        assert len({(row["image"], row["text"]) for row in rows}) == 18
        for row in rows:
            name = row["text"].split()[3]
            assert (name in present[row["image"]]) == (row["label"] == "yes")


def test_same_seed_same_questions():
    assert build_questions(KITCHEN, n_images=2, seed=5) == build_questions(KITCHEN, n_images=2, seed=5)


def test_too_few_images():
    with pytest.raises(DataFormatError, match="3 images have at least 3 objects, 4 are wanted"):
        build_questions(KITCHEN, n_images=4, seed=0)


def test_article():
    assert question_text("orange") == "Is there an orange in the image?"
    assert question_text("cup") == "Is there a cup in the image?"


def test_coco_file(tmp_path):
    record = {
        "images": [{"id": 7, "file_name": "test/7.png"}, {"id": 8, "file_name": "test/8.png"}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": c} for c in (2, 1, 2)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(record))
    assert read_coco_objects(path) == [ImageObjects("test/7.png", ("dog", "cup")), ImageObjects("test/8.png", ())]
    record["annotations"].append({"image_id": 9, "category_id": 1})
    path.write_text(json.dumps(record))
    with pytest.raises(DataFormatError, match="not a COCO instances file: 9 is missing"):
        read_coco_objects(path)


def test_written_files_are_read_back(tmp_path):
    built = build_questions(KITCHEN, n_images=2, seed=0)
    write_questions(tmp_path, "world", built)
    assert read_jsonl(tmp_path / "world_pope_popular.json") == built["popular"]
