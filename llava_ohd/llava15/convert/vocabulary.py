"""The rows that llava-hf adds to the vocabulary, and taking them away again.

LLaVA's `<image>` is the index -200, which has no row. transformers wants tokens: llava-hf puts `<image>` and `<pad>`
behind the last piece (32000 and 32001) and fills up to a multiple of 64 (32064). It draws the new rows at random. Here
every new row is the mean of the old ones. Its logit is then the mean of all logits, so that greedy decoding never
chooses one, and sampling does with at most the probability of a uniform guess: LLaVA's answers stay LLaVA's.

Source: llava-hf/llava-1.5-7b-hf config.json; transformers 4.57 convert_llava_weights_to_hf.py.
"""

from collections.abc import Mapping

import torch

from llava_ohd.llava15.convert.stored import Stored

__all__ = ["ADDED", "extended", "reduced", "rows_for"]

ADDED = ("<image>", "<pad>")
"""In the order of their ids."""
_MULTIPLE = 64
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def rows_for(vocabulary: int, pieces: int) -> int:
    """Returns the rows of HF's vocabulary: at least LLaVA's, with room for the added tokens, a multiple of 64.

    Args:
        vocabulary: Rows of LLaVA's.
        pieces: Tokens of the tokenizer.
    """
    needed = max(vocabulary, pieces + len(ADDED))
    return -(-needed // _MULTIPLE) * _MULTIPLE


def extended(language: Mapping[str, Stored], rows: int) -> dict[str, Stored]:
    """Adds rows to the embedding and the head of a language model."""
    return {name: _extend(s, rows) if name in _VOCABULARY else s for name, s in language.items()}


def _extend(stored: Stored, rows: int) -> Stored:
    def read() -> torch.Tensor:
        old = stored.read()
        made = torch.empty(rows, *stored.shape[1:], dtype=old.dtype)
        made[: len(old)] = old
        made[len(old) :] = old.mean(0, dtype=torch.float64).to(old.dtype)
        return made

    return Stored((rows, *stored.shape[1:]), stored.dtype, read, stored.rounded)


def reduced(language: Mapping[str, Stored], rows: int) -> dict[str, Stored]:
    """Keeps the first rows of the embedding and the head of a language model."""
    return {name: _reduce(s, rows) if name in _VOCABULARY else s for name, s in language.items()}


def _reduce(stored: Stored, rows: int) -> Stored:
    return Stored((rows, *stored.shape[1:]), stored.dtype, lambda: stored.read()[:rows].clone(), stored.rounded)
