"""Runs a model of either layout on images, and keeps everything that can be compared."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15.conversation import IMAGE, IMAGE_TOKEN, SYSTEM, encode_question
from llava_ohd.llava15.convert.images import for_hf
from llava_ohd.llava15.convert.parts import TIED, Parts
from llava_ohd.llava15.tokenizer import load_tokenizer

__all__ = ["Observed", "observe_hf", "observe_llava"]


@dataclass(frozen=True)
class Observed:
    """What a model makes of one image and one question; all in float32 on the CPU.

    Attributes:
        ids: The prompt; -200 for each token of the image.
        pixels: (3, H, W).
        features: (N, D), what the projector gets.
        projected: (N, D'), what the language model gets.
        logits: (T, V) for every token of the prompt, without the rows that only HF has.
        scores: (n, V) logits by which each new token was chosen.
        tokens: The n new ones, up to and with the end token.
    """

    ids: list[int]
    pixels: torch.Tensor
    features: torch.Tensor
    projected: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor
    tokens: list[int]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _observed(ids: list[int], tensors: Sequence[torch.Tensor], tokens: list[int]) -> Observed:
    pixels, features, projected, logits, scores = (tensor.float().cpu() for tensor in tensors)
    return Observed(ids, pixels, features, projected, logits, scores, tokens)


def _free(model: Any) -> None:
    model.to("meta")
    gc.collect()


@torch.inference_mode()
def observe_llava(parts: Parts, images: Sequence[Image.Image], question: str, new_tokens: int) -> list[Observed]:
    """Runs a model in LLaVA's layout by LLaVA's formula.

    Args:
        parts: The model; adapters are merged in float32, without rounding.
        images: RGB.
        question: Without template.
        new_tokens: Most tokens of an answer.
    """
    tokenizer = load_tokenizer(parts.tokenizer)
    ids = encode_question(f"{IMAGE}\n{question}", tokenizer, parts.image_tokens)
    processor: Any = CLIPImageProcessorPil(**parts.pixels)
    ratio: Any = parts.aspect_ratio
    model = _assemble(parts)
    observed = []
    for image in images:
        pixels = tower.process_images([image], processor, ratio)
        features = _features(model, pixels, parts.feature_layer)
        projected = model.model.multi_modal_projector(features)
        given = torch.tensor([ids], device=model.device)
        embedded = model.get_input_embeddings()(given.clamp(min=0))
        embedded[given == IMAGE_TOKEN] = projected[0]
        cache: Any = DynamicCache()
        found = _next(model, cache, embedded)
        tokens, scores = _greedy(model, cache, found[-1], _ends(parts), new_tokens)
        observed.append(_observed(ids, (pixels[0], features[0], projected[0], found, scores), tokens))
    _free(model)
    return observed


def _features(model: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    hidden: torch.Tensor = model.model.vision_tower(pixels.to(model.device), output_hidden_states=True).hidden_states[
        layer
    ]
    return hidden[:, 1:]


def _next(model: Any, cache: Any, embedded: torch.Tensor) -> torch.Tensor:
    """Returns logits (T, V)."""
    hidden = model.model.language_model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden)[0]
    return logits


def _ends(parts: Parts) -> set[int]:
    end = parts.text["eos_token_id"]
    return set(end) if isinstance(end, list) else {end}


def _greedy(
    model: Any, cache: Any, last: torch.Tensor, ends: set[int], new_tokens: int
) -> tuple[list[int], torch.Tensor]:
    tokens: list[int] = []
    scores = []
    for _ in range(new_tokens):
        scores.append(last)
        tokens.append(int(last.argmax()))
        if tokens[-1] in ends:
            break
        embedded = model.get_input_embeddings()(torch.tensor([[tokens[-1]]], device=model.device))
        last = _next(model, cache, embedded)[-1]
    return tokens, torch.stack(scores)


def _assemble(parts: Parts) -> Any:
    """Builds the model in float32 out of the stored weights."""
    text: Any = LlamaConfig(**parts.text)
    config = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**parts.vision))
    with init_empty_weights(include_buffers=False):
        model: Any = LlavaForConditionalGeneration(config)
    weights = {f"model.language_model.{n.removeprefix('model.')}": s for n, s in parts.language.items() if n != TIED}
    weights |= {f"model.vision_tower.{n.removeprefix('vision_model.')}": s for n, s in parts.tower.items()}
    layers = {"mm_projector.0": "linear_1", "mm_projector.2": "linear_2"}
    for name, stored in parts.projector.items():
        layer, leaf = name.rsplit(".", 1)
        weights[f"model.multi_modal_projector.{layers[layer]}.{leaf}"] = stored
    ready = {name: stored.read().to(_device(), torch.float32) for name, stored in weights.items()}
    tied = parts.text["tie_word_embeddings"]
    head = ready["model.language_model.embed_tokens.weight"] if tied else None
    ready[TIED] = parts.language[TIED].read().to(_device(), torch.float32) if head is None else head
    model.load_state_dict(ready, strict=True, assign=True)
    return model.to(_device()).eval()


@torch.inference_mode()
def observe_hf(parts: Parts, images: Sequence[Image.Image], question: str, new_tokens: int) -> list[Observed]:
    """Runs a model in HF's layout as its users do, by AutoProcessor and `generate`.

    Args:
        parts: The model; its folder is loaded.
        images: RGB.
        question: Without template.
        new_tokens: Most tokens of an answer.

    Raises:
        ModelFormatError: transformers reports missing or unexpected weights.
    """
    processor = _processor(parts)
    model = _load(parts)
    prompt = _prompt(parts, processor, question)
    observed = []
    for image in images:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        given = inputs["input_ids"][0].tolist()
        token = model.config.image_token_index
        ids = [IMAGE_TOKEN if number == token else number for number in given]
        pixels = inputs["pixel_values"]
        features = _features(model, pixels, parts.feature_layer)
        projected = model.model.multi_modal_projector(features)
        inputs = inputs.to(model.device)
        found = model(**inputs).logits[0]
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True
        )
        rows = parts.text["vocab_size"]
        scores = torch.cat(made.logits)[:, :rows]
        tokens = made.sequences[0, len(given) :].tolist()
        observed.append(_observed(ids, (pixels[0], features[0], projected[0], found[:, :rows], scores), tokens))
    _free(model)
    return observed


def _processor(parts: Parts) -> Any:
    processor: Any = AutoProcessor.from_pretrained(parts.folder)
    # The Pillow backend, whatever is installed: torchvision's pixels differ from those LLaVA was trained on.
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor.image_processor = LlavaImageProcessorPil(
        **{
            key: value
            for key, value in for_hf(parts.pixels, parts.aspect_ratio).items()
            if key not in ("image_processor_type", "processor_class")
        }
    )
    return processor


def _prompt(parts: Parts, processor: Any, question: str) -> str:
    """Returns the text of the question: by the folder's own template where it is ours; llava-hf's lacks the system."""
    if not (parts.folder / "ohd.json").is_file():
        return f"{SYSTEM} USER: {IMAGE}\n{question} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def _load(parts: Parts) -> Any:
    disable_progress_bar()
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        parts.folder, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise ModelFormatError(f"transformers does not load {parts.folder} whole: {len(wrong)} weights, {wrong[0]}")
    return model.to(_device()).eval()
