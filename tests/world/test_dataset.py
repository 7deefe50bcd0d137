"""The data folder of the world: COCO format, read by the same readers as COCO."""

import json
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.evals import pope
from llava_ohd.evals.chair import read_synonyms
from llava_ohd.ohd_caps.coco import read_coco
from llava_ohd.tower import open_image
from llava_ohd.world.dataset import WorldConfig, write_world
from llava_ohd.world.kinds import KINDS

SMALL = WorldConfig(train=30, dev=4, test=40, zero_shot=20, pope_images=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    write_world(folder, SMALL)
    return folder


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_splits_are_coco(world: Path, split: str) -> None:
    annotations = world / "annotations"
    images = read_coco(annotations / f"instances_{split}.json", annotations / f"captions_{split}.json")
    assert len(images) == getattr(SMALL, split)
    for image in images:
        assert len(image.captions) == 5
        assert 1 <= len(image.objects) <= 5
        assert open_image(world / "images" / image.file_name).size == (64, 64)


def test_zero_shot_has_every_kind_alike_often(world: Path) -> None:
    images = read_coco(world / "annotations" / "instances_zero_shot.json")
    assert [image.objects for image in images] == [(kind,) for kind in KINDS]


def test_pope_questions_agree_with_the_instances(world: Path) -> None:
    questions = pope.read_questions(world / "pope")
    present = {image.file_name: image.objects for image in read_coco(world / "annotations" / "instances_test.json")}
    assert len(questions) == 3 * 6 * SMALL.pope_images
    for question in questions:
        kind = question.prompt.removesuffix(" in the image?").split()[-1]
        assert (kind in present[question.image]) == (question.label == "yes")


def test_llava_rows_agree_with_the_instances(world: Path) -> None:
    present = {image.file_name: image.objects for image in read_coco(world / "annotations" / "instances_train.json")}
    for row in json.loads((world / "llava" / "instruct.json").read_text()):
        turns = row["conversations"]
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            if asked["value"].startswith(("Is there", "<image>\nIs there")):
                kind = asked["value"].removesuffix(" in the image?").split()[-1]
                assert (kind in present[row["image"]]) == (answered["value"] == "Yes")


def test_synonyms_name_every_kind(world: Path) -> None:
    assert read_synonyms(world / "synonyms.txt").objects(" ".join(KINDS)) == list(KINDS)


def test_same_seed_same_files(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", SMALL)
    names = [path.relative_to(world) for path in sorted(world.rglob("*")) if path.is_file()]
    assert names
    for name in names:
        assert (world / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_too_few_images_for_pope_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="images have at least 3 objects, 500 are wanted"):
        write_world(tmp_path / "world", WorldConfig(train=5, dev=1, test=5, zero_shot=20))
    assert list(tmp_path.iterdir()) == []
