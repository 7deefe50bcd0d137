"""The engine against plain generation, one question at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.answering import decoding
from llava_ohd.answering.engine import LlavaAnswerer, _first_tokens
from llava_ohd.answering.one_by_one import plain_answers
from llava_ohd.errors import ImageError, ModelFormatError
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


def test_plain_answers_alone_and_in_padded_batches(parts: tuple[Any, Any, Pixels], questions: list[Question]) -> None:
    expected = [one_by_one(parts, question, 6) for question in questions]
    for size in (1, 4):
        assert [a.text for a in plain_answers(*parts, 16, questions, 6, size)] == expected


def test_a_batch_that_is_filled_again_changes_no_long_answer(
    parts: tuple[Any, Any, Pixels], questions: list[Question]
) -> None:
    """Answers end at different times, so rows of different length join; every order gives what one by one gives."""
    distinct = questions[:18]
    expected = {question.id: one_by_one(parts, question, 40) for question in distinct}
    assert len({len(text) for text in expected.values()}) > 3
    for size, order in ((3, distinct), (4, distinct[::-1]), (7, distinct[1::2] + distinct[::2])):
        assert {a.question_id: a.text for a in LlavaAnswerer(*parts, 16, size).answer(order, 40)} == expected


def test_the_batch_is_filled_again(
    parts: tuple[Any, Any, Pixels], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []

    def counted(one: Any, other: Any) -> Any:
        joined.append(len(other.answers))  # rows
        return real(one, other)

    real = decoding._joined
    monkeypatch.setattr(decoding, "_joined", counted)
    list(LlavaAnswerer(*parts, 16, 4).answer(questions[:18], 40))
    assert joined


def test_probabilities_are_those_of_the_first_token(
    parts: tuple[Any, Any, Pixels], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, pixels = parts
    monkeypatch.setattr("llava_ohd.answering.engine._first_tokens", lambda _: {"yes": {5, 9}, "no": {7}})
    answers = {a.question_id: a for a in LlavaAnswerer(*parts, 16, 5, probabilities=True).answer(questions, 3)}
    for question in questions[:3]:
        ids = torch.tensor([encode_question(f"<image>\n{question.prompt}", tokenizer, 16)])
        with torch.inference_mode():
            logits = model(input_ids=ids, pixel_values=pixels(question.image)[None]).logits[0, -1]
        first = logits.softmax(-1)
        expected = {"yes": float(first[5] + first[9]), "no": float(first[7])}
        assert answers[question.id].metadata == pytest.approx(expected, rel=1e-4)
    plain = {a.question_id: a.text for a in LlavaAnswerer(*parts, 16).answer(questions, 3)}
    assert {name: answer.text for name, answer in answers.items()} == plain


class Letters:
    """A tokenizer that begins every answer with the same space, or with a letter of its own."""

    bos_token_id, eos_token_id, eos_token = 1, 2, "</s>"

    def __init__(self, space: bool) -> None:
        self.space = space

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text if self.space or c != " "] for text in texts]}

    def after_end(self, texts: list[str]) -> list[list[int]]:
        return self(texts)["input_ids"]


def test_first_tokens_of_yes_and_no() -> None:
    assert _first_tokens(Letters(space=False)) == {"yes": {ord("y"), ord("Y")}, "no": {ord("n"), ord("N")}}
    with pytest.raises(ModelFormatError, match="begins yes and no with the same token"):
        _first_tokens(Letters(space=True))
