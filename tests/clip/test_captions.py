"""The shared text tower against transformers' own forward on fully padded captions."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip.captions import encode_captions, share_beginnings, tokenise
from llava_ohd.clip.embedding import embed_captions

CAPTIONS = [
    "a red ball",
    "a large red ball and a small blue key",
    "a red ball",
    "A red ball",
    "cup",
    "a blue box , a cup",
]


def padded_to_context(model, tokenizer, captions: list[str]) -> torch.Tensor:
    """The way of the released code: all captions at full length, with an attention mask."""
    length = tokenizer.model_max_length
    batch = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model.text_projection(model.text_model(**batch).pooler_output)


@pytest.mark.parametrize("buckets", [1, 3, 100])
def test_outputs_and_gradients_are_those_of_transformers(tiny_encoder_dir: Path, make_rows: Any, buckets: int) -> None:
    """In double precision, so that only the arithmetic differs."""
    model, tokenizer = tower.load(tiny_encoder_dir).double(), tower.load_tokenizer(tiny_encoder_dir)
    captions = [*{caption: None for row in make_rows(6, 9) for caption in row.captions}, "", "a ball " * 60]
    random.Random(0).shuffle(captions)
    weights = torch.randn(len(captions), 32, generator=torch.Generator().manual_seed(0)).double()
    shared = share_beginnings(tokenise(tokenizer, captions), buckets)
    assert len(shared["token"]) < 0.7 * sum(len(tokens) for tokens in tokenise(tokenizer, captions))
    results = []
    for encode in (lambda: encode_captions(model, shared), lambda: padded_to_context(model, tokenizer, captions)):
        model.zero_grad()
        output = encode()
        (output * weights).sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.detach(), grads))
    (found, found_grads), (expected, expected_grads) = results
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert found_grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        torch.testing.assert_close(found_grads[name], grad, rtol=1e-8, atol=1e-9, msg=name)


def test_the_tree_has_each_beginning_once() -> None:
    shared = share_beginnings([(1, 5, 6, 9), (1, 5, 9), (1, 7, 9)], buckets=2)
    assert shared["token"].tolist() == [1, 5, 6, 9, 9, 7, 9]
    assert shared["position"].tolist() == [0, 1, 2, 3, 2, 1, 2]
    assert shared["end"].tolist() == [3, 4, 6]
    assert [bucket.tolist() for bucket in shared["slots"]] == [[[0, 1, 4], [0, 5, 6]], [[0, 1, 2, 3]]]
    assert shared["first"].tolist() == [0, 1, 8, 9, 2, 4, 5]


def test_embeds_each_caption_once(tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    texts, which = embed_captions(model, tokenizer, CAPTIONS, batch=2)
    assert len(texts) == 4  # the tokenizer lowers the case
    assert which[0] == which[2] == which[3]
    expected = torch.nn.functional.normalize(padded_to_context(model, tokenizer, CAPTIONS), dim=-1)
    torch.testing.assert_close(texts[which], expected.detach(), rtol=1e-4, atol=2e-6)


def test_long_captions_keep_their_end(tiny_encoder_dir: Path) -> None:
    tokenizer = tower.load_tokenizer(tiny_encoder_dir)
    [tokens] = tokenise(tokenizer, ["a red ball and " * 60])
    assert len(tokens) == 77
    assert tokens[-1] == tokenizer.eos_token_id
