"""Every form of captions in a small file of our own making; errors name the file and what was expected."""

import json
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.coco import CocoImage, Instance
from llava_ohd.ohd_caps.exclusions import image_key, read_exclusions
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.ohd_caps.sources import (
    read_captioned_objects,
    read_images,
    read_source,
    read_vocabulary,
    with_detections,
)
from llava_ohd.ohd_caps.vocabulary import PHOTO_VOCABULARY, vocabulary_for

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"
TWO = [
    CocoImage("1.jpg", (), ("A dog .", "A dog, running")),
    CocoImage("2.jpg", (), ("Two cats .",)),
]
KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A dog ."}, {"raw": "A dog,  running"}]},
        {"filename": "2.jpg", "split": "test", "sentences": [{"raw": "Two cats ."}]},
    ],
}
NOCAPS = {
    "images": [
        {"id": 0, "file_name": "1.jpg", "domain": "out-domain", "open_images_id": "1"},
        {"id": 1, "file_name": "2.jpg", "domain": "near-domain", "open_images_id": "2"},
    ],
    "annotations": [
        {"id": 0, "image_id": 0, "caption": "A dog ."},
        {"id": 1, "image_id": 1, "caption": "Two cats ."},
        {"id": 2, "image_id": 0, "caption": "A dog, running"},
    ],
}


def coco_captions() -> dict:
    images = [{key: value for key, value in image.items() if key != "domain"} for image in NOCAPS["images"]]
    return {**NOCAPS, "images": images}


@pytest.mark.parametrize(
    "text",
    [
        "1.jpg#0\tA dog .\n1.jpg#1\tA dog, running\n2.jpg#0\tTwo cats .\n",
        json.dumps(KARPATHY),
        json.dumps(coco_captions(), indent=1),
        'image,caption\n1.jpg,A dog .\n1.jpg,"A dog, running"\n2.jpg,Two cats .\n',
        "\ufeffimage_name| comment_number| comment\n1.jpg| 0| A dog .\n1.jpg| 1   A dog, running\n2.jpg|0|Two cats .\n",
    ],
    ids=["token", "karpathy", "coco captions", "csv", "csv with bars and its missing one"],
)
def test_forms_without_objects_are_recognised(text: str, tmp_path: Path) -> None:
    path = tmp_path / "whatever.dat"
    path.write_text(text)
    assert read_source(path) == TWO


def test_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(KARPATHY))
    assert read_source(path, "test") == TWO[1:]
    with pytest.raises(DataFormatError, match="no image of the part 'out'; its parts are test, train"):
        read_source(path, "out")
    path.write_text(json.dumps(NOCAPS))
    assert read_source(path) == read_source(path, "out-domain") == TWO[:1]
    assert read_source(path, "near-domain") == TWO[1:]
    assert read_source(path, "all") == TWO
    with pytest.raises(DataFormatError, match="its parts are near-domain, out-domain and all"):
        read_source(path, "in-domain")
    for text in (json.dumps(coco_captions()), "1.jpg#0\tA dog .", '{"image": "a", "caption": "b", "objects": []}'):
        path.write_text(text)
        with pytest.raises(DataFormatError, match="has no parts"):
            read_source(path, "train")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("hello\nworld", "begins with 'hello', which is none of the known forms"),
        ("1.jpg#0\tA dog .\n1.jpg A dog", "line 2 is not"),
        ("image,caption\n1.jpg,a dog\n2.jpg", "row 3 has no image or no caption"),
        ("image,caption\n", "has no captions"),
        ('{"images": [{"filename": "1.jpg", "split": "test"}]}', "'sentences' is missing"),
        ('{"images": [{"id": 1}], "annotations": []}', "'file_name' is missing"),
        (
            '{"image": "a", "caption": "b"}',
            'row 1: .* is expected, found {"caption": text, "image": text}; the known forms are',
        ),
        (
            '{"image": "a", "captions": ["b", 1], "objects": "cup"}',
            r'row 1: .* found \{"captions": \[text, number, ...\], "image": text, "objects": text\}',
        ),
        ('{"image": "a", ', "line 1 is not JSON"),
    ],
)
def test_broken_files_are_named(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text(text)
    with pytest.raises(DataFormatError, match=reason) as caught:
        read_source(path)
    assert str(path) in str(caught.value)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(DataFormatError, match="is not UTF-8 text"):
        read_source(tmp_path / "photo.jpg")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataFormatError, match="does not exist or is a folder"):
            read_source(path)


def test_objects_of_a_detector(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"image": "val/1.png", "objects": ["dog", "tree"]}\n{"image": "9.jpg", "objects": ["cup"]}\n')
    found = with_detections(TWO, path)
    assert [image.objects for image in found] == [("dog", "tree"), ()]
    assert vocabulary_for(found) == ()
    assert vocabulary_for(TWO) == PHOTO_VOCABULARY
    path.write_text('{"image": "9.jpg", "objects": ["cup"]}\n')
    with pytest.raises(DataFormatError, match="objects of none of the 2 images"):
        with_detections(TWO, path)
    path.write_text('{"image": "1.jpg", "objects": "cup"}\n')
    with pytest.raises(DataFormatError, match="row 1"):
        with_detections(TWO, path)


def test_rows_of_captions_and_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"image": "a", "caption": "a  cup", "objects": ["cup"]}\n{"image": "a", "captions": ["b"], "objects": []}\n'
    )
    expected = [CocoImage("a", (Instance("cup", (0, 0, 0, 0)),), ("a cup", "b"))]
    assert read_captioned_objects(path) == read_source(path) == read_images(None, None, path, None, None) == expected
    path.write_text('{"image": "a", "caption": "a cup", "objects": ["cup"]}\n{"image": "a"}\n')
    with pytest.raises(DataFormatError, match=r"rows.jsonl row 2"):
        read_captioned_objects(path)


def test_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("Dog, puppy\ncat\n")
    assert read_vocabulary(tmp_path / "v.txt") == ["dog", "cat"]
    assert len(set(PHOTO_VOCABULARY)) == len(PHOTO_VOCABULARY) == 127


def test_one_picture_has_one_key() -> None:
    assert image_key("COCO_val2014_000000310196.jpg") == image_key("train2017/000000310196.jpg") == "000000310196"
    assert image_key("train/000001.png") == "000001"
    assert image_key("flickr8k/1000268201_693b08cb0e.jpg") == image_key("images/1000268201.jpg") == "1000268201"
    assert image_key("003232584a062b07.jpg") == "003232584a062b07"


@pytest.mark.parametrize(
    "text",
    [
        "COCO_val2014_000000310196.jpg\n\n",
        "310196\n",
        "310196.jpg#0\ta caption\n".replace("310196", "000000310196"),
        '{"image": "COCO_val2014_000000310196.jpg", "text": "?"}\n' * 2,
        '{"file_path": "COCO_val2014_000000310196.jpg", "positive_sample": "x"}\n',
        '[{"image_id": 310196, "caption": "x"}]',
        '{"image_id": 310196, "caption": "x"}\n',
        "[310196]",
        '["train2017/000000310196.jpg"]',
        json.dumps({"images": [{"id": 1, "file_name": "COCO_val2014_000000310196.jpg"}]}, indent=1),
    ],
)
def test_images_to_leave_out_in_every_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    assert "000000310196" in read_exclusions(path)
    assert len(read_exclusions(path)) <= 2


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="does not exist"):
        read_exclusions(tmp_path / "nowhere.txt")
    (tmp_path / "empty").touch()
    with pytest.raises(DataFormatError, match="is empty"):
        read_exclusions(tmp_path / "empty")
    (tmp_path / "x.jsonl").write_text('{"text": "?"}\n')
    with pytest.raises(DataFormatError, match="has rows without image"):
        read_exclusions(tmp_path / "x.jsonl")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not there")
def test_flickr8k_as_it_is_and_the_authors_rows_as_exclusions() -> None:
    images = read_source(PHOTOS / "flickr8k" / "captions.txt")
    assert len(images) == 1000
    assert {len(image.captions) for image in images} == {5}
    assert images[0].captions[0] == "A child in a pink dress is climbing up a set of stairs in an entry way ."
    keys = {image_key(image.file_name) for image in images}
    assert len(keys & read_exclusions(PHOTOS / "ohd_caps_real" / "test_flickr_annotations.json")) == 11
    lexicon = Lexicon(PHOTO_VOCABULARY)
    assert sum(bool(lexicon.named(" . ".join(image.captions))) for image in images) >= 990
