"""A folder of photos becomes a data folder: splits without leaks, objects and captions made where missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.evals.pope import read_questions
from llava_ohd.files import read_json
from llava_ohd.ohd_caps.coco import read_coco
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.world.photos import SOURCES, prepare

REAL = Path(__file__).parents[3] / "shared" / "data" / "photos"
ROW: dict[str, Any] = {
    "file_path": "11.jpg",
    "positive_sample": "A dog.",
    "ground_truth": ["dog"],
    "delete_samples": {"dog": "A cat."},
    **{f"{strategy}_samples": {"cup": "A dog and a cup."} for strategy in ("random", "popular", "adversarial")},
}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (90, 120, 30)).save(path)


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten Flickr8k photos (11_a.jpg is an OHD-Caps photo), three of COCO128 (1.jpg is asked about), one of A-OKVQA."""
    folder = tmp_path / "photos"
    texts = ["image,caption"]
    for number in range(11, 21):
        picture(folder / f"flickr8k/images/{number}_a.jpg")
        texts += [f'{number}_a.jpg,"Two women , a dog and a hot dog stand ."', f"{number}_a.jpg,A dog near bikes"]
    (folder / "flickr8k/captions.txt").write_text("\n".join(texts))
    for number in (1, 2, 3):
        picture(folder / f"coco128/images/{number}.jpg")
    names = ["person", "bicycle", "dog", "hot dog", "cup"]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 12, "height": 8} for i in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 0, 2, 2], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 2], "iscrowd": 1},
        ],
        "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(names, 1)],
    }
    lines(folder / "coco128/annotations/instances_train2017.json", coco)
    picture(folder / "pope_aokvqa_real/images/v.jpg")
    picture(folder / "ohd_caps_real/images/11.jpg")
    lines(folder / "ohd_caps_real/test_annotations.json", ROW)
    for strategy in ("random", "popular", "adversarial"):
        question = {"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "yes"}
        lines(folder / f"coco128/pope/coco128_pope_{strategy}.json", question)
        lines(folder / f"pope_aokvqa_real/aokvqa_pope_seem_{strategy}.json", {**question, "image": "v.jpg"})
    return folder


def files(out: Path, split: str) -> set[str]:
    return {row["file_name"] for row in read_json(out / "annotations" / f"instances_{split}.json")["images"]}


def test_splits_do_not_leak(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, 0)
    train, dev, test = (files(out, split) for split in ("train", "dev", "test"))
    assert test == {"coco128/1.jpg"}
    assert len(train) == 10
    assert len(dev) == 1
    assert not train & dev
    assert "flickr8k/11_a.jpg" not in train | dev
    assert {row["image"] for name in ("pretrain", "instruct") for row in read_json(out / f"llava/{name}.json")} <= train


def test_every_named_image_can_be_opened(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, 0)
    names = files(out, "train") | files(out, "dev") | files(out, "test")
    names |= {row.image for row in read_rows(out / "ohd_caps_real/test.jsonl")}
    names |= {q.image for name in ("coco128", "aokvqa") for q in read_questions(out / "pope" / name)}
    assert {name.split("/")[0] for name in names} == set(SOURCES)
    assert all((out / "images" / name).is_file() for name in names)


def test_objects_from_captions_and_captions_from_objects(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(photos, out, 0)
    read = [
        image
        for split in ("train", "dev", "test")
        for image in read_coco(out / f"annotations/instances_{split}.json", out / f"annotations/captions_{split}.json")
    ]
    by_name = {image.file_name: image for image in read}
    assert by_name["flickr8k/12_a.jpg"].objects == ("dog", "hot dog", "person", "bicycle")
    assert by_name["flickr8k/12_a.jpg"].instances[0].box == (0, 0, 12, 8)
    assert by_name["coco128/1.jpg"].captions == ("a photo of a dog and a cup",)
    assert by_name["coco128/2.jpg"].captions == ("a photo of several people",)
    assert by_name["coco128/3.jpg"].captions == ()
    assert (out / "synonyms.txt").read_text().splitlines()[1].startswith("bicycle, bicycles, bike")


def test_same_seed_same_files(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(photos, tmp_path / name, seed)
    a, b, c = ((tmp_path / name / "llava/instruct.json").read_text() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("name", ["flickr8k/images/15_a.jpg", "ohd_caps_real/images/11.jpg", "coco128/images/3.jpg"])
def test_a_missing_or_truncated_photo_is_named(photos: Path, tmp_path: Path, name: str) -> None:
    whole = (photos / name).read_bytes()
    (photos / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=Path(name).name):
        prepare(photos, tmp_path / "out", 0)
    (photos / name).unlink()
    with pytest.raises(ImageError, match=Path(name).name):
        prepare(photos, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_listed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"coco128/annotations.*flickr8k/captions.txt"):
        prepare(tmp_path / "nowhere", tmp_path / "out", 0)
    (photos / "flickr8k/captions.txt").write_text("name,text\n")
    with pytest.raises(DataFormatError, match="image,caption"):
        prepare(photos, tmp_path / "out", 0)
    (photos / "coco128/pope/coco128_pope_random.json").unlink()
    with pytest.raises(DataFormatError, match="0 files"):
        prepare(photos, tmp_path / "out", 0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the photos are not at {REAL}")
def test_the_real_photos(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(REAL, out, 0)
    assert [len(files(out, split)) for split in ("train", "dev", "test")] == [954, 106, 57]
    assert [len(read_questions(out / "pope" / name)) for name in ("coco128", "aokvqa")] == [3 * 342, 90]
    assert len(read_rows(out / "ohd_caps_real/test.jsonl")) == 17
    train = read_coco(out / "annotations/instances_train.json", out / "annotations/captions_train.json")
    assert sum(bool(image.objects) for image in train) >= 940
