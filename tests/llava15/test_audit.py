"""The label mask before the first step: what is shown, and every wrong mask ends the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError, StageFailed
from llava_ohd.llava15 import dataset
from llava_ohd.llava15.audit import audit
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.dataset import Pixels, TrainingRows, read_rows
from llava_ohd.llava15.rows import examine
from llava_ohd.llava15.tokenizer import load_tokenizer

LLAMA = Path(__file__).parents[2].parent / "shared/data/tokenizers/llama"
Made = Callable[..., tuple[TrainingRows, Any]]
CAPTION = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red ball"}]


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]


@pytest.fixture
def made(tiny_encoder_dir: Path, tiny_llama_dir: Path, tmp_path: Path) -> Made:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")

    def make(rows: list[dict[str, Any]], template: str = "v1", longest: int = 512) -> tuple[TrainingRows, Any]:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        pixels = Pixels(tmp_path, tower.load_processor(tiny_encoder_dir), pad=True, count=1)
        examples = TrainingRows(template, load_tokenizer(tiny_llama_dir), pixels, 16, longest)
        return examples, read_rows(tmp_path / "rows.json", template)

    return make


ASKED = {"image": "a.png", "conversations": conversation("<image>\nIs there a ball?", "Yes", "And  a key? ", " No ")}
TEXT = {"conversations": conversation("Is a ball red?", "naïve – 日本 🎉")}


def test_what_trains_is_shown(made: Made) -> None:
    examples, rows = made([ASKED, TEXT] * 20)
    first, shown, share = audit(examples, rows, "lora", sample=40)
    assert first == "label mask of row 1, template v1; what trains is in [[ ]]:"
    assert "USER:<image: 16 tokens>\\nIs there a ball?" in " ".join(shown.split())
    assert "[[Yes</s>]]" in shown
    assert shown.count("[[") == 2
    assert "key" not in "".join(part.split("]]")[0] for part in shown.split("[[")[1:])
    ids, labels = examples.tokens(1, ASKED_TURNS)
    more, labels_more = examples.tokens(2, [("Is a ball red?", "naïve – 日本 🎉")])
    text = sum(token != IMAGE_TOKEN for token in ids + more)
    trained = sum(label != IGNORE for label in labels + labels_more)
    assert share == f"trains: {trained / text:.1%} of the text tokens of 40 rows"


ASKED_TURNS = [("<image>\nIs there a ball?", "Yes"), ("And  a key? ", " No ")]


def test_captions_are_shown(made: Made) -> None:
    examples, rows = made([{"image": "a.png", "conversations": CAPTION}], "plain")
    assert audit(examples, rows, "projector")[1] == "  <image: 16 tokens>[[a red ball\\n]]"


def test_cut_rows_are_counted(made: Made) -> None:
    long = {"conversations": conversation("Is there a ball?", "a red ball " * 100)}
    examples, rows = made([ASKED, long], longest=200)
    assert audit(examples, rows, "lora")[-1].endswith("of 2 rows; 1 of them are cut at 200 tokens")


def test_plain_would_drop_the_questions_of_a_conversation(made: Made) -> None:
    question = {"image": "a.png", "conversations": conversation("<image>\nIs there a ball?", "Yes")}
    examples, rows = made([question], "plain")
    assert audit(examples, rows, "projector")
    with pytest.raises(StageFailed, match=r"row 1: template plain drops the question .*--version v1"):
        audit(examples, rows, "lora")


def test_a_row_of_which_nothing_is_left_is_named(made: Made) -> None:
    long = {"conversations": conversation("Is there a ball? " * 100, "Yes")}
    examples, rows = made([ASKED, long], longest=200)
    with pytest.raises(StageFailed, match=r"row 2: nothing trains; raise --model_max_length"):
        audit(examples, rows, "lora")


def wrong_masks() -> dict[str, tuple[Callable[[list[int], list[int]], list[int]], str]]:
    def prompt(ids: list[int], labels: list[int]) -> list[int]:
        return [IGNORE] + [token if token != IMAGE_TOKEN else IGNORE for token in ids[1:]]

    def swapped(ids: list[int], labels: list[int]) -> list[int]:
        return [token if label == IGNORE else IGNORE for token, label in zip(ids, labels, strict=True)]

    def early(ids: list[int], labels: list[int]) -> list[int]:  # as with a template of another prompt length
        masks = [label != IGNORE for label in [*labels[1:], IGNORE]]
        return [token if trains else IGNORE for token, trains in zip(ids, masks, strict=True)]

    def late(ids: list[int], labels: list[int]) -> list[int]:
        masks = [label != IGNORE for label in [IGNORE, *labels[:-1]]]
        return [token if trains else IGNORE for token, trains in zip(ids, masks, strict=True)]

    def endless(ids: list[int], labels: list[int]) -> list[int]:
        return [IGNORE if label == 2 else label for label in labels]

    return {
        "nothing": (lambda ids, labels: [IGNORE] * len(ids), "nothing trains"),
        "everything": (lambda ids, labels: list(ids), "image tokens train|trains, but the answer|parts train"),
        "the prompt too": (prompt, "parts train|trains, but the answer"),
        "the prompt instead": (swapped, "parts train|trains, but the answer|image tokens train"),
        "one token early": (early, "trains, but the answer"),
        "one token late": (late, "trains, but the answer|parts train"),
        "no end": (endless, "the model would never stop"),
        "shifted": (lambda ids, labels: [*labels[1:], IGNORE], "this is a bug"),
    }


@pytest.mark.parametrize("name", wrong_masks())
def test_a_wrong_mask_ends_the_run(name: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, message = wrong_masks()[name]

    def spoiled(*arguments: Any) -> tuple[list[int], list[int]]:
        ids, labels = encode(*arguments)
        return ids, spoil(ids, labels)

    examples, rows = made([ASKED, TEXT])
    assert audit(examples, rows, "lora")
    monkeypatch.setattr(dataset, "encode", spoiled)
    with pytest.raises(StageFailed, match=f"row 1: .*({message})"):
        audit(examples, rows, "lora")


def test_a_template_of_another_model_is_caught(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA's mask with constants for Vicuna, on a template with another answer mark: what its warning is about."""

    def other(template: str, turns: Any, tokenizer: Any, image_tokens: int) -> tuple[list[int], list[int]]:
        ids, labels = [1], [IGNORE]
        for human, answer in turns:
            before = tokenizer([f"### Human: {human.replace('<image>', '')} ### Assistant:"])["input_ids"][0]
            said = tokenizer([answer])["input_ids"][0]
            ids += [*before, *said, 2]
            labels += [IGNORE] * (len(before) - 3) + before[-3:] + [*said, 2]
        return ids, labels

    examples, rows = made([TEXT])
    monkeypatch.setattr(dataset, "encode", other)
    with pytest.raises(StageFailed, match="trains, but the answer is 'naïve – 日本 🎉'; is --version right"):
        audit(examples, rows, "lora")


def test_a_tokenizer_without_begin_and_end_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFormatError, match="has no begin or no end token"):
        load_tokenizer(tmp_path)


def test_no_right_mask_is_taken_for_a_wrong_one(made: Made) -> None:
    """Texts of every kind, with the real tokenizer: those of the golden cases."""
    if not LLAMA.is_dir():
        pytest.skip(f"the Llama tokenizer is not at {LLAMA}")
    cases = json.loads((Path(__file__).parent / "cases/preprocessing.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(LLAMA)
    for template, stage in (("plain", "projector"), ("v1", "lora")):
        rows = [case["row"] for case in cases if case["template"] == template]
        examples, table = made([row for row in rows if examine(row, template)[0]], template)
        real = TrainingRows(template, tokenizer, examples.pixels, 16, 512)
        assert audit(real, table, stage)[-1].startswith("trains: ")
        for place, row in enumerate(table):
            ids, labels = real.tokens(row["number"], row["turns"])
            first = next(at for at, label in enumerate(labels) if label != IGNORE)
            last_image = max((at for at, token in enumerate(ids) if token == IMAGE_TOKEN), default=0)
            for longest in range(max(first, last_image) + 1, len(ids) + 1, 2):  # cut at every other place in an answer
                cut = TrainingRows(template, tokenizer, examples.pixels, 16, longest)
                audit(cut, table.select([place]), stage)
