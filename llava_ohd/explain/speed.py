"""The attributions of many captions in two ways: as the released code makes them, pair by pair, and as here.

`released` is its loop: a pair at a time, the image encoded with each, all of transformers' attentions kept, and one
backward through the whole text tower per layer. In float32 here, where the released code takes float16.
Source: naver-ai/clip4dm @ cb9e52d, src/clip4dm.py.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from llava_ohd.clip.embedding import encode_images
from llava_ohd.clip.ways import clip_config
from llava_ohd.errors import StageFailed
from llava_ohd.explain.attribution import attribute
from llava_ohd.training.measuring import Cost

__all__ = ["check_equal", "make_model", "ours", "released", "timed"]

_LENGTH = 77  # to which the released code fills every caption up
_TOLERANCE = 1e-6


def make_model(geometry: str, tokenizer: Any) -> Any:
    """Returns a CLIPModel with random weights, of `clip.ways.GEOMETRIES`, whose attention gives its weights."""
    torch.manual_seed(0)
    config = clip_config(geometry, tokenizer)
    config._attn_implementation = "eager"
    return CLIPModel(config).eval()


def released(model: Any, captions: Sequence[Sequence[int]], images: Tensor, layers: int) -> list[Tensor]:
    """Attributes pair by pair; `images` (B, 3, S, S) has one for each caption."""
    found = []
    for ids, image in zip(captions, images, strict=True):
        padded = torch.tensor([[*ids, *[0] * (_LENGTH - len(ids))]])
        out = model(input_ids=padded, pixel_values=image[None], output_attentions=True, output_hidden_states=True)
        score = out.logits_per_text[0, 0] / model.logit_scale.exp()
        total = torch.zeros(_LENGTH)
        for attention in out.text_model_output.attentions[-layers:][::-1]:
            [gradient] = torch.autograd.grad(score, [attention], retain_graph=True)
            total += (gradient * attention.detach())[0].mean(0)[len(ids) - 1]
        found.append(total[: len(ids)] / layers)
    return found


def ours(
    model: Any, captions: Sequence[Sequence[int]], images: Tensor, which: Sequence[int], layers: int, batch: int
) -> list[Tensor]:
    """Attributes in batches of like length; `images` are the different ones, `which` says whose each caption is."""
    with torch.inference_mode():
        seen = encode_images(model, images).clone()
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        rows = attribute(model, [captions[i] for i in group], seen[[which[i] for i in group]], layers)
        found |= {i: row.tokens for i, row in zip(group, rows, strict=True)}
    return [found[i] for i in range(len(captions))]


def timed(run: Any, *arguments: Any) -> tuple[Cost, list[Tensor]]:
    """Runs one way and says what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(*arguments)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu), found


def check_equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Returns the largest difference of an attribution.

    Raises:
        StageFailed: it is above 1e-6.
    """
    worst = max(float((a.detach() - b).abs().max()) for a, b in zip(one, other, strict=True))
    if worst > _TOLERANCE:
        raise StageFailed(
            f"the two ways differ by {worst:.1e}, more than {_TOLERANCE}; explain/attribution.py is at fault"
        )
    return worst
