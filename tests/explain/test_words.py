"""Words, their places, and the tokens that each is made of."""

from pathlib import Path
from typing import Any

import pytest

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.explain.words import prepare, sentences, split_words
from llava_ohd.world import MINI_CLIP

REAL = Path(__file__).resolve().parents[3] / "shared/data/tokenizers/clip_vitb32_no_weights"


def test_full_stops_and_commas_are_words_and_all_else_stays_glued() -> None:
    caption = "A man's red-hot  cup, isn't (it).\n"
    words = split_words(caption)
    assert [word.text for word in words] == ["A", "man's", "red-hot", "cup", ",", "isn't", "(it)", "."]
    assert all(caption[word.start : word.end] == word.text for word in words)


def test_sentences() -> None:
    text = "There is a cup. It costs 2.50!  Is it red?\nYes"
    assert sentences(text) == ["There is a cup.", "It costs 2.50!", "Is it red?", "Yes"]


@pytest.fixture(scope="module", params=["mini", "real"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "real" and not REAL.is_dir():
        pytest.skip(f"{REAL} is not there: CLIP's own tokenizer")
    return tower.load_tokenizer(MINI_CLIP if request.param == "mini" else REAL)


@pytest.mark.parametrize("template", ["A photo depicts ", ""])
@pytest.mark.parametrize("caption", ["a red  ball, and a tree.", "Naïve   CUPS., o'clock 日本", "\t x ", "umbrella"])
def test_every_token_of_the_caption_belongs_to_the_word_it_is_written_in(
    tokenizer: Any, caption: str, template: str
) -> None:
    text = prepare(tokenizer, caption, 77, template)
    before = len(tokenizer(template)["input_ids"]) - 1
    assert sorted({place for pieces in text.pieces for place in pieces}) == list(range(before, len(text.tokens) - 1))
    assert text.cut == ()
    for word, pieces in zip(text.words, text.pieces, strict=True):
        alone = tokenizer(word.text)["input_ids"][1:-1]
        if word.text not in ".,":  # ".," may be one token, which then belongs to both
            assert [text.tokens[place] for place in pieces] == alone


def test_what_is_too_long_is_refused_or_left_without_score(tokenizer: Any) -> None:
    caption = "a cup and " * 40 + "a tree"
    with pytest.raises(DataFormatError, match=r"has 12\d tokens .* reads 64; score it by sentence"):
        prepare(tokenizer, caption, 64, "")
    text = prepare(tokenizer, caption, 64, "", cut=True)
    assert len(text.tokens) == 64
    assert text.tokens[-1] == tokenizer("a")["input_ids"][-1]
    assert len(text.cut) == 122 - 62
    assert text.cut[-1].text == "tree"


def test_nothing_to_score_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataFormatError, match="has no word"):
        prepare(tokenizer, " \n", 77)
