"""Questions answered the plain way: every question alone, or in padded batches, with all of its prompt and its image.

This is what the engine is compared with, for its answers and for its speed.
Source: haotian-liu/LLaVA eval/model_vqa_loader.py @ c121f04 (batches of one, greedy).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from llava_ohd.llava15.conversation import IMAGE, encode_question
from llava_ohd.records import Answer, Question

__all__ = ["plain_answers"]


@torch.inference_mode()
def plain_answers(
    model: Any,
    tokenizer: Any,
    pixels: Callable[[str], torch.Tensor],
    patches: int,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int = 1,
) -> Iterator[Answer]:
    """Yields the answers of transformers' `generate`, in the order of the questions.

    Args:
        model: A LlavaForConditionalGeneration.
        tokenizer: The language model's.
        pixels: From the name of an image to its pixels (3, H, W).
        patches: Tokens per image.
        questions: `prompt` without image token and template.
        max_new_tokens: Tokens at which an answer is cut.
        batch_size: Questions per call, padded at the left.
    """
    end = tokenizer.eos_token_id
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        rows = [encode_question(f"{IMAGE}\n{question.prompt}", tokenizer, patches) for question in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[end] * (width - len(row)) + row for row in rows], device=model.device)
        shown = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        images = torch.stack([pixels(question.image) for question in batch])
        out = model.generate(
            input_ids=ids,
            attention_mask=shown,
            pixel_values=images.to(model.device, model.dtype),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
        )
        for question, tokens in zip(batch, out[:, width:].tolist(), strict=True):
            kept = tokens[: tokens.index(end)] if end in tokens else tokens
            yield Answer(question.id, tokenizer.decode(kept, skip_special_tokens=True).strip())
