"""Batches: what is in them, and that images kept in memory are what the image processor makes."""

from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip.batching import OhdData, image_names
from llava_ohd.clip.captions import Captions, share_beginnings, tokenise
from llava_ohd.clip.embedding import Images, embed_images
from llava_ohd.clip.loss import LossConfig
from llava_ohd.clip.trainer import OhdObjective
from llava_ohd.errors import ImageError
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow


@pytest.mark.parametrize("memory", [0, 2**30])
def test_images_are_what_the_processor_makes(tiny_encoder_dir: Path, ohd: tuple[Path, Path], memory: int) -> None:
    file, folder = ohd
    names = image_names(read_rows(file))
    processor = tower.load_processor(tiny_encoder_dir)
    images = Images(folder, names, processor, memory)
    opened = [tower.open_image(folder / names[index]) for index in (3, 0)]
    expected = processor(opened, return_tensors="pt")["pixel_values"]
    assert images.pixels([3, 0]).dtype == torch.float32
    torch.testing.assert_close(images.pixels([3, 0]), expected, rtol=1e-5, atol=1e-6)
    model = tower.load(tiny_encoder_dir)
    embedded = embed_images(model, images, batch=5)
    assert embedded.shape == (24, 32)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_bad_image_is_named_before_training(tiny_encoder_dir: Path, ohd: tuple[Path, Path], damage: str) -> None:
    file, folder = ohd
    bad = folder / "017.png"
    content = bad.read_bytes()
    bad.unlink() if damage == "missing" else bad.write_bytes(
        content[: len(content) // 2 if damage == "truncated" else 0]
    )
    with pytest.raises(ImageError, match=r"017\.png"):
        Images(folder, image_names(read_rows(file)), tower.load_processor(tiny_encoder_dir))


def test_an_image_that_is_not_there_is_named_before_training_where_none_are_kept(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path]
) -> None:
    file, folder = ohd
    (folder / "017.png").unlink()
    with pytest.raises(ImageError, match=r"1 of 24 images are not in .*, such as 017\.png"):
        Images(folder, image_names(read_rows(file)), tower.load_processor(tiny_encoder_dir), memory=0)


def paths(captions: Captions) -> list[list[int]]:
    """Reads each caption back from the slots that end where it ends."""
    rows = [row for bucket in captions["slots"] for row in bucket.tolist()]
    by_end = {row[-1]: row[: row.index(row[-1]) + 1] for row in rows}
    return [captions["token"][by_end[end]].tolist() for end in captions["end"].tolist()]


def test_a_batch_holds_each_caption_once(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    _, folder = ohd
    tokenizer = tower.load_tokenizer(tiny_encoder_dir)

    def wrong(*texts: str) -> tuple[Negative, ...]:
        return tuple(Negative(text, "random", ()) for text in texts)

    rows = [
        OhdRow("001.png", "a red ball", wrong("a blue cup", "a red ball and a key", "a blue cup"), ()),
        OhdRow("002.png", "a blue cup", wrong("a red ball", "A blue cup"), ()),
        OhdRow("001.png", "a key", wrong("a red ball"), ()),
    ]
    images = Images(folder, image_names(rows), tower.load_processor(tiny_encoder_dir))
    assert len(images) == 2
    data = OhdData(rows, images, tokenizer)
    batch = data.collate([data[0], data[1], data[2]])
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in paths(batch["captions"])]
    assert sorted(texts) == ["a blue cup", "a key", "a red ball", "a red ball and a key"]
    assert [texts[i] for i in batch["caption"]] == ["a red ball", "a blue cup", "a key"]
    named = [[texts[i] for i in row[flags]] for row, flags in zip(batch["negative"], batch["valid"], strict=True)]
    # a negative that repeats its own caption is masked, a repeated negative counts as often as it stands there
    assert named == [["a blue cup", "a red ball and a key", "a blue cup"], ["a red ball"], ["a red ball"]]
    assert batch["valid"].tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    torch.testing.assert_close(batch["pixel_values"][0], batch["pixel_values"][2])
    # the released code pads every row to as many slots, whatever the batch, and counts them in its means
    assert data.collate([2])["valid"].tolist() == [[True, False, False]]
    assert OhdData(rows, images, tokenizer, negatives=2).collate([2])["valid"].tolist() == [[True, False]]


def test_drawn_negatives_are_the_rows_own_and_the_same_when_resumed(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path]
) -> None:
    file, folder = ohd
    rows, tokenizer = read_rows(file), tower.load_tokenizer(tiny_encoder_dir)
    images = Images(folder, image_names(rows), tower.load_processor(tiny_encoder_dir))
    items = [4, 0, 9]
    first, again, other = (
        OhdData(rows, images, tokenizer, negatives=2, seed=seed).collate(items) for seed in (1, 1, 2)
    )
    assert first["valid"].shape == (3, 2)
    assert paths(first["captions"]) == paths(again["captions"]) != paths(other["captions"])
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in paths(first["captions"])]
    for item, own, drawn in zip(items, first["caption"], first["negative"], strict=True):
        assert texts[own] == rows[item].caption
        assert {texts[i] for i in drawn} <= {negative.caption for negative in rows[item].negatives}


def test_gradients_do_not_depend_on_how_threads_take_turns(tiny_encoder_dir: Path) -> None:
    """Captions that many rows share get a sum of gradients; its order must be fixed, or no run is the same twice."""
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    texts = ["a red ball", "a blue box", "a green cup", "a star"]
    objective = OhdObjective(model.train(), LossConfig())
    batch = {
        "pixel_values": torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "captions": share_beginnings(tokenise(tokenizer, texts)),
        "caption": torch.arange(64) % 4,
        "negative": (torch.arange(64)[:, None] + torch.arange(1, 55)) % 4,
        "valid": torch.ones(64, 54, dtype=torch.bool),
    }
    gradients = []
    for _ in range(25):
        objective.zero_grad()
        objective(**batch)["loss"].backward()
        gradients.append(model.text_projection.weight.grad.clone())
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
