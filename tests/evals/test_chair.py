"""CHAIR: ground truth, captions, metrics; own cases under the rule "exact"."""

import json
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals.chair import (
    Caption,
    by_object,
    object_lines,
    read_captions,
    read_ground_truth,
    read_synonyms,
    score,
    scored_captions,
    seconds,
)
from llava_ohd.files import read_json, write_json, write_jsonl

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CASES = read_json(Path(__file__).parent / "cases" / "chair.json")
TRUTH = {image: frozenset(objects) for image, objects in CASES["ground_truth"].items()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("chair") / "synonyms.txt"
    path.write_text("\n".join(CASES["synonyms"]) + "\n")
    return read_synonyms(path)


@pytest.mark.parametrize("case", CASES["rows"], ids=lambda case: case["name"])
def test_own_cases(case, vocabulary):
    captions = [Caption(image, text) for image, text in case["captions"].items()]
    found = score(captions, TRUTH, vocabulary)
    assert {m.name: m.value for m in found} == pytest.approx(case["expected"])
    assert {m.name: m.n for m in found} == case["n"]
    assert {m.name: m.better for m in found} == {
        "chair_i": "lower", "chair_s": "lower", "recall": "higher", "length": "none",
    }  # fmt: skip


def test_mentions_say_what_was_hallucinated(vocabulary):
    (row,) = scored_captions([Caption("1.png", "a puppy and a sphere")], TRUTH, vocabulary)
    assert (row.mentioned, row.hallucinated, row.covered, row.present, row.words) == (
        ("dog", "ball"),
        ("dog",),
        1,
        2,
        5,
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["1.png", "9.png"], r"1 of 2 captions are of images without ground truth, first: \['9.png'\]"),
        (["1.png", "1.png"], r"1 images have more than one caption, first: \['1.png'\]"),
        ([], "no captions"),
    ],
)
def test_captions_that_do_not_fit_are_refused(images, message, vocabulary):
    with pytest.raises(AnswersMismatch, match=message):
        score([Caption(image, "a ball") for image in images], TRUTH, vocabulary)


def write_coco(folder: Path) -> tuple[Path, Path]:
    instances, captions = folder / "instances.json", folder / "captions.json"
    images = [{"id": 1, "file_name": "test/1.png"}, {"id": 2, "file_name": "test/2.png"}]
    categories = [{"id": 5, "name": "hot dog"}, {"id": 6, "name": "cup"}]
    write_json(
        instances, {"images": images, "categories": categories, "annotations": [{"image_id": 1, "category_id": 5}]}
    )
    write_json(captions, {"images": images, "annotations": [{"image_id": 1, "caption": "A mug and a tree."}]})
    return instances, captions


def test_ground_truth_is_annotated_or_mentioned(tmp_path, vocabulary):
    instances, captions = write_coco(tmp_path)
    truth = read_ground_truth(instances, captions, vocabulary)
    assert truth["test/1.png"] == truth["1"] == {"hot dog", "cup"}
    assert truth["test/2.png"] == set()
    assert read_ground_truth(instances, None, vocabulary)["1"] == {"hot dog"}


def test_ground_truth_that_does_not_fit(tmp_path, vocabulary):
    instances, captions = write_coco(tmp_path)
    record = read_json(instances)
    write_json(instances, {**record, "categories": [{"id": 5, "name": "tree"}]})
    with pytest.raises(DataFormatError, match="no line of the synonyms file names tree"):
        read_ground_truth(instances, captions, vocabulary)
    write_json(instances, {**record, "images": record["images"][1:], "annotations": []})
    with pytest.raises(DataFormatError, match="of different images: KeyError"):
        read_ground_truth(instances, captions, vocabulary)


def test_captions_of_several_formats(tmp_path):
    path = tmp_path / "captions.json"
    write_jsonl(path, [{"image_id": 1, "caption": "a"}, {"image": "2.png", "question_id": 1, "text": "b"}])
    assert read_captions(path) == [Caption("1", "a"), Caption("2.png", "b")]
    path.write_text(json.dumps([{"image": "1.png"}]))
    with pytest.raises(DataFormatError, match=r"row 1 has the keys \['image'\]"):
        read_captions(path)


@pytest.mark.parametrize(
    "content",
    [
        '{"image_id": 1, "text": "a"}\n{"image_id": "2", "text": "b"}',
        '\n{\n  "image_id": 1,\n  "prompt": ["x"],\n  "text": "a"\n}\n{"image_id": 2,\n "text": "b"}\n\n',
        '{"question_id": 0, "image_id": 1, "text": "a", "metadata": {}}\r\n{"image_id": 2, "text": "b"}\r\n',
        '{"overall": {}, "imgToEval": {"1": {"image_id": 1, "caption": "a"}, "2": {"image_id": 2, "caption": "b"}}}',
    ],
    ids=["lines", "over several lines", "answers of LLaVA", "the original's"],
)
def test_captions_of_others(tmp_path, content):
    path = tmp_path / "captions.json"
    path.write_text(content)
    assert read_captions(path) == [Caption("1", "a"), Caption("2", "b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"image_id": 1, "text": "a"}\n{"image_id": 2, "te',
            "line 2 is not JSON.*the file does not end with }, it may",
        ),
        ('{"image_id": 1,\n "text": "a"}\n\n{\n"image_id" 2}', "line 4 is not JSON"),
        ('{"image_id": 1, "text": "a"} 7', "row 2 is int; an object is expected"),
        (
            '{"image_id": null, "text": "a"}',
            "row 1 has the keys .*; image .a file name. or image_id .COCO's. is missing$",
        ),
        ('{"image_id": true, "text": "a"}', "image or image_id is True, a file name or COCO's id is expected"),
        ('{"image_id": 1.5, "text": "a"}', "image or image_id is 1.5, a file name or COCO's id is expected"),
        ('{"image_id": 1, "text": null}', "caption or text is missing, or no text"),
        ('{"question_id": 1, "text": "a"}', "is missing, the question_id is that of a question"),
        (" \n", "is empty"),
    ],
)
def test_captions_that_are_not_read(tmp_path, content, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(DataFormatError, match=message):
        read_captions(path)


def test_ground_truth_from_captions_is_by_the_rule(tmp_path, vocabulary):
    instances, captions = write_coco(tmp_path)
    write_json(captions, {"annotations": [{"image_id": 2, "caption": "Two mugs."}]})
    assert read_ground_truth(instances, captions, vocabulary)["2"] == set()
    assert read_ground_truth(instances, captions, vocabulary, rule="pattern")["2"] == {"cup"}


def test_coco_images_by_id_or_name(vocabulary):
    truth = {"42": frozenset({"dog"})}
    for name in ("42", "COCO_val2014_000000000042.jpg", "COCO_train2014_000000000042.jpg", "000000000042.jpg"):
        (row,) = scored_captions([Caption(name, "a dog and a cup")], truth, vocabulary)
        assert (row.image, row.hallucinated) == (name, ("cup",))
    with pytest.raises(AnswersMismatch, match="more than one caption"):
        scored_captions([Caption("42", ""), Caption("000000000042.jpg", "")], truth, vocabulary)
    with pytest.raises(AnswersMismatch, match="without ground truth"):
        scored_captions([Caption("42.jpg", "")], truth, vocabulary)


def test_counts_by_object(vocabulary):
    texts = {"1.png": "a dog, a puppy and a mug", "2.png": "a hot dog and a dog", "3.png": "a dog"}
    rows = scored_captions([Caption(*row) for row in texts.items()], TRUTH, vocabulary)
    found = by_object(rows)
    assert found == {
        "dog": {"hallucinated": 3, "mentions": 4, "images": 1, "named": 1},
        "ball": {"hallucinated": 0, "mentions": 0, "images": 1, "named": 0},
        "cup": {"hallucinated": 0, "mentions": 1, "images": 1, "named": 1},
        "hot dog": {"hallucinated": 0, "mentions": 1, "images": 1, "named": 1},
        "traffic light": {"hallucinated": 0, "mentions": 0, "images": 1, "named": 0},
    }
    assert next(iter(found)) == "dog"
    assert object_lines(found)[4].split() == ["hot", "dog", "0", "1", "1", "1"]


def test_every_rule_is_timed(vocabulary):
    taken = seconds([Caption("1.png", "a dog")], TRUTH, vocabulary, rules=("exact", "pattern"))
    assert list(taken) == ["exact", "pattern"]
    assert all(0 < value < 60 for value in taken.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_the_synonyms_file_of_coco():
    """All 80 categories have a line, and those of two words are found before their parts."""
    vocabulary = read_synonyms(SHARED / "data" / "chair" / "synonyms.txt")
    assert len(set(vocabulary.node.values())) == 80
    assert vocabulary.objects("A hot dog, a teddy bear and a dog at a stop sign.") == [
        "hot dog", "teddy bear", "dog", "stop sign",
    ]  # fmt: skip


def test_an_empty_synonyms_file(tmp_path):
    (tmp_path / "synonyms.txt").write_text("\n")
    with pytest.raises(DataFormatError, match="names no objects"):
        read_synonyms(tmp_path / "synonyms.txt")
