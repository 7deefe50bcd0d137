"""Batches of OHD-Caps rows for fine-tuning: every caption tokenised once, every duplicate in a batch encoded once."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_ohd.clip.captions import Captions, Tokens, share_beginnings, tokenise
from llava_ohd.clip.embedding import Images
from llava_ohd.ohd_caps.records import OhdRow

__all__ = ["OhdData", "image_names"]


def image_names(rows: Sequence[OhdRow]) -> list[str]:
    """Returns the different image names in the order of their first row."""
    return list(dict.fromkeys(row.image for row in rows))


class OhdData(torch.utils.data.Dataset[int]):
    """Rows of OHD-Caps; an item is its own index, `collate` makes a batch of several.

    A negative with the same tokens as its caption (the released files have some) contradicts it and is masked.

    Args:
        rows: The rows; they may have different numbers of negatives.
        images: The images of the rows, in `image_names(rows)` order.
        tokenizer: Tokenizer of the encoder.
        negatives: How many of a row's negatives take part in a batch, drawn anew for every batch; None: all.
        seed: Of that draw, which depends on nothing else but the batch: a resumed run draws the same.
    """

    def __init__(
        self, rows: Sequence[OhdRow], images: Images, tokenizer: Any, negatives: int | None = None, seed: int = 0
    ) -> None:
        self._negatives, self._seed = negatives, seed
        self._images = images
        place = {name: index for index, name in enumerate(image_names(rows))}
        self._image = [place[row.image] for row in rows]
        tokens = iter(tokenise(tokenizer, [caption for row in rows for caption in row.captions]))
        self._captions = [[next(tokens) for _ in row.captions] for row in rows]

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> int:
        return index

    def _drawn(self, items: Sequence[int]) -> list[list[Tokens]]:
        rows = [self._captions[item] for item in items]
        if self._negatives is None:
            return rows
        rng = random.Random(f"{self._seed} {list(items)}")
        return [[own, *rng.sample(others, min(self._negatives, len(others)))] for own, *others in rows]

    def collate(self, items: Sequence[int]) -> dict[str, Tensor | Captions]:
        """Makes a batch of B rows.

        Returns:
            pixel_values: float32 (B, 3, S, S).
            captions: The U different captions of the batch, as a tree of shared beginnings.
            caption: int64 (B,), which of the U is the right caption.
            negative: int64 (B, K), which of the U is each negative caption; 0 in slots that are not valid.
            valid: bool (B, K), K being the largest number of negatives in the batch.
        """
        rows = self._drawn(items)
        place: dict[Tokens, int] = {}
        for row in rows:
            for tokens in row:
                place.setdefault(tokens, len(place))
        slots = max(len(row) for row in rows) - 1
        negative = torch.zeros(len(rows), slots, dtype=torch.long)
        valid = torch.zeros(len(rows), slots, dtype=torch.bool)
        for i, (own, *others) in enumerate(rows):
            negative[i, : len(others)] = torch.tensor([place[tokens] for tokens in others], dtype=torch.long)
            valid[i, : len(others)] = torch.tensor([tokens != own for tokens in others])
        return {
            "pixel_values": self._images.pixels([self._image[item] for item in items]),
            "captions": share_beginnings(list(place)),
            "caption": torch.tensor([place[row[0]] for row in rows]),
            "negative": negative,
            "valid": valid,
        }
