"""The shared fixtures hold what other tests build on."""

from pathlib import Path

import pytest

from llava_ohd import tower


def test_tokenizer_of_the_tiny_encoder(tiny_encoder_dir: Path) -> None:
    tokenizer = tower.load_tokenizer(tiny_encoder_dir)
    ids = tokenizer("A red ball, Zürich 42")["input_ids"]
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert (ids[0], ids[-1]) == (start, end)
    assert end not in ids[:-1]  # nothing is unknown: every byte has a piece
    assert (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == "a red ball , zürich 4 2"
    )
    assert len(tokenizer("a ball")["input_ids"]) == 4  # frequent words are one piece


@pytest.mark.parametrize("loader", ["LlamaTokenizer", "AutoTokenizer"])
def test_tokenizer_of_the_tiny_language_model(tiny_llama_dir: Path, loader: str) -> None:
    import sentencepiece
    import transformers

    tokenizer = getattr(transformers, loader).from_pretrained(tiny_llama_dir)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tiny_llama_dir / "tokenizer.model"))
    text = "USER: Is there a red ball in the image? ASSISTANT: Zürich 42"
    assert tokenizer(text)["input_ids"] == [1, *plain.encode(text)]
    assert tokenizer("Yes</s>")["input_ids"][-1] == 2
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_tiny_language_model_loads(tiny_llama_dir: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_llama_dir)
    assert model(input_ids=torch.tensor([[1, 5, 9]])).logits.shape == (1, 3, model.config.vocab_size)
