"""Greedy decoding of many questions on kept keys and values, in a batch that is filled again as answers end.

A question is the tokens after a prefix whose keys and values are known. New questions of like length are read together,
padded at the left; those whose answers go on join the running batch, whose rows are then padded at the left to one
length. Padding is masked and every token keeps its own position, so no answer depends on what runs beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

__all__ = ["Asked", "Finished", "decode"]

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (N, heads, tokens, width) of each layer."""


@dataclass(frozen=True)
class Asked:
    """One distinct question.

    Attributes:
        ids: All ids that ask it.
        tokens: Those after the prefix.
        prefix: Keys and values of the prefix, N = 1.
    """

    ids: list[str]
    tokens: list[int]
    prefix: Layers


@dataclass
class Finished:
    """An answer.

    Attributes:
        asked: The question.
        tokens: Of the answer, without the end token.
        first: Probabilities of the watched tokens at the beginning of the answer.
    """

    asked: Asked
    tokens: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


@dataclass
class _Running:
    """A batch of B unfinished answers.

    Attributes:
        answers: So far.
        cache: Keys and values of all tokens but the last.
        shown: 1 where a key counts, 0 at padding, (B, L).
        last: The last token, (B, 1).
        position: Its position, (B, 1).
    """

    answers: list[Finished]
    cache: Any
    shown: torch.Tensor
    last: torch.Tensor
    position: torch.Tensor


def decode(
    model: Any, asked: Iterator[Asked], *, end: int, size: int, max_new_tokens: int, watched: tuple[int, ...] = ()
) -> Iterator[Finished]:
    """Yields the answers as they end.

    Args:
        model: A LlavaForConditionalGeneration.
        asked: Questions, read when there is room for them.
        end: The token that ends an answer.
        size: Answers in the making, at most. Half of it is filled again at a time, since reading few is slow.
        max_new_tokens: Tokens at which an answer is cut.
        watched: Tokens whose probability at the beginning of the answer is wanted.
    """
    running: _Running | None = None
    while True:
        count = len(running.answers) if running else 0
        if count <= size // 2 and (fresh := list(islice(asked, size - count))):
            begun, finished = _begin(model, fresh, end, max_new_tokens, watched)
            yield from finished
            running = begun if running is None else _joined(running, begun) if begun else running
        elif running is None:
            return
        if running:
            running, finished = _step(model, running, end, max_new_tokens)
            yield from finished


@torch.inference_mode()
def _begin(
    model: Any, asked: list[Asked], end: int, max_new_tokens: int, watched: tuple[int, ...]
) -> tuple[_Running | None, list[Finished]]:
    """Reads questions; returns those whose answers go on, and those that end with their first token."""
    device, before = model.device, asked[0].prefix[0][0].shape[2]
    width = max(len(one.tokens) for one in asked)
    tokens = torch.tensor([[0] * (width - len(one.tokens)) + one.tokens for one in asked], device=device)
    shown = torch.tensor([[0] * (width - len(one.tokens)) + [1] * len(one.tokens) for one in asked], device=device)
    position = before + (shown.cumsum(1) - 1).clamp(min=0)
    shown = torch.cat([shown.new_ones(len(asked), before), shown], 1)
    layers = zip(*(one.prefix for one in asked), strict=True)
    cache = DynamicCache([(torch.cat([k for k, _ in rows]), torch.cat([v for _, v in rows])) for rows in layers])
    logits = _logits(model, tokens, shown, position, cache)
    answers = [Finished(one) for one in asked]
    if watched:
        first = logits.float().softmax(-1)[:, list(watched)].tolist()
        answers = [Finished(one, first=row) for one, row in zip(asked, first, strict=True)]
    running = _Running(answers, cache, shown, tokens[:, -1:], position[:, -1:])
    return _advanced(running, logits.argmax(-1), end, max_new_tokens)


@torch.inference_mode()
def _step(model: Any, running: _Running, end: int, max_new_tokens: int) -> tuple[_Running | None, list[Finished]]:
    logits = _logits(model, running.last, running.shown, running.position, running.cache)
    return _advanced(running, logits.argmax(-1), end, max_new_tokens)


def _logits(model: Any, tokens: torch.Tensor, shown: torch.Tensor, position: torch.Tensor, cache: Any) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=tokens,
        attention_mask=shown,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits


def _advanced(
    running: _Running, chosen: torch.Tensor, end: int, max_new_tokens: int
) -> tuple[_Running | None, list[Finished]]:
    """Appends the chosen tokens (B), and parts the answers that go on from those that have ended."""
    ended = []
    for row, (answer, token) in enumerate(zip(running.answers, chosen.tolist(), strict=True)):
        if token != end:
            answer.tokens.append(token)
        if token == end or len(answer.tokens) >= max_new_tokens:
            ended.append(row)
    finished = [running.answers[row] for row in ended]
    left = [row for row in range(len(chosen)) if row not in set(ended)]
    if not left:
        return None, finished
    shown, position = running.shown, running.position
    if ended:
        kept = torch.tensor(left, device=chosen.device)
        running.cache.batch_select_indices(kept)
        chosen, shown, position = chosen[kept], shown[kept], position[kept]
    shown = torch.cat([shown, shown.new_ones(len(left), 1)], 1)
    answers = [running.answers[row] for row in left]
    return _Running(answers, running.cache, shown, chosen[:, None], position + 1), finished


@torch.inference_mode()
def _joined(one: _Running, other: _Running) -> _Running:
    """Makes one batch of two; the shorter rows get more padding at the left, columns of nothing but padding go."""
    length = max(one.shown.shape[1], other.shown.shape[1])
    parts = (one, other)
    shown = torch.cat([pad(part.shown, (length - part.shown.shape[1], 0)) for part in parts])
    empty = int((shown.sum(0) > 0).int().argmax())
    layers = []
    for mine, theirs in zip(one.cache.layers, other.cache.layers, strict=True):
        keys, values = (
            torch.cat([pad(kept, (0, 0, length - 1 - kept.shape[2], 0)) for kept in both])[:, :, empty:]
            for both in ((mine.keys, theirs.keys), (mine.values, theirs.values))
        )
        layers.append((keys, values))
    return _Running(
        one.answers + other.answers,
        DynamicCache(layers),
        shown[:, empty:],
        torch.cat([one.last, other.last]),
        torch.cat([one.position, other.position]),
    )
