"""Measures three ways to answer the same questions: the engine, one by one, and in plain padded batches.

`one by one` is the loop of LLaVA's model_vqa_loader: every question with its whole prompt, its image encoded again.
`padded` is the same in batches, padded at the left. LLaVA reads images in other processes, beside the model: what
these two take for reading is not counted; what ours takes is.
Random weights of a given geometry, random images. A random model never ends an answer, so its length is given: 2 tokens
are "Yes" and the end.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

from llava_ohd.answering.engine import LlavaAnswerer
from llava_ohd.answering.one_by_one import plain_answers
from llava_ohd.errors import StageFailed
from llava_ohd.llava15.conversation import IMAGE, IMAGE_TOKEN, encode_question
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.llava15.ways import GEOMETRIES, Geometry
from llava_ohd.records import Question
from llava_ohd.training.measuring import CPU_ATTENTION

__all__ = [
    "WAYS",
    "Cost",
    "Stage",
    "count_flops",
    "differing",
    "floor_flops",
    "spread",
    "timed_answers",
    "write_images",
]

WAYS = ("one by one", "padded", "ours")
_SPREAD = 0.06  # of the random weights: three times the usual, so that answers depend on image and question


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of processor time (all threads), and those on the clock spent on reading images."""

    wall: float
    cpu: float
    reading: float


class _TimedPixels:
    """Images, and how long reading them took."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels, self.seconds = pixels, 0.0

    def __call__(self, name: str) -> torch.Tensor:
        start = time.perf_counter()
        pixels = self._pixels(name)
        self.seconds += time.perf_counter() - start
        return pixels


class Stage:
    """Model, tokenizer and images.

    Args:
        geometry: A name in `GEOMETRIES`; the vocabulary is that of the tokenizer.
        tokenizer: Folder of a Llama tokenizer.
        images: Folder of the images.
        batch_size: Questions per forward pass, of ours and of the padded way.
        device: `cpu` or `cuda`.
        bf16: Weights in bfloat16.
    """

    def __init__(
        self, geometry: str, tokenizer: Path, images: Path, batch_size: int, device: str = "cpu", bf16: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.tokenizer = load_tokenizer(tokenizer)
        self.geometry: Geometry = replace(GEOMETRIES[geometry], words=len(self.tokenizer))
        config: Any = self.geometry.config()
        config.text_config.initializer_range = _SPREAD
        dtype = torch.bfloat16 if bf16 else torch.float32
        with torch.device(device):
            model: Any = LlavaForConditionalGeneration(config)
        self.model: Any = model.to(dtype).eval()
        self.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: (given[0].clamp(min=0),))
        size = self.geometry.image
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        self.pixels, self.batch_size = Pixels(images, processor, True, None), batch_size
        self.patches = self.geometry.image_tokens

    def answers(self, way: str, questions: Sequence[Question], length: int, pixels: Any = None) -> dict[str, str]:
        """Returns the answers of one way, by question id."""
        pixels = pixels or self.pixels
        if way == "ours":
            engine = LlavaAnswerer(self.model, self.tokenizer, pixels, self.patches, self.batch_size)
            return {answer.question_id: answer.text for answer in engine.answer(questions, length)}
        size = 1 if way == "one by one" else self.batch_size
        given = (self.model, self.tokenizer, pixels, self.patches, questions, length, size)
        return {answer.question_id: answer.text for answer in plain_answers(*given)}


def spread(questions: Sequence[Question], count: int | None) -> list[Question]:
    """Returns so many of the questions, at even distances; all where there are no more, or `count` is None."""
    if count is None or count >= len(questions):
        return list(questions)
    return [questions[place * len(questions) // count] for place in range(count)]


def timed_answers(stage: Stage, way: str, questions: Sequence[Question], length: int) -> tuple[Cost, dict[str, str]]:
    """Answers and says what it took; of the plain ways without reading images."""
    pixels = _TimedPixels(stage.pixels)
    wall, cpu = time.perf_counter(), time.process_time()
    answers = stage.answers(way, questions, length, pixels)
    taken, used = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(taken if way == "ours" else taken - pixels.seconds, used, pixels.seconds), answers


def differing(expected: dict[str, str], answers: dict[str, str], exact: bool = True) -> list[str]:
    """Returns the ids whose answers differ.

    Raises:
        StageFailed: there are any, and `exact` is set; or an id lacks its answer.
    """
    if expected.keys() != answers.keys():
        raise StageFailed(f"{len(expected)} questions, {len(answers)} answers; the ways do not answer the same")
    wrong = [name for name, text in expected.items() if answers[name] != text]
    if wrong and exact:
        first = wrong[0]
        raise StageFailed(
            f"{len(wrong)} of {len(expected)} answers differ in float32, first {first}: {expected[first]!r} one by "
            f"one, {answers[first]!r} otherwise; see answering/engine.py"
        )
    return wrong


def count_flops(stage: Stage, way: str, questions: Sequence[Question], length: int) -> float:
    """Counts the operations of one way. Attention counts as if it were whole."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        stage.answers(way, questions, length)
    return float(counter.get_total_flops())


def floor_flops(stage: Stage, questions: Sequence[Question], length: int) -> float:
    """Counts by hand what no exact way gets under with these layers.

    That is: of each image once the tower (to the layer that is read) and the prompt up to its end, of each distinct
    question the tokens after it and those of the answer but the last; causal attention, the head once for each token
    of an answer.
    """
    sizes, distinct = stage.geometry, {(question.image, question.prompt) for question in questions}
    images = len({image for image, _ in distinct})
    rows = [encode_question(f"{IMAGE}\n{prompt}", stage.tokenizer, stage.patches) for _, prompt in distinct]
    prefix = len(rows[0]) - rows[0][::-1].index(IMAGE_TOKEN)
    suffixes = [len(row) - prefix + length - 1 for row in rows]
    tokens = images * prefix + sum(suffixes)
    pairs = images * prefix**2 / 2 + sum(suffix * prefix + suffix**2 / 2 for suffix in suffixes)
    layer = tokens * (8 * sizes.width**2 + 6 * sizes.width * sizes.mlp) + 4 * sizes.width * pairs
    patches, seen, tower = images * stage.patches, images * (stage.patches + 1), sizes.tower
    total = sizes.layers * layer + len(rows) * length * 2 * sizes.width * sizes.words
    total += (sizes.tower_layers - 1) * seen * (24 * tower**2 + 4 * tower * (stage.patches + 1))
    return float(total + patches * (6 * tower * sizes.patch**2 + 2 * tower * sizes.width + 2 * sizes.width**2))


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Writes a random picture of 640 x 480 under each name, in blocks of 16 pixels, so that pictures differ widely."""
    random = torch.Generator().manual_seed(0)
    for name in names:
        blocks = torch.randint(0, 256, (30, 40, 3), generator=random, dtype=torch.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks.numpy()).resize((640, 480), Image.Resampling.NEAREST).save(path)
