"""Greedy decoding of many questions on the keys and values of few images, in a batch that is filled again as rows end.

A row is an image with some of its questions: the keys and values of system text and image stand in it once, and the
tokens of its questions follow side by side. A mask lets every token see the prefix and its own question only, and every
token has the position that it would have alone, so no answer depends on what runs beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

__all__ = ["Asked", "Finished", "Layers", "Row", "decode"]

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (N, heads, tokens, width) of each layer."""

_ALL, _NONE = -1, -2  # whose a token is: of all questions of its row; of none (padding)


@dataclass(frozen=True)
class Asked:
    """One distinct question.

    Attributes:
        ids: All ids that ask it.
        tokens: Those after the prefix.
    """

    ids: list[str]
    tokens: list[int]


@dataclass(frozen=True)
class Row:
    """An image and what is asked about it.

    Attributes:
        asked: The questions, at least one.
        prefix: Keys and values of system text and image, N = 1; as many tokens in every row.
    """

    asked: list[Asked]
    prefix: Layers


@dataclass
class Finished:
    """An answer.

    Attributes:
        asked: The question.
        slot: Its number in its row.
        tokens: Of the answer, without the end token.
        first: Probabilities of the watched tokens at the beginning of the answer.
    """

    asked: Asked
    slot: int
    tokens: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


@dataclass
class _Running:
    """A batch of R rows that hold K keys, and the T tokens of each that the model has not read yet.

    Attributes:
        prefix: Tokens of the prefix.
        answers: By row, those that have not ended.
        cache: Keys and values of what was read.
        owner: Whose each key is: a slot, `_ALL` or `_NONE`, (R, K).
        tokens: To be read, (R, T).
        reader: Whose each of these is, (R, T).
        position: Where each stands in its own text, (R, T).
        ends: By row, the column of the last token of each answer.
    """

    prefix: int
    answers: list[list[Finished]]
    cache: Any
    owner: torch.Tensor
    tokens: torch.Tensor
    reader: torch.Tensor
    position: torch.Tensor
    ends: list[list[int]]


def decode(
    model: Any,
    rows: Iterator[Row],
    *,
    end: int,
    size: int,
    most_rows: int,
    max_new_tokens: int,
    watched: tuple[int, ...] = (),
) -> Iterator[Finished]:
    """Yields the answers as they end.

    Args:
        model: A LlavaForConditionalGeneration whose attention takes a mask (sdpa or eager).
        rows: Read when there is room for them.
        end: The token that ends an answer.
        size: Answers in the making, at most; a row with more runs alone. Half of it is filled again at a time, since
            reading few is slow.
        most_rows: Rows of a batch, at most.
        max_new_tokens: Tokens at which an answer is cut.
        watched: Tokens whose probability at the beginning of the answer is wanted.
    """
    running: _Running | None = None
    waiting = next(rows, None)
    while running or waiting:
        fresh: list[Row] = []
        count = sum(map(len, running.answers)) if running else 0
        free = most_rows - (len(running.answers) if running else 0)
        if count <= size // 2:
            while waiting and len(fresh) < free and (count == 0 or count + len(waiting.asked) <= size):
                fresh.append(waiting)
                count += len(waiting.asked)
                waiting = next(rows, None)
        if fresh:
            begun, finished = _read(model, _begun(fresh, model.device), end, max_new_tokens, watched)
            yield from finished
            running = _joined(running, begun) if running and begun else running or begun
        if running:
            running, finished = _read(model, running, end, max_new_tokens)
            yield from finished


def _begun(rows: list[Row], device: torch.device) -> _Running:
    """Makes a batch of rows whose questions nobody has read yet."""
    prefix = rows[0].prefix[0][0].shape[2]
    texts = [[one.tokens for one in row.asked] for row in rows]
    layers = zip(*(row.prefix for row in rows), strict=True)
    return _Running(
        prefix=prefix,
        answers=[[Finished(one, slot) for slot, one in enumerate(row.asked)] for row in rows],
        cache=DynamicCache([(torch.cat([k for k, _ in both]), torch.cat([v for _, v in both])) for both in layers]),
        owner=torch.full((len(rows), prefix), _ALL, device=device),
        tokens=_filled([list(chain(*row)) for row in texts], 0, device),
        reader=_filled([[slot for slot, text in enumerate(row) for _ in text] for row in texts], _NONE, device),
        position=_filled([[prefix + i for text in row for i in range(len(text))] for row in texts], prefix, device),
        ends=[[length - 1 for length in accumulate(map(len, row))] for row in texts],
    )


def _filled(rows: list[list[int]], value: int, device: torch.device) -> torch.Tensor:
    """Returns rows of unequal length as a tensor, filled up at the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], device=device)


@torch.inference_mode()
def _read(
    model: Any, running: _Running, end: int, max_new_tokens: int, watched: tuple[int, ...] = ()
) -> tuple[_Running | None, list[Finished]]:
    """Reads the tokens that wait, and appends to each answer the token that is most likely next.

    Returns:
        The batch with these tokens waiting, without the rows that have ended (None: all have); and the answers that
        have ended.
    """
    owner = torch.cat([running.owner, running.reader], 1)
    states = model.model(
        input_ids=running.tokens,
        attention_mask=_mask(running.reader, owner, model.dtype),
        position_ids=running.position,
        past_key_values=running.cache,
        use_cache=True,
    ).last_hidden_state
    rows = [row for row, columns in enumerate(running.ends) for _ in columns]
    logits = model.lm_head(states[rows, list(chain(*running.ends))])
    answers = list(chain(*running.answers))
    for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
        answer.tokens.append(token)
    if watched:
        first = logits.float().softmax(-1)[:, list(watched)].tolist()
        for answer, chances in zip(answers, first, strict=True):
            answer.first = chances
    return _parted(running, owner, end, max_new_tokens)


def _mask(reader: torch.Tensor, owner: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to the attention (R, 1, T, K + T): 0 where a token looks, else the lowest number.

    All look at the prefix, padding too, since a mean over nothing would not be a number.
    """
    earlier = owner.new_ones(reader.shape[1], owner.shape[1], dtype=torch.bool).tril(owner.shape[1] - reader.shape[1])
    seen = (owner[:, None] == _ALL) | ((owner[:, None] == reader[..., None]) & earlier)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _parted(
    running: _Running, owner: torch.Tensor, end: int, max_new_tokens: int
) -> tuple[_Running | None, list[Finished]]:
    """Parts the answers that have ended from those that go on, whose last tokens then wait to be read."""
    finished: list[Finished] = []
    for answers in running.answers:
        for answer in list(answers):
            if answer.tokens[-1] == end or len(answer.tokens) >= max_new_tokens:
                answers.remove(answer)
                finished.append(answer)
                answer.tokens = answer.tokens[: -1 if answer.tokens[-1] == end else None]
    kept = [row for row, answers in enumerate(running.answers) if answers]
    if not kept:
        return None, finished
    device, prefix = owner.device, running.prefix
    if len(kept) < len(running.answers):
        running.cache.batch_select_indices(torch.tensor(kept, device=device))
        owner = owner[kept]
    left = [running.answers[row] for row in kept]
    written = [[len(answer.asked.tokens) + len(answer.tokens) - 1 for answer in row] for row in left]
    return _Running(
        prefix=prefix,
        answers=left,
        cache=running.cache,
        owner=owner,
        tokens=_filled([[answer.tokens[-1] for answer in row] for row in left], 0, device),
        reader=_filled([[answer.slot for answer in row] for row in left], _NONE, device),
        position=_filled([[prefix + place for place in row] for row in written], prefix, device),
        ends=[list(range(len(row))) for row in left],
    ), finished


@torch.inference_mode()
def _joined(one: _Running, other: _Running) -> _Running:
    """Makes one batch of two, and drops the keys that no token will look at again."""
    parts = (one, other)
    keys, tokens = (max(getattr(part, name).shape[1] for part in parts) for name in ("owner", "tokens"))

    def side(name: str, value: int) -> torch.Tensor:
        """Returns one attribute of both, filled up at the right."""
        return torch.cat([pad(kept, (0, tokens - kept.shape[1]), value=value) for kept in map(attrgetter(name), parts)])

    owner = torch.cat([pad(part.owner, (keys - part.owner.shape[1], 0), value=_NONE) for part in parts])
    reader = side("reader", _NONE)
    needed = (owner == _ALL) | ((owner != _NONE) & (owner[..., None] == reader[:, None]).any(-1))
    columns = needed.any(0).nonzero()[:, 0]
    layers = [
        tuple(
            torch.cat([pad(kept, (0, 0, keys - kept.shape[2], 0)) for kept in both])[:, :, columns]
            for both in ((mine.keys, theirs.keys), (mine.values, theirs.values))
        )
        for mine, theirs in zip(one.cache.layers, other.cache.layers, strict=True)
    ]
    return _Running(
        prefix=one.prefix,
        answers=one.answers + other.answers,
        cache=DynamicCache(layers),
        owner=owner[:, columns],
        tokens=side("tokens", 0),
        reader=reader,
        position=side("position", one.prefix),
        ends=one.ends + other.ends,
    )
