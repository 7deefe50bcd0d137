"""LLaVA's training json as batches of tokens and pixels.

    [{"id": "000001", "image": "train/000001.png", "conversations": [{"from": "human", "value": "<image>\\nA ball?"},
                                                                     {"from": "gpt", "value": "Yes"}, ...]}, ...]

Formats: rows.py. The whole file is checked before the first step, and every error names the row (counted from 1). Rows
lie in a table on disk and are tokenised when a batch asks for them. Pixels of a small set stay in memory.

Source: haotian-liu/LLaVA train/train.py `LazySupervisedDataset`, `preprocess_multimodal` @ c121f04.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.files import sha256_file
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.image_source import image_source
from llava_ohd.llava15.row_files import records, table

__all__ = ["Batches", "Pixels", "TrainingRows", "distinct_images", "read_rows"]

_SMALL = 2**29  # bytes of pixels that a process keeps: 10,000 images of 64 pixels, 400 of 336
_TEMPLATE = 64  # tokens that a template adds to the first question, at most: 46 of v1
_FEW = 20_000  # rows up to which it is worth counting the images


def read_rows(path: Path, template: str, left_out: Collection[int] = ()) -> Any:
    """Reads and checks a training file.

    Args:
        path: A .json or .jsonl file.
        template: `plain` or `v1`.
        left_out: Numbers of rows that are not to be trained.

    Returns:
        A `datasets.Dataset` on disk with the columns `number` (from 1), `id`, `images` (file names), `turns` (pairs of
        what the human says and what the assistant answers; `<image>` at the beginning of a turn that had one, as LLaVA
        moves it), `words` (the length as LLaVA counts it, negative for rows of text only) and `before` (bytes of the
        first question).

    Raises:
        DataFormatError: missing, empty, not JSON, or a row with a fault; the message names the row.
    """
    for _ in records(path):  # a missing or empty file has no digest worth speaking of
        break
    return table(path, template, sha256_file(path), left_out)


def distinct_images(rows: Any) -> int | None:
    """Returns the number of distinct images; None where they are too many to be kept in memory anyway."""
    return len(set(chain.from_iterable(rows["images"]))) if len(rows) <= _FEW else None


class Pixels:
    """Preprocessed images, read once each where the set is small.

    Args:
        folder: Image names are relative to it; also a zip or tar file (image_source.py).
        processor: CLIP image processor of the encoder.
        pad: Pad to a square with the mean colour first (`--image_aspect_ratio pad`); else the centre is cropped.
        count: Number of distinct images, to decide whether they are kept in memory; None keeps none.
    """

    def __init__(self, folder: Path, processor: Any, pad: bool, count: int | None) -> None:
        self.folder, self.source, self._processor = folder, image_source(folder), processor
        self._background = tower.mean_color(processor) if pad else None
        self.size = int(processor.crop_size["height"])
        small = count is not None and count * 12 * self.size**2 <= _SMALL
        self._kept: dict[str, torch.Tensor] | None = {} if small else None

    def __call__(self, name: str) -> torch.Tensor:
        """Returns the pixels (3, H, W), float32, normalised.

        Raises:
            ImageError: missing, truncated, or no image.
        """
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        image = tower.open_image(self.source.path / name, BytesIO(self.source.read(name)))
        if self._background is not None:
            image = tower.pad_to_square(image, self._background)
        pixels = self._processor(image, return_tensors="pt")["pixel_values"][0]
        if self._kept is not None:
            self._kept[name] = pixels
        return pixels


@dataclass(frozen=True)
class TrainingRows:
    """Turns checked rows into examples; what `datasets` calls to map a batch of them.

    Attributes:
        template: `plain` or `v1`.
        tokenizer: The language model's.
        pixels: Where images come from.
        image_tokens: Patches per image.
        longest: Tokens at which a row is cut, image tokens counted.
    """

    template: str
    tokenizer: Any
    pixels: Pixels
    image_tokens: int
    longest: int

    def dataset(self, rows: Any) -> Any:
        """Returns a `datasets.Dataset` that yields examples.

        Image files that are missing, and rows that are too long to train at all, are found here, before training.

        Args:
            rows: What `read_rows` returns.

        Raises:
            ImageError: image files do not exist; the message names the first row, and how many there are.
            DataFormatError: of a row nothing is left to train where it is cut, or it is cut through an image.
        """

        @lru_cache(2**16)
        def exists(name: str) -> bool:
            return name in self.pixels.source

        place, missing = 0, list[str]()
        for batch in rows.select_columns(["number", "images", "before"]).iter(1000):
            for number, images, before in zip(batch["number"], batch["images"], batch["before"], strict=True):
                missing += [f"row {number}: image {self.pixels.source.path / n}" for n in images if not exists(n)]
                if len(images) > 1 or before + len(images) * self.image_tokens + _TEMPLATE > self.longest:
                    self._trained_tokens(number, rows[place]["turns"])
                place += 1
        if missing:
            raise ImageError(
                f"{missing[0]} does not exist" + (f", nor do {len(missing) - 1:,} others" if missing[1:] else "") + "; "
                "check --image_folder, let python -m llava_ohd.llava15.doctor look at all, or give --data_policy skip"
            )
        return rows.with_transform(self)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Maps columns `number, images, turns` to `number, input_ids, labels, pixel_values`.

        `pixel_values` is (N, 3, H, W) for the N images of a row, None where it has none.
        """
        examples = [self._example(*row) for row in zip(batch["number"], batch["images"], batch["turns"], strict=True)]
        return {key: [example[key] for example in examples] for key in examples[0]}

    def tokens(self, number: int, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Returns token ids and labels of a row, cut at `longest`.

        Raises:
            DataFormatError: the row cannot be tokenised, or is cut in the middle of an image.
        """
        try:
            ids, labels = encode(self.template, turns, self.tokenizer, self.image_tokens)
        except DataFormatError as error:
            raise DataFormatError(f"row {number}: {error}") from None
        if IMAGE_TOKEN in ids[self.longest :]:
            raise DataFormatError(f"row {number}: --model_max_length {self.longest} cuts through the image; raise it")
        return ids[: self.longest], labels[: self.longest]

    def _trained_tokens(self, number: int, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        ids, labels = self.tokens(number, turns)
        if all(label == IGNORE for label in labels):
            raise DataFormatError(
                f"row {number}: --model_max_length {self.longest} cuts it before its first answer, so that nothing "
                "of it would train; raise it, or give --data_policy skip"
            )
        return ids, labels

    def _example(self, number: int, images: list[str], turns: list[tuple[str, str]]) -> dict[str, Any]:
        ids, labels = self._trained_tokens(number, turns)
        try:
            pixels = torch.stack([torch.as_tensor(self.pixels(name)) for name in images]) if images else None
        except ImageError as error:
            raise ImageError(f"row {number}: {error}") from None
        return {"number": number, "input_ids": ids, "labels": labels, "pixel_values": pixels}


@dataclass(frozen=True)
class Batches:
    """Pads examples at the right to a batch.

    A batch without any image gets a black one behind its first row, hidden from attention and loss: every rank then
    runs tower and projector in every step, without which ranks wait for each other for ever (ZeRO-3) or count gradients
    that are not there.

    Attributes:
        image_tokens: Patches per image.
        image_size: Side of the pixels.
    """

    image_tokens: int
    image_size: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns `input_ids`, `labels`, `attention_mask` (B, L), `pixel_values` (images, 3, H, W), `numbers` (B)."""
        rows = [(example["input_ids"], example["labels"], len(example["input_ids"])) for example in examples]
        found = [
            torch.as_tensor(example["pixel_values"]) for example in examples if example["pixel_values"] is not None
        ]
        pixels = [images.reshape(-1, *images.shape[-3:]) for images in found]  # one image may come as (3, H, W)
        if not pixels:
            pixels = [torch.zeros(1, 3, self.image_size, self.image_size)]
            ids, labels, seen = rows[0]
            hidden = [IMAGE_TOKEN] * self.image_tokens
            rows[0] = (ids + hidden, labels + [IGNORE] * len(hidden), seen)
        longest = max(len(ids) for ids, _, _ in rows)
        return {
            "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in rows]),
            "labels": torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels, _ in rows]),
            "attention_mask": torch.tensor([[1] * seen + [0] * (longest - seen) for _, _, seen in rows]),
            "pixel_values": torch.cat(pixels),
            "numbers": [example["number"] for example in examples],
        }
