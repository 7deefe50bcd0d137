"""LLaVA's json: what is read, what is refused with the row's number, and what a batch looks like."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN
from llava_ohd.llava15.dataset import Batches, Pixels, TrainingRows, distinct_images, read_rows
from llava_ohd.llava15.tokenizer import load_tokenizer

CAPTION = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red ball"}]
TEXT = [{"from": "human", "value": "Is a ball red?"}, {"from": "gpt", "value": "No"}]


def write(folder: Path, rows: Any) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def test_rows_are_read_as_llava_reads_them(tmp_path: Path) -> None:
    opening = {"from": "gpt", "value": "Hello"}
    asked = [{"from": "human", "value": "What is it?\n<image> "}, {"from": "gpt", "value": "A ball"}]
    rows = [{"id": 1, "image": "a.png", "conversations": [opening, *asked]}, {"id": "x", "conversations": TEXT}]
    assert read_rows(write(tmp_path, rows), "v1").to_list() == [
        {
            "number": 1,
            "words": 7,
            "before": 19,
            "id": "1",
            "images": ["a.png"],
            "turns": [["<image>\nWhat is it?", "A ball"]],
        },
        {"number": 2, "words": -5, "before": 14, "id": "x", "images": [], "turns": [["Is a ball red?", "No"]]},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png"}, "no list 'conversations'"),
        ({"image": "a.png", "conversations": []}, "human and gpt in turn"),
        ({"image": "a.png", "conversations": CAPTION[:1]}, "human and gpt in turn"),
        ({"image": "a.png", "conversations": [CAPTION[0], {"from": "gpt", "value": ""}]}, "must not be empty"),
        ({"image": "a.png", "conversations": [CAPTION[0], {"from": "bot", "value": "x"}]}, "human and gpt in turn"),
        ({"image": ["a.png", "b.png"], "conversations": CAPTION}, "1 <image> in what the human says and 2 images"),
        ({"image": 3, "conversations": CAPTION}, "a file name, a list of names"),
        ({"conversations": CAPTION}, "1 <image> in what the human says and no image"),
        ({"image": "a.png", "conversations": TEXT}, "0 <image> in what the human says and 1 image;"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=message) as error:
        read_rows(write(tmp_path, [{"image": "a.png", "conversations": CAPTION}, row]), "v1")
    assert "row 2" in str(error.value)


def test_plain_takes_captions_only(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"row 1.*use --version v1"):
        read_rows(write(tmp_path, [{"conversations": TEXT}]), "plain")


def test_empty_and_broken_files(tmp_path: Path) -> None:
    for content, message in (("", "is empty"), ("[]", "has no rows"), ("{", "not JSON"), ('["x"]', "row 1: it is str")):
        (tmp_path / "rows.json").write_text(content)
        with pytest.raises(DataFormatError, match=message):
            read_rows(tmp_path / "rows.json", "v1")


@pytest.fixture
def rows(tiny_encoder_dir: Path, tiny_llama_dir: Path, tmp_path: Path) -> TrainingRows:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.png")
    pixels = Pixels(tmp_path, tower.load_processor(tiny_encoder_dir), pad=True, count=1)
    return TrainingRows("v1", load_tokenizer(tiny_llama_dir), pixels, image_tokens=16, longest=256)


def test_pixels_equal_padding_and_processor(rows: TrainingRows, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    processor = tower.load_processor(tiny_encoder_dir)
    square = Image.new("RGB", (40, 40), tower.mean_color(processor))
    square.paste(Image.new("RGB", (40, 20), (255, 0, 0)), (0, 10))
    expected = processor(square, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.as_tensor(rows.pixels("wide.png")), torch.as_tensor(expected), rtol=0, atol=0)
    assert rows.pixels("wide.png") is rows.pixels("wide.png")  # read once
    assert Pixels(tmp_path, processor, pad=True, count=None)("wide.png").shape == (3, 32, 32)


def test_a_batch_is_padded_and_masked(rows: TrainingRows, tmp_path: Path) -> None:
    file = write(tmp_path, [{"image": "wide.png", "conversations": CAPTION}, {"conversations": TEXT}])
    dataset = rows.dataset(read_rows(file, "v1"))
    examples = [dataset[0], dataset[1]]
    batch = Batches(16, 32)(examples)
    assert batch["numbers"] == [1, 2]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert (batch["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [16, 0]
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, length in enumerate(lengths):
        assert (batch["labels"][row, length:] == IGNORE).all()
        assert batch["labels"][row, :length].tolist() == examples[row]["labels"]


def test_rows_with_several_images(rows: TrainingRows, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (0, 0, 255)).save(tmp_path / "blue.png")
    two = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The red one"}]
    one = {"image": "wide.png", "conversations": CAPTION}
    file = write(tmp_path, [{"image": ["wide.png", "blue.png"], "conversations": two}, one, {"conversations": TEXT}])
    dataset = rows.dataset(read_rows(file, "v1"))
    batch = Batches(16, 32)([dataset[0], dataset[1], dataset[2]])
    assert (batch["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [32, 16, 0]
    wide, blue = rows.pixels("wide.png"), rows.pixels("blue.png")
    assert torch.equal(batch["pixel_values"], torch.stack([torch.as_tensor(p) for p in (wide, blue, wide)]))


def test_rows_are_read_from_disk_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, [{"image": "a.png", "conversations": CAPTION}, {"conversations": TEXT}])
    first = read_rows(file, "v1")
    assert first.cache_files
    monkeypatch.setattr("llava_ohd.llava15.row_files._make", None)
    assert read_rows(file, "v1").to_list() == first.to_list()
    monkeypatch.undo()
    assert read_rows(file, "v1", left_out=[1])["number"][:] == [2]
    with pytest.raises(DataFormatError, match="no row is left"):
        read_rows(file, "v1", left_out=[1, 2])
    assert distinct_images(first) == 1


def test_a_batch_of_text_carries_a_hidden_image(rows: TrainingRows, tmp_path: Path) -> None:
    dataset = rows.dataset(read_rows(write(tmp_path, [{"conversations": TEXT}] * 2), "v1"))
    batch = Batches(16, 32)([dataset[0], dataset[1]])
    hidden = batch["input_ids"] == IMAGE_TOKEN
    assert hidden.sum(1).tolist() == [16, 0]
    assert (batch["attention_mask"][hidden] == 0).all()
    assert (batch["labels"][hidden] == IGNORE).all()
    assert not batch["pixel_values"].any()


def test_images_are_found_missing_before_training(rows: TrainingRows, tmp_path: Path) -> None:
    file = write(
        tmp_path, [{"image": "wide.png", "conversations": CAPTION}, {"image": "no.png", "conversations": CAPTION}]
    )
    with pytest.raises(ImageError, match=r"row 2: image .*no\.png does not exist; check --image_folder"):
        rows.dataset(read_rows(file, "v1"))
    file = write(tmp_path, [{"image": f"{name}.png", "conversations": CAPTION} for name in ("wide", "a", "b", "a")])
    with pytest.raises(
        ImageError, match=r"row 2: image .*a\.png does not exist, nor do 2 others; .*--data_policy skip"
    ):
        rows.dataset(read_rows(file, "v1"))


def test_a_truncated_image_names_file_and_row(rows: TrainingRows, tmp_path: Path) -> None:
    whole = (tmp_path / "wide.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    dataset = rows.dataset(read_rows(write(tmp_path, [{"image": "torn.png", "conversations": CAPTION}]), "v1"))
    with pytest.raises(ImageError, match=r"row 1: .*torn\.png is truncated"):
        dataset[0]


def test_a_cut_never_goes_through_an_image(rows: TrainingRows, tmp_path: Path) -> None:
    file = write(tmp_path, [{"image": "wide.png", "conversations": CAPTION}])
    whole = rows.dataset(read_rows(file, "v1"))[0]
    image = whole["input_ids"].index(IMAGE_TOKEN)
    parts = (rows.template, rows.tokenizer, rows.pixels, rows.image_tokens)
    cut = TrainingRows(*parts, longest=len(whole["input_ids"]) - 2).dataset(read_rows(file, "v1"))[0]
    assert cut["input_ids"] == whole["input_ids"][:-2]
    assert len(cut["labels"]) == len(cut["input_ids"])
    with pytest.raises(DataFormatError, match=r"row 1: --model_max_length .* cuts through the image"):
        TrainingRows(*parts, longest=image + 3).dataset(read_rows(file, "v1"))


def test_a_row_that_is_cut_before_its_first_answer_is_found_before_training(rows: TrainingRows, tmp_path: Path) -> None:
    long = [{"from": "human", "value": "Is it red? " * 60}, {"from": "gpt", "value": "No"}]
    table = read_rows(write(tmp_path, [{"conversations": TEXT}, {"conversations": long}]), "v1")
    with pytest.raises(DataFormatError, match=r"row 2: --model_max_length 256 cuts it before its first answer"):
        rows.dataset(table)
    assert len(rows.dataset(table.select([0]))) == 1
