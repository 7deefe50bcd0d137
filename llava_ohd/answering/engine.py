"""Answers many short questions about few images: every image is seen once.

The prompt of LLaVA-1.5 begins with system text and image, the same for all questions about an image. This part runs
once per image and stays as keys and values; the questions of an image then run side by side on it, those of several
images in a batch that is filled again as answers end (decoding.py). In float32 the answers are those of one-by-one
generation.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from llava_ohd import tower
from llava_ohd.answering.decoding import Asked, Layers, Row, decode
from llava_ohd.answering.one_by_one import plain_answers
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import IGNORE, IMAGE, IMAGE_TOKEN, encode, encode_question
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.model import build, image_tokens
from llava_ohd.llava15.quantization import Quantization, quantize
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.records import Answer, Question

__all__ = ["LlavaAnswerer", "load", "precision"]

_SEEN_TOGETHER = 32  # images per forward pass
_ASKED_TOGETHER = 64  # questions per forward pass
_ASKED_OF_ONE = 32  # questions in a row of the batch: each token is compared with those of all of them
_CACHE_BYTES = 2**29  # for keys and values of images, and as much again for those of a batch; a GPU's share is larger


class LlavaAnswerer:
    """Answers questions with a LLaVA model in memory.

    Args:
        model: The model, eval mode.
        tokenizer: The language model's.
        pixels: Where images come from.
        patches: Tokens per image.
        batch_size: Questions per forward pass, at most (default: 64); memory decides how many images that is.
        probabilities: Give with each answer the probabilities of yes and no at its first token, as `Answer.metadata`
            `{"yes": fraction, "no": fraction}`: of all words of the vocabulary, with and without a capital.

    Attributes:
        dtype: Of the model's weights.

    Raises:
        ModelFormatError: `probabilities`, and the tokenizer begins yes and no with the same token.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        pixels: Pixels,
        patches: int,
        batch_size: int | None = None,
        probabilities: bool = False,
    ) -> None:
        self._model, self._tokenizer, self._pixels, self._patches = model, tokenizer, pixels, patches
        self._batch_size = batch_size
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._words = _first_tokens(tokenizer) if probabilities else {}
        text: Any = model.config.text_config
        width = text.num_key_value_heads * (text.head_dim or text.hidden_size // text.num_attention_heads)
        self._bytes_per_token = 2 * text.num_hidden_layers * width * next(model.parameters()).element_size()
        self._room = _CACHE_BYTES
        if model.device.type == "cuda":
            self._room = torch.cuda.mem_get_info(model.device)[0] // 3

    def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
        """Yields one answer per question, questions with the same image and prompt answered once, in any order.

        Args:
            questions: With distinct ids; `prompt` without image token and template.
            max_new_tokens: Tokens at which an answer is cut.

        Raises:
            ImageError: an image is missing or truncated.
        """
        size = self._batch_size or _ASKED_TOGETHER
        by_image = self._grouped(questions, min(size, _ASKED_OF_ONE))
        prefix = self._split("")[0]
        widest = max((_width(group, max_new_tokens) for groups in by_image.values() for group in groups), default=0)
        most_rows = max(1, self._room // ((len(prefix) + widest) * self._bytes_per_token))
        words = tuple(token for tokens in self._words.values() for token in tokens)
        settings = {"size": size, "most_rows": most_rows, "max_new_tokens": max_new_tokens, "watched": words}
        end = self._tokenizer.eos_token_id
        for found in decode(self._model, self._rows(by_image, prefix), end=end, **settings):
            text = self._tokenizer.decode(found.tokens, skip_special_tokens=True).strip()
            first = dict(zip(words, found.first, strict=True))
            scores = {word: sum(first[token] for token in tokens) for word, tokens in self._words.items()}
            yield from (Answer(question_id, text, metadata=scores) for question_id in found.asked.ids)

    def one_by_one(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[Answer]:
        """Yields the answers that transformers' `generate` gives to each question alone, to compare with."""
        yield from plain_answers(self._model, self._tokenizer, self._pixels, self._patches, questions, max_new_tokens)

    def _grouped(self, questions: Iterable[Question], of_one: int) -> dict[str, list[list[Asked]]]:
        """Returns the distinct questions about each image, in groups of at most `of_one`."""
        by_image: dict[str, dict[str, list[str]]] = {}
        for question in questions:
            by_image.setdefault(question.image, {}).setdefault(question.prompt, []).append(question.id)
        grouped = {}
        for image, prompts in by_image.items():
            asked = [Asked(ids, self._split(prompt)[1]) for prompt, ids in prompts.items()]
            grouped[image] = [asked[start : start + of_one] for start in range(0, len(asked), of_one)]
        return grouped

    def _rows(self, by_image: dict[str, list[list[Asked]]], prefix: list[int]) -> Iterator[Row]:
        """Sees some images and yields what is asked about each, shortest first; then the next ones."""
        window = max(1, min(_SEEN_TOGETHER, self._room // (len(prefix) * self._bytes_per_token)))
        images = list(by_image)
        for start in range(0, len(images), window):
            names = images[start : start + window]
            seen = self._see(names, prefix)
            rows = []
            for place, name in enumerate(names):
                kept = [(keys[place : place + 1], values[place : place + 1]) for keys, values in seen]
                rows += [Row(group, kept) for group in by_image[name]]
            yield from sorted(rows, key=lambda row: _width(row.asked))

    def _split(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the tokens up to the end of the image, and those after it."""
        tokens = encode_question(f"{IMAGE}\n{prompt}", self._tokenizer, self._patches)
        end = len(tokens) - tokens[::-1].index(IMAGE_TOKEN)
        return tokens[:end], tokens[end:]

    @torch.inference_mode()
    def _see(self, names: list[str], prefix: list[int]) -> Layers:
        """Returns keys and values (images, heads, prefix, width) of each layer."""
        pixels = torch.stack([self._pixels(name) for name in names])
        cache: Any = DynamicCache()
        self._model(
            input_ids=torch.tensor([prefix] * len(pixels), device=self._model.device),
            pixel_values=pixels.to(self._model.device, self._model.dtype),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]


def _width(asked: Sequence[Asked], max_new_tokens: int = 0) -> int:
    """Returns the tokens of questions, and of their answers at the longest."""
    return sum(len(one.tokens) + max_new_tokens for one in asked)


def _first_tokens(tokenizer: Any) -> dict[str, set[int]]:
    """Returns the tokens with which the answers yes and no begin."""
    found: dict[str, set[int]] = {"yes": set(), "no": set()}
    for word in ("yes", "Yes", "no", "No"):
        ids, labels = encode("v1", [("?", word)], tokenizer)
        found[word.lower()].add(ids[next(place for place, label in enumerate(labels) if label != IGNORE)])
    if both := found["yes"] & found["no"]:
        raise ModelFormatError(
            f"this tokenizer begins yes and no with the same token {both}; ask without their probabilities"
        )
    return found


def precision() -> torch.dtype:
    """Returns the type that models answer in: float16 on a GPU, as LLaVA evaluates, float32 on a CPU."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def load(
    folder: model_dir.ModelDir,
    images: Path,
    *,
    batch_size: int | None = None,
    probabilities: bool = False,
    bits: int = 16,
) -> tuple[LlavaAnswerer, tower.Encoder]:
    """Loads a model folder: base language model, encoder, projector, and the adapter merged into the weights.

    In the type of `precision`.

    Args:
        folder: What `model_dir.read` returns.
        images: Folder that image names are relative to.
        batch_size: Questions per forward pass, at most.
        probabilities: As for `LlavaAnswerer`.
        bits: 8 or 4 quantise the language model's layers, with the adapter in them; tower, projector, head stay.

    Returns:
        The answerer, and the encoder inside.

    Raises:
        ModelFormatError: the base language model is another than in training, or a file does not fit.
        EncoderFormatError, EncoderNotFound: the encoder is another than in training, or gone.
        MissingDependency: `bits`, and bitsandbytes is not installed.
    """
    encoder = model_dir.encoder_of(folder)
    base = model_dir.base_of(folder)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model: Any = build(base, encoder, feature_layer=folder.config["mm_vision_select_layer"])
    model_dir.load_trained(model, folder)
    model.to(dtype=precision())
    if bits != 16:
        quantize(model, Quantization(bits))
    model.to(device)
    pad = folder.config["image_aspect_ratio"] == "pad"
    pixels = Pixels(images, tower.load_processor(encoder.path), pad, count=None)
    tokenizer = load_tokenizer(base)
    return LlavaAnswerer(model, tokenizer, pixels, image_tokens(encoder), batch_size, probabilities), encoder
