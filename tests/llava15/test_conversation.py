"""Templates against LLaVA's own algorithm, written out slowly, and against ids worked out by hand."""

from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError, ModelFormatError, ModelNotFound
from llava_ohd.llava15.conversation import IGNORE, IMAGE, IMAGE_TOKEN, SYSTEM, encode, encode_question
from llava_ohd.llava15.tokenizer import SentencePieceTokenizer, load_tokenizer
from llava_ohd.world import MINI_LLAMA

REAL = Path(__file__).parents[2].parent / "shared/data/tokenizers/llama"
TURNS = {
    "one": [(f"{IMAGE}\nIs there a dog in the image?", "Yes")],
    "two": [(f"{IMAGE}\nIs there a ball?", "No"), ("And a cup?", "Yes, there is a cup.")],
    "text": [("Is a ball red?", "Not always."), ("Why?", "Colours differ."), ("Is it?", "No")],
    "spaces": [(f"{IMAGE}\nwhat  is \n this? ", " two  spaces \n\n and lines")],
    "unicode": [(f"{IMAGE}\nÇa va, 日本 🎉?", "naïve – yes…")],
}


@pytest.fixture(scope="module")
def real() -> SentencePieceTokenizer:
    if not REAL.is_dir():
        pytest.skip(f"the Llama tokenizer is not at {REAL}")
    return load_tokenizer(REAL)


def llava_v1(turns: list[tuple[str, str]], tokenizer: SentencePieceTokenizer) -> tuple[list[int], list[int]]:
    """preprocess_v1 and tokenizer_image_token of LLaVA @ c121f04 with the slow tokenizer, an image being one token."""

    def slow(text: str) -> list[int]:  # the slow tokenizer tokenises around </s> and puts <s> in front
        ids = [1]
        for position, part in enumerate(text.split("</s>")):
            ids += ([2] if position else []) + tokenizer([part])["input_ids"][0]
        return ids

    def with_image(text: str) -> list[int]:
        ids = [1]
        for position, part in enumerate(text.split(IMAGE)):
            ids += ([IMAGE_TOKEN] if position else []) + slow(part)[1:]
        return ids

    text = f"{SYSTEM} " + "".join(f"USER: {human} ASSISTANT: {answer}</s>" for human, answer in turns)
    ids = with_image(text)
    labels = list(ids)
    labels[0] = IGNORE
    place = 1
    for one in text.split("</s>")[:-1]:
        before = one.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        prompt = len(with_image(before)) - 2
        labels[place : place + prompt] = [IGNORE] * prompt
        place += len(with_image(one))
    assert place == len(ids)  # else LLaVA prints "tokenization mismatch (ignored)" and trains nothing
    return ids, labels


@pytest.mark.parametrize("name", TURNS)
def test_v1_equals_llavas_algorithm(name: str, real: SentencePieceTokenizer) -> None:
    assert encode("v1", TURNS[name], real, image_tokens=1) == llava_v1(TURNS[name], real)


@pytest.mark.parametrize("name", TURNS)
def test_v1_equals_llavas_algorithm_with_the_worlds_tokenizer(name: str) -> None:
    tokenizer = load_tokenizer(MINI_LLAMA)
    assert encode("v1", TURNS[name], tokenizer, image_tokens=1) == llava_v1(TURNS[name], tokenizer)


def test_v1_ids_worked_out_by_hand(real: SentencePieceTokenizer) -> None:
    ids, labels = encode("v1", [(f"{IMAGE}\nIs there a dog in the image?", "Yes")], real, image_tokens=3)
    system = [319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892]
    system += [13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889]
    user, assistant = [3148, 1001, 29901, 29871], [319, 1799, 9047, 13566, 29901]
    question = [29871, 13, 3624, 727, 263, 11203, 297, 278, 1967, 29973]
    before = [1, *system, *user, *[IMAGE_TOKEN] * 3, *question, *assistant]
    assert ids == [*before, 3869, 2]
    assert labels == [*[IGNORE] * len(before), 3869, 2]


def test_plain_trains_the_caption_and_its_line_end(real: SentencePieceTokenizer) -> None:
    ids, labels = encode("plain", [(f"{IMAGE}\nwhatever is asked", "a red ball")], real, image_tokens=2)
    assert ids == [1, IMAGE_TOKEN, IMAGE_TOKEN, 263, 2654, 8287, 13]
    assert labels == [IGNORE, IGNORE, IGNORE, 263, 2654, 8287, 13]


def test_a_question_is_what_precedes_the_answer_in_training(tiny_llama_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama_dir)
    ids, labels = encode("v1", TURNS["one"], tokenizer, image_tokens=4)
    answer = next(place for place, label in enumerate(labels) if label != IGNORE)
    assert encode_question(TURNS["one"][0][0], tokenizer, image_tokens=4) == ids[:answer]


def test_runs_of_spaces_are_tokenised_by_score(real: SentencePieceTokenizer) -> None:
    # transformers 5 gives 1023 259 22854 for the same file
    assert real(["two  spaces"])["input_ids"] == [[1023, 29871, 8162]]


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        ("v2", TURNS["one"], "template 'v2' is unknown"),
        ("v1", [], "at least one turn"),
        ("v1", [("Is there a ball?", "")], "text in every question and answer"),
        ("plain", TURNS["two"], "one turn"),
        ("plain", [("no image", "a ball")], "one turn"),
    ],
)
def test_conversations_without_a_mask_are_refused(
    template: str, turns: list[tuple[str, str]], message: str, tiny_llama_dir: Path
) -> None:
    with pytest.raises(DataFormatError, match=message):
        encode(template, turns, load_tokenizer(tiny_llama_dir), image_tokens=1)


def test_a_tokenizer_that_merges_across_the_answer_is_refused() -> None:
    class Whole:
        bos_token_id, eos_token_id, eos_token = 1, 2, "</s>"

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[3 + len(text)] for text in texts]}

    with pytest.raises(DataFormatError, match="no label mask"):
        encode("v1", TURNS["text"], Whole())


def test_tokenizer_folders(tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert load_tokenizer(tiny_llama_dir).decode(
        [1, *load_tokenizer(tiny_llama_dir)(["a red ball"])["input_ids"][0], 2]
    )
    with pytest.raises(ModelNotFound, match="not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ModelFormatError, match=r"no tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"broken")
    with pytest.raises(ModelFormatError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
