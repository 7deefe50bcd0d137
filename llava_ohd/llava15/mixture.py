"""Rows as long as LLaVA-1.5's, for measuring: random tokens in the pattern of its training data.

How many rows each source has is from the paper. Their lengths are not in it: those are rounded from what the sources
are (one-word answers about one image, boxes, long chats cut at 2,048 tokens), so that a measurement needs no download.
`benchmarks/llava_train.py --data` takes a real training json instead.

Source: arXiv 2310.03744 table 7 and section A; system prompt, roles and patches as in conversation.py.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.dataset import read_rows

__all__ = ["Row", "draw", "read"]

_SYSTEM, _ROLES, _LONGEST = 36, 9, 2048
_WORD = range(3, 259)  # token ids that every vocabulary here has
Row = tuple[list[int], list[int]]
"""Token ids, `IMAGE_TOKEN` for each patch, and labels."""


class _Source(NamedTuple):
    """Thousand rows, whether they have an image, and (least, most) of turns, tokens asked and tokens answered."""

    rows: int
    image: bool
    turns: tuple[int, int]
    asked: tuple[int, int]
    answered: tuple[int, int]


_CAPTIONS = [_Source(558, True, (1, 1), (0, 0), (8, 26))]
_INSTRUCTIONS = [
    _Source(58, True, (3, 5), (8, 16), (15, 80)),  # LLaVA conversation
    _Source(23, True, (1, 1), (8, 16), (90, 200)),  # LLaVA detail
    _Source(77, True, (1, 1), (12, 30), (100, 220)),  # LLaVA complex reasoning
    _Source(40, False, (1, 8), (10, 120), (60, 450)),  # ShareGPT
    _Source(83, True, (3, 10), (7, 22), (1, 3)),  # VQAv2
    _Source(72, True, (5, 18), (8, 24), (1, 3)),  # GQA
    _Source(9, True, (1, 1), (20, 26), (1, 3)),  # OKVQA
    _Source(80, True, (3, 7), (9, 24), (2, 14)),  # OCRVQA
    _Source(66, True, (1, 1), (45, 70), (1, 2)),  # A-OKVQA
    _Source(22, True, (1, 1), (35, 120), (10, 22)),  # TextCaps
    _Source(48, True, (2, 10), (12, 36), (4, 26)),  # RefCOCO
    _Source(86, True, (4, 10), (12, 36), (4, 26)),  # VG
]


def draw(stage: str, count: int, image_tokens: int, seed: int = 0) -> list[Row]:
    """Draws rows in the proportions of the sources.

    Args:
        stage: `projector` (captions) or `lora` (instructions).
        count: Rows.
        image_tokens: Patches of an image.
        seed: The same seed gives the same rows.
    """
    chance = random.Random(seed)
    sources = _CAPTIONS if stage == "projector" else _INSTRUCTIONS
    chosen = chance.choices(sources, [source.rows for source in sources], k=count)
    return [_row(source, stage == "projector", image_tokens, chance) for source in chosen]


def _row(source: _Source, plain: bool, image_tokens: int, chance: random.Random) -> Row:
    ids, labels = [1], [IGNORE]

    def say(count: int, trained: bool) -> None:
        words = [chance.choice(_WORD) for _ in range(count)]
        ids.extend(words)
        labels.extend(words if trained else [IGNORE] * count)

    say(0 if plain else _SYSTEM, False)
    for turn in range(chance.randint(*source.turns)):
        if turn == 0 and source.image:
            ids.extend([IMAGE_TOKEN] * image_tokens)
            labels.extend([IGNORE] * image_tokens)
        say(chance.randint(*source.asked) + (0 if plain else _ROLES), False)
        say(chance.randint(*source.answered) + 1, True)
    return ids[:_LONGEST], labels[:_LONGEST]


def read(path: Path, stage: str, count: int, tokenizer: Any, image_tokens: int, seed: int = 0) -> list[Row]:
    """Draws rows from a real training json.

    Args:
        path: In LLaVA's format.
        stage: `projector` (template plain) or `lora` (v1).
        count: Rows; as many as there are if there are fewer.
        tokenizer: The language model's.
        image_tokens: Patches of an image.
        seed: The same seed gives the same rows.

    Raises:
        DataFormatError: as `read_rows`.
    """
    template = "plain" if stage == "projector" else "v1"
    rows = read_rows(path, template)
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    pairs = [encode(template, rows[number]["turns"], tokenizer, image_tokens) for number in chosen]
    return [(ids[:_LONGEST], labels[:_LONGEST]) for ids, labels in pairs]
