"""Batches of OHD-Caps rows for fine-tuning: every caption tokenised once, every duplicate in a batch encoded once."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llava_ohd.clip.captions import Captions, Tokens, share_beginnings, tokenise
from llava_ohd.clip.embedding import Images
from llava_ohd.ohd_caps.records import OhdRow

__all__ = ["OhdData", "RowOrder", "image_names"]


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
        chunk_size: Cut the captions of a batch into chunks, as many as there are of so many images; None: one tree.
    """

    def __init__(
        self,
        rows: Sequence[OhdRow],
        images: Images,
        tokenizer: Any,
        negatives: int | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        self._negatives, self._seed, self._chunk_size = negatives, seed, chunk_size
        self._images = images
        place = {name: index for index, name in enumerate(image_names(rows))}
        self._image = [place[row.image] for row in rows]
        tokens = iter(tokenise(tokenizer, [caption for row in rows for caption in row.captions]))
        self._captions = [[next(tokens) for _ in row.captions] for row in rows]
        most = max((len(row.negatives) for row in rows), default=0)
        self._slots = most if negatives is None else min(negatives, most)

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

    def collate(self, items: Sequence[int]) -> dict[str, Tensor | Captions | list[Captions]]:
        """Makes a batch of B rows.

        Returns:
            pixel_values: float32 (B, 3, S, S).
            captions: The U different captions of the batch, as a tree of shared beginnings; one tree per chunk where
                they are cut into chunks, which keep captions with a common beginning together.
            caption: int64 (B,), which of the U is the right caption.
            negative: int64 (B, K), which of the U is each negative caption; 0 in slots that are not valid.
            valid: bool (B, K), K being the largest number of negatives in the data: a mean that counts empty slots
                (`LossConfig.mask`) would else depend on what else is in the batch.
        """
        rows = self._drawn(items)
        place: dict[Tokens, int] = {}
        for row in rows:
            for tokens in row:
                place.setdefault(tokens, len(place))
        if self._chunk_size is not None:
            place = {tokens: number for number, tokens in enumerate(sorted(place))}
        negative = torch.zeros(len(rows), self._slots, dtype=torch.long)
        valid = torch.zeros(len(rows), self._slots, dtype=torch.bool)
        for i, (own, *others) in enumerate(rows):
            negative[i, : len(others)] = torch.tensor([place[tokens] for tokens in others], dtype=torch.long)
            valid[i, : len(others)] = torch.tensor([tokens != own for tokens in others])
        return {
            "pixel_values": self._images.pixels([self._image[item] for item in items]),
            "captions": self._trees(list(place), len(rows)),
            "caption": torch.tensor([place[row[0]] for row in rows]),
            "negative": negative,
            "valid": valid,
        }

    def _trees(self, captions: list[Tokens], images: int) -> Captions | list[Captions]:
        if self._chunk_size is None:
            return share_beginnings(captions)
        size = -(-len(captions) // -(-images // self._chunk_size))
        return [share_beginnings(captions[first : first + size]) for first in range(0, len(captions), size)]


class RowOrder(torch.utils.data.Sampler[int]):
    """The order of the rows: every epoch another, fixed by seed and epoch, the same in all processes.

    Args:
        rows: Number of rows.
        seed: With the epoch it fixes the order, so that a resumed run sees the same.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed, self._epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from torch.randperm(self._rows, generator=random).tolist()
