"""The engine against plain generation, one question at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.answering.engine import LlavaAnswerer
from llava_ohd.errors import ImageError
from llava_ohd.llava15.conversation import encode_question
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.model import build
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.records import Question

PROMPTS = (
    "Is there a ball in the image?",
    "Describe the image.",
    "Is there a large red cup or a small blue box in it?",
)


@pytest.fixture(scope="module")
def parts(
    tiny_encoder_dir: Path, tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Pixels]:
    """A model whose answers differ between images and end early now and then."""
    images = tmp_path_factory.mktemp("images")
    random = torch.Generator().manual_seed(0)
    for number in range(6):
        pixels = torch.randint(0, 256, (40, 30, 3), generator=random, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.png")
    model = build(tiny_llama_dir, tower.check(tiny_encoder_dir))
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for weight in layer.parameters():
                weight.mul_(4)
        model.model.multi_modal_projector.linear_2.weight.mul_(10)
        model.lm_head.weight[2] = model.lm_head.weight[3:].std(0) * 2
    return model, load_tokenizer(tiny_llama_dir), Pixels(images, tower.load_processor(tiny_encoder_dir), True, None)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    asked = [(f"{image}.png", prompt) for image in range(6) for prompt in PROMPTS]
    asked += asked[:4]  # asked again under another id
    return [Question(str(number), image, prompt) for number, (image, prompt) in enumerate(asked)]


def one_by_one(parts: tuple[Any, Any, Pixels], question: Question, max_new_tokens: int) -> str:
    model, tokenizer, pixels = parts
    ids = torch.tensor([encode_question(f"<image>\n{question.prompt}", tokenizer, 16)])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels(question.image)[None],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=2,
    )
    return tokenizer.decode([token for token in out[0, ids.shape[1] :].tolist() if token != 2]).strip()


def test_answers_equal_those_of_one_by_one_generation(
    parts: tuple[Any, Any, Pixels], questions: list[Question]
) -> None:
    expected = {question.id: one_by_one(parts, question, 9) for question in questions}
    for batch_size in (None, 1, 5):
        answers = {a.question_id: a.text for a in LlavaAnswerer(*parts, 16, batch_size).answer(questions, 9)}
        assert answers == expected
    assert len(set(expected.values())) > 6  # else the test could not tell images and prompts apart
    lengths = {len(text) for text in expected.values()}
    assert len(lengths) > 1


def test_order_and_windows_of_memory_do_not_matter(
    parts: tuple[Any, Any, Pixels], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {a.question_id: a.text for a in LlavaAnswerer(*parts, 16).answer(questions, 5)}
    monkeypatch.setattr("llava_ohd.answering.engine._CACHE_BYTES", 2 * 80 * 2 * 2 * 32 * 4)  # two images
    narrow = LlavaAnswerer(*parts, 16)
    assert {a.question_id: a.text for a in narrow.answer(questions[::-1], 5)} == whole


def test_every_image_is_seen_once(parts: tuple[Any, Any, Pixels], questions: list[Question]) -> None:
    model, tokenizer, pixels = parts
    seen: list[str] = []

    class Counted(Pixels):
        def __init__(self) -> None:
            pass

        def __call__(self, name: str) -> torch.Tensor:
            seen.append(name)
            return pixels(name)

    answers = list(LlavaAnswerer(model, tokenizer, Counted(), 16).answer(questions, 2))
    assert sorted(seen) == [f"{number}.png" for number in range(6)]
    assert sorted(a.question_id for a in answers) == sorted(q.id for q in questions)


def test_no_questions_and_missing_images(parts: tuple[Any, Any, Pixels]) -> None:
    answerer = LlavaAnswerer(*parts, 16)
    assert list(answerer.answer([], 5)) == []
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        list(answerer.answer([Question("1", "none.png", "What?")], 5))
