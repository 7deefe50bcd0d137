"""Ids and labels against LLaVA's own, with the real Llama tokenizer: cases/preprocessing.json.

tests/with_llava/test_preprocessing.py makes that file with the unmodified original code. Every row goes through our
reader first, as in training.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.rows import examine
from llava_ohd.llava15.tokenizer import SentencePieceTokenizer

LLAMA = Path(__file__).parents[2].parent / "shared/data/tokenizers/llama/tokenizer.model"
CASES = json.loads((Path(__file__).parent / "cases/preprocessing.json").read_text(encoding="utf-8"))
REFUSED = {  # LLaVA trains nothing of these rows, or trains a control token in the middle of a text
    "caption names the end token": "control_token",
    "empty question": "empty_question",
    "empty question in the second turn": "empty_question",
    "end token in an answer": "control_token",
    "end token in a question": "control_token",
    "begin token in a question": "control_token",
    "unknown token in an answer": "control_token",
    "image twice in a turn": "unmatched_image",  # LLaVA makes one of the two
}
MENDED = {"the template's own words in a question", "the template's own words in an answer"}


@pytest.fixture(scope="module", params=["legacy", "current"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(flavour: str) -> SentencePieceTokenizer:
    if not LLAMA.is_file():
        pytest.skip(f"the Llama tokenizer is not at {LLAMA}")
    return SentencePieceTokenizer(LLAMA, legacy=flavour == "legacy")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_ids_and_labels_are_llavas(case: dict[str, Any], flavour: str, tokenizer: SentencePieceTokenizer) -> None:
    row, findings = examine(case["row"], case["template"])
    theirs = case[flavour]
    if case["name"] in REFUSED:
        assert row is None
        assert [finding.kind for finding in findings] == [REFUSED[case["name"]]]
        return
    assert row is not None
    assert theirs["words"] in (row["words"], None)
    ids, labels = encode(case["template"], row["turns"], tokenizer, image_tokens=1)
    longest = case.get("model_max_length", 2048)
    assert ids[:longest] == theirs["ids"]
    expected = [IGNORE] * len(theirs["ids"])
    for start, end in theirs["trained"]:
        expected[start:end] = theirs["ids"][start:end]
    if case["name"] in MENDED:
        assert not theirs["trained"]
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id
        trained = [label for label in labels if label != IGNORE][:-1]
        assert tokenizer.decode(trained) == row["turns"][0][1]
        assert "template_words" in [finding.kind for finding in findings]
    else:
        assert labels[:longest] == expected


def test_the_cases_reach_both_kinds_of_tokenizer() -> None:
    assert len(CASES) > 40
    assert sum(case["legacy"]["ids"] != case["current"]["ids"] for case in CASES) > 8
    assert sum(IMAGE_TOKEN in case["legacy"]["ids"] for case in CASES) > 20


def test_encode_refuses_what_the_reader_refuses(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataFormatError, match="</s>, which is a control token"):
        encode("v1", [("What ends a text?", "</s>")], tokenizer)
    with pytest.raises(DataFormatError, match="text in every question"):
        encode("v1", [("", "Silence")], tokenizer)
