"""Answers many short questions about few images: every image is seen once.

The prompt of LLaVA-1.5 begins with system text and image, the same for all questions about an image. This part runs
once per image and stays as keys and values; the questions then run on copies of it, in batches of like length, padded
at the left. Greedy decoding until the end token. In float32 the answers are those of one-by-one generation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from llava_ohd import tower
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import IMAGE, IMAGE_TOKEN, encode_question
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.model import build, image_tokens
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.records import Answer, Question

__all__ = ["LlavaAnswerer", "load"]

_SEEN_TOGETHER = 32  # images per forward pass
_ASKED_TOGETHER = 64  # questions per forward pass, where memory allows
_CACHE_BYTES = 2**29  # for keys and values of images, and as much again for those of a batch; a GPU's share is larger


@dataclass(frozen=True)
class _Asked:
    """One distinct question: its image's place in the window, the tokens after the image, all ids that ask it."""

    image: int
    tokens: list[int]
    ids: list[str]


class LlavaAnswerer:
    """Answers questions with a LLaVA model in memory.

    Args:
        model: The model, eval mode.
        tokenizer: The language model's.
        pixels: Where images come from.
        patches: Tokens per image.
        batch_size: Questions per forward pass, at most; None chooses by memory.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        pixels: Pixels,
        patches: int,
        batch_size: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._pixels, self._patches = model, tokenizer, pixels, patches
        self._batch_size = batch_size
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
        by_image: dict[str, dict[str, list[str]]] = {}
        for question in questions:
            by_image.setdefault(question.image, {}).setdefault(question.prompt, []).append(question.id)
        prefix = self._split("")[0]
        window = max(1, self._room // (len(prefix) * self._bytes_per_token))
        images = list(by_image)
        for start in range(0, len(images), window):
            names = images[start : start + window]
            seen = self._see(names, prefix)
            asked = [
                _Asked(place, self._split(prompt)[1], ids)
                for place, name in enumerate(names)
                for prompt, ids in by_image[name].items()
            ]
            yield from self._answer_all(asked, seen, len(prefix), max_new_tokens)

    def _split(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the tokens up to the end of the image, and those after it."""
        tokens = encode_question(f"{IMAGE}\n{prompt}", self._tokenizer, self._patches)
        end = len(tokens) - tokens[::-1].index(IMAGE_TOKEN)
        return tokens[:end], tokens[end:]

    @torch.inference_mode()
    def _see(self, names: list[str], prefix: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns keys and values (images, heads, prefix, width) of each layer."""
        parts = []
        for start in range(0, len(names), _SEEN_TOGETHER):
            pixels = torch.stack([self._pixels(name) for name in names[start : start + _SEEN_TOGETHER]])
            cache: Any = DynamicCache()
            self._model(
                input_ids=torch.tensor([prefix] * len(pixels), device=self._model.device),
                pixel_values=pixels.to(self._model.device, self._model.dtype),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            parts.append([(layer.keys, layer.values) for layer in cache.layers])
        return [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in zip(*parts, strict=True)
        ]

    def _answer_all(
        self, asked: list[_Asked], seen: list[tuple[torch.Tensor, torch.Tensor]], prefix: int, max_new_tokens: int
    ) -> Iterator[Answer]:
        asked = sorted(asked, key=lambda one: len(one.tokens))
        longest = prefix + (len(asked[-1].tokens) if asked else 0) + max_new_tokens
        fits = max(1, self._room // (longest * self._bytes_per_token))
        size = min(self._batch_size or _ASKED_TOGETHER, fits)
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            for one, tokens in zip(batch, self._decode(batch, seen, prefix, max_new_tokens), strict=True):
                text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
                yield from (Answer(question_id, text) for question_id in one.ids)

    @torch.inference_mode()
    def _decode(
        self,
        batch: list[_Asked],
        seen: list[tuple[torch.Tensor, torch.Tensor]],
        prefix: int,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Returns the new tokens of each question, without the end token."""
        device = self._model.device
        rows = torch.tensor([one.image for one in batch], device=device)
        cache = DynamicCache([(keys[rows], values[rows]) for keys, values in seen])
        width = max(len(one.tokens) for one in batch)
        tokens = torch.tensor([[0] * (width - len(one.tokens)) + one.tokens for one in batch], device=device)
        shown = torch.tensor([[0] * (width - len(o.tokens)) + [1] * len(o.tokens) for o in batch], device=device)
        positions = prefix + (shown.cumsum(1) - 1).clamp(min=0)
        shown = torch.cat([shown.new_ones(len(batch), prefix), shown], 1)
        new: list[list[int]] = [[] for _ in batch]
        going = torch.arange(len(batch), device=device)  # rows of the batch that are still unfinished
        for _ in range(max_new_tokens):
            logits = self._model(
                input_ids=tokens,
                attention_mask=shown,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = logits.argmax(-1)
            unfinished = chosen != self._tokenizer.eos_token_id
            for row, token in zip(going[unfinished].tolist(), chosen[unfinished].tolist(), strict=True):
                new[row].append(token)
            kept = unfinished.nonzero()[:, 0]
            if len(kept) == 0:
                break
            if len(kept) < len(going):
                cache.batch_select_indices(kept)
                going, chosen, shown, positions = going[kept], chosen[kept], shown[kept], positions[kept]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            shown = torch.cat([shown, shown.new_ones(len(kept), 1)], 1)
        return new


def load(
    folder: model_dir.ModelDir, images: Path, *, batch_size: int | None = None
) -> tuple[LlavaAnswerer, tower.Encoder]:
    """Loads a model folder: base language model, encoder, projector, and the adapter merged into the weights.

    On a GPU in float16 as LLaVA evaluates; on a CPU in float32.

    Args:
        folder: What `model_dir.read` returns.
        images: Folder that image names are relative to.
        batch_size: Questions per forward pass, at most.

    Returns:
        The answerer, and the encoder inside.

    Raises:
        ModelFormatError: the base language model is another than in training, or a file does not fit.
        EncoderFormatError, EncoderNotFound: the encoder is another than in training, or gone.
    """
    encoder = model_dir.encoder_of(folder)
    base = model_dir.base_of(folder)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model: Any = build(base, encoder, feature_layer=folder.config["mm_vision_select_layer"])
    model_dir.load_trained(model, folder)
    model.to(device=device, dtype=dtype)
    pad = folder.config["image_aspect_ratio"] == "pad"
    pixels = Pixels(images, tower.load_processor(encoder.path), pad, count=None)
    return LlavaAnswerer(model, load_tokenizer(base), pixels, image_tokens(encoder), batch_size), encoder
