"""Readers of the published form and of COCO; malformed sets refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.coco import read_coco_set
from llava_ohd.probes.pictures import read_set, split_name


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    classes = ("banana", "horse", "sheep", "tennis_racket")
    _touch(tmp_path / "CoCo-OneObject", *(f"{name}.png" for name in classes))
    _touch(tmp_path / "CoCo-ThreeObject-BRBig", "banana_horse_sheep.png", "tennis_racket_sheep_banana.png")
    _touch(tmp_path / "CoCo-FourObject-Middle-Big", "banana_horse_sheep_tennis_racket.png")
    return tmp_path


def test_file_names_are_objects_by_slot(published: Path) -> None:
    found = read_set(published)
    assert found.classes == ("banana", "horse", "sheep", "tennis_racket")
    assert found.single["tennis_racket"] == "CoCo-OneObject/tennis_racket.png"
    three, four = found.layouts
    assert (three.slots, three.large) == (("UL", "Middle", "BR"), "BR")
    assert [picture.names for picture in three.pictures] == [
        ("banana", "horse", "sheep"),
        ("tennis_racket", "sheep", "banana"),
    ]
    assert [item.name for item in three.pictures[0].by_size] == ["sheep", "banana", "horse"]
    assert three.pictures[0].objects[0].area is None  # the published set does not say
    assert (four.slots, four.large) == (("UL", "Middle", "BL", "BR"), "Middle")
    assert four.pictures[0].by_size[0].name == "horse"


def test_a_name_must_be_readable_in_one_way() -> None:
    assert split_name("hot_dog_cup", ["hot_dog", "cup", "dog"], 2, "x") == ("hot_dog", "cup")
    for stem, count, ways in (("cup_mug", 2, 0), ("cup_cup", 2, 0), ("cup", 2, 0)):
        with pytest.raises(DataFormatError, match=f"f can be read in {ways} ways as {count} different classes"):
            split_name(stem, ["hot_dog", "cup"], count, "f")
    with pytest.raises(DataFormatError, match="in 2 ways"):
        split_name("a_b_c", ["a", "b_c", "a_b", "c"], 2, "f")


def test_malformed_sets_are_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"nowhere is not a folder; expected is a folder with OneObject"):
        read_set(tmp_path / "nowhere")
    _touch(published / "CoCo-OneObject", "horse.jpg")
    with pytest.raises(DataFormatError, match="second picture of 'horse'"):
        read_set(published)
    (published / "CoCo-OneObject" / "horse.jpg").unlink()
    _touch(published / "CoCo-ThreeObject-BRBig", "banana_zebra_sheep.png")
    with pytest.raises(DataFormatError, match=r"banana_zebra_sheep.png can be read in 0 ways as 3 different classes"):
        read_set(published)
    (published / "CoCo-ThreeObject-BRBig" / "banana_zebra_sheep.png").unlink()
    _touch(published / "TwoObject-UpBig", "banana_horse.png")
    with pytest.raises(DataFormatError, match=r"TwoObject-UpBig does not say which slot is large: -LBig, "):
        read_set(published)


def test_records_must_belong_to_the_pictures(published: Path) -> None:
    file = published / "objects.json"
    file.write_text(json.dumps({"x": 1}))
    with pytest.raises(DataFormatError, match="has no layouts and size"):
        read_set(published)
    rows = [{"name": name, "area": 3.0, "box": [0, 0, 2, 2]} for name in ("banana", "horse", "sheep")]
    record: dict[str, Any] = {"size": [8, 8], "layouts": {"CoCo-ThreeObject-BRBig": {"banana_horse_sheep.png": rows}}}
    file.write_text(json.dumps(record))
    with pytest.raises(DataFormatError, match=r"has 2 pictures, 1 in objects\.json"):
        read_set(published)
    (published / "CoCo-ThreeObject-BRBig" / "tennis_racket_sheep_banana.png").unlink()
    file.write_text(json.dumps(record))
    first = read_set(published).layouts[0].pictures[0]
    assert first.size == (8, 8)
    assert (first.objects[2].area, first.objects[2].box, first.objects[2].large) == (3.0, (0, 0, 2, 2), True)
    rows[0]["name"] = "sheep"
    file.write_text(json.dumps(record))
    with pytest.raises(DataFormatError, match="names other objects"):
        read_set(published)


def _coco(annotations: list[tuple[int, int, float]], crowd: int | None = None) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 50} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "hot dog"), 1)],
        "annotations": [
            {"image_id": image, "category_id": kind, "area": area, "bbox": [1, 2, 3, 4], "iscrowd": int(image == crowd)}
            for image, kind, area in annotations
        ],
    }


def test_coco_images_by_size(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    rows = [(1, 1, 10.0), (1, 2, 30.0), (1, 1, 20.0), (2, 1, 5.0), (3, 1, 5.0), (3, 2, 5.0)]
    file.write_text(json.dumps(_coco(rows)))
    found = read_coco_set(file, tmp_path)
    (layout,) = found.layouts  # image 2 has one name, image 3 two of one size
    (picture,) = layout.pictures
    assert (picture.image, picture.names, picture.size) == ("1.jpg", ("dog", "cat"), (100, 50))
    assert [item.area for item in picture.objects] == [30.0, 20.0]  # a name's largest instance
    assert layout.slots == ("largest", "2nd")
    assert found.classes == ("cat", "dog", "hot dog")
    file.write_text(json.dumps(_coco(rows, crowd=1)))
    with pytest.raises(DataFormatError, match="has no image with 2 to 5 names of different areas"):
        read_coco_set(file, tmp_path)
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(DataFormatError, match="'categories' is missing; expected are images"):
        read_coco_set(file, tmp_path)


def test_single_pictures_of_coco_must_be_complete(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(_coco([(1, 1, 10.0), (1, 2, 30.0)])))
    _touch(tmp_path / "one", "cat.png", "dog.png", "cow.png")
    with pytest.raises(DataFormatError, match=r"1 are missing \['hot dog'\], 1 belong to none \['cow'\]"):
        read_coco_set(file, tmp_path, Path("one"))
    (tmp_path / "one" / "cow.png").rename(tmp_path / "one" / "hot dog.png")
    assert read_coco_set(file, tmp_path, Path("one")).single["hot dog"].endswith("hot dog.png")
