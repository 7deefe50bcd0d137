"""LLaVA's training json as batches of tokens and pixels.

    [{"id": "000001", "image": "train/000001.png", "conversations": [{"from": "human", "value": "<image>\\nA ball?"},
                                                                     {"from": "gpt", "value": "Yes"}, ...]}, ...]

A row without "image" is text only.
The whole file is checked before the first step, and every error names the row (counted from 1). Rows are tokenised when
a batch asks for them. Pixels of a small set stay in memory, each image once.

Source: haotian-liu/LLaVA train/train.py `LazySupervisedDataset`, `preprocess_multimodal` @ c121f04.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.files import read_jsonl
from llava_ohd.llava15.conversation import IGNORE, IMAGE, IMAGE_TOKEN, encode

__all__ = ["Batches", "Pixels", "TrainingRows", "read_rows"]

_SMALL = 2**29  # bytes of pixels that a process keeps: 10,000 images of 64 pixels, 400 of 336


def read_rows(path: Path, template: str) -> list[dict[str, Any]]:
    """Reads and checks a training json.

    Returns:
        Per row `number` (from 1), `image` (file name or None), and `turns`: pairs of what the human says and what the
        assistant answers. `<image>` stands at the beginning of the turn that had it, as LLaVA moves it.

    Raises:
        DataFormatError: missing, empty, not JSON, or a row that is not as described above; the message names the row.
    """
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path} row {number}"
        image, turns = _image(row, where), _turns(row, where)
        marks = [human.count(IMAGE) for human, _ in turns]
        if any(IMAGE in answer for _, answer in turns) or sum(marks) != (image is not None):
            raise DataFormatError(
                f"{where} has {sum(marks)} {IMAGE} in what the human says and "
                f"{'an image' if image else 'no image'}; a row with an image needs exactly one, and answers none"
            )
        if template == "plain" and (image is None or len(turns) != 1):
            raise DataFormatError(f"{where}: template plain takes an image and one caption; else use --version v1")
        rows.append({"number": number, "image": image, "turns": [[_image_first(h), a] for h, a in turns]})
    return rows


def _image(row: dict[str, Any], where: str) -> str | None:
    image = row.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is not None and not (isinstance(image, str) and image):
        raise DataFormatError(f"{where}: image is {image!r}; one file name is expected, or no image at all")
    return image


def _turns(row: dict[str, Any], where: str) -> list[tuple[str, str]]:
    said = row.get("conversations")
    if not isinstance(said, list) or not all(isinstance(part, dict) for part in said):
        raise DataFormatError(f"{where} has no list 'conversations' of {{from, value}}; its keys are {sorted(row)}")
    speakers = [part.get("from") for part in said]
    if speakers[:1] == ["gpt"]:  # LLaVA skips an opening that is not from the human
        said, speakers = said[1:], speakers[1:]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise DataFormatError(f"{where}: 'from' reads {speakers}; human and gpt in turn are expected")
    values = [part.get("value") for part in said]
    if not all(isinstance(value, str) for value in values) or not all(values[1::2]):
        raise DataFormatError(f"{where}: every 'value' must be text, and an answer must not be empty")
    return list(zip(values[::2], values[1::2], strict=True))


def _image_first(human: str) -> str:
    return f"{IMAGE}\n{human.replace(IMAGE, '').strip()}".strip() if IMAGE in human else human


class Pixels:
    """Preprocessed images, read once each where the set is small.

    Args:
        folder: Image names are relative to it.
        processor: CLIP image processor of the encoder.
        pad: Pad to a square with the mean colour first (`--image_aspect_ratio pad`); else the centre is cropped.
        count: Number of distinct images, to decide whether they are kept in memory; None keeps none.
    """

    def __init__(self, folder: Path, processor: Any, pad: bool, count: int | None) -> None:
        self.folder, self._processor = folder, processor
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
        image = tower.open_image(self.folder / name)
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

    def dataset(self, rows: list[dict[str, Any]]) -> Any:
        """Returns a `datasets.Dataset` that yields examples; missing image files are found here, before training.

        Raises:
            ImageError: an image file does not exist; the message names the first row.
        """
        import datasets

        seen: set[str | None] = {None}
        for row in rows:
            if row["image"] not in seen and not (self.pixels.folder / row["image"]).is_file():
                file = self.pixels.folder / row["image"]
                raise ImageError(f"row {row['number']}: image {file} does not exist; check --image_folder")
            seen.add(row["image"])
        return datasets.Dataset.from_list(rows).with_transform(self)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Maps columns `number, image, turns` to `number, input_ids, labels, pixel_values`."""
        examples = [self._example(*row) for row in zip(batch["number"], batch["image"], batch["turns"], strict=True)]
        return {key: [example[key] for example in examples] for key in examples[0]}

    def _example(self, number: int, image: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
        try:
            ids, labels = encode(self.template, turns, self.tokenizer, self.image_tokens)
            pixels = None if image is None else self.pixels(image)
        except ImageError as error:
            raise ImageError(f"row {number}: {error}") from None
        except DataFormatError as error:
            raise DataFormatError(f"row {number}: {error}") from None
        if IMAGE_TOKEN in ids[self.longest :]:
            raise DataFormatError(f"row {number}: --model_max_length {self.longest} cuts through the image; raise it")
        ids, labels = ids[: self.longest], labels[: self.longest]
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
        pixels = [example["pixel_values"] for example in examples if example["pixel_values"] is not None]
        if not pixels:
            pixels = [torch.zeros(3, self.image_size, self.image_size)]
            ids, labels, seen = rows[0]
            hidden = [IMAGE_TOKEN] * self.image_tokens
            rows[0] = (ids + hidden, labels + [IGNORE] * len(hidden), seen)
        longest = max(len(ids) for ids, _, _ in rows)
        return {
            "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in rows]),
            "labels": torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels, _ in rows]),
            "attention_mask": torch.tensor([[1] * seen + [0] * (longest - seen) for _, _, seen in rows]),
            "pixel_values": torch.stack([p if isinstance(p, torch.Tensor) else torch.tensor(p) for p in pixels]),
            "numbers": [example["number"] for example in examples],
        }
