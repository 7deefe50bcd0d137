"""What protocols do to captions: image list, tokens, unfinished sentence."""

from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError, LlavaOhdError
from llava_ohd.evals.chair_data import Caption
from llava_ohd.evals.chair_protocol import Protocol, read_image_list, without_unfinished

LLAMA = Path(__file__).resolve().parents[2].parent / "shared/data/tokenizers/llama"
CAPTIONS = [Caption("COCO_val2014_000000000042.jpg", "A dog. A c"), Caption("7", "A bus"), Caption("9", "A cat.")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog. A c", "A dog."),
        ("A dog.", "A dog."),
        ("A dog", ""),
        ("A dog! A", ""),
        ("a 1.5 m dog", "a 1."),
        ("", ""),
    ],
)
def test_the_unfinished_sentence(text, kept):
    assert without_unfinished(text) == kept


def test_an_image_list_chooses(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("9\nCOCO_val2014_000000000042.jpg\n")
    found, stated = Protocol(image_list=path, drop_unfinished=True).apply(CAPTIONS)
    assert found == [Caption("COCO_val2014_000000000042.jpg", "A dog."), CAPTIONS[2]]
    assert stated["image_list"]["images"] == 2
    assert stated["drop_unfinished"]
    (tmp_path / "same.json").write_text("[42, 9]")
    assert Protocol(tmp_path / "same.json").apply(CAPTIONS)[1]["image_list"] == stated["image_list"]
    path.write_text("9\n7\n")
    assert Protocol(path).apply(CAPTIONS)[1]["image_list"] != stated["image_list"]
    path.write_text("9\n8\n1\n")
    with pytest.raises(AnswersMismatch, match=r"2 of 3 images of the list have no caption, first: \['1', '8'\]"):
        Protocol(image_list=path).apply(CAPTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("1 x", "'x' is no image"),
        ("1\n000000000001.jpg", "'1' occurs twice"),
        ("²", "is no image"),
    ],
)
def test_lists_that_are_refused(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(DataFormatError, match=message):
        read_image_list(path)
    with pytest.raises(DataFormatError, match="cannot be read as text"):
        read_image_list(tmp_path / "none.txt")


def test_nothing_asked_for_changes_nothing():
    assert Protocol().apply(CAPTIONS) == (CAPTIONS, {})


@pytest.mark.skipif(not LLAMA.is_dir(), reason=f"{LLAMA} is not there")
def test_tokens_are_those_of_the_language_model():
    pytest.importorskip("sentencepiece")
    text = "A skateboarder in a neighbourhood.\n\nThere is “ice”."
    cut = [Protocol(max_tokens=n, tokenizer=LLAMA).apply([Caption("1", text)])[0][0].text for n in (1, 5, 64)]
    assert cut == ["A", "A skateboarder", text]
    stated = Protocol(max_tokens=64, tokenizer=LLAMA / "tokenizer.model").apply(CAPTIONS)[1]
    assert stated == {"max_tokens": 64}
    with pytest.raises(LlavaOhdError, match="0 tokens of a caption; give 1 or more"):
        Protocol(max_tokens=0, tokenizer=LLAMA).apply(CAPTIONS)


def test_tokenizers_that_are_not_there(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece")
    with pytest.raises(DataFormatError, match="cannot be read as a SentencePiece model"):
        Protocol(max_tokens=64, tokenizer=tmp_path / "none").apply(CAPTIONS)
    monkeypatch.delenv("LLAVA_OHD_DATA", raising=False)
    with pytest.raises(LlavaOhdError, match=r"Llama's tokenizer; give another with --tokenizer .*LLAVA_OHD_DATA"):
        Protocol(max_tokens=64).apply(CAPTIONS)
