"""How much each token of a caption speaks for the image, or against it: CLIP4DM.

Nam et al., AAAI 2025, arXiv 2412.18404. With the cosine s of image and caption, the attention A of a layer and head of
the text tower and its gradient G = ds/dA, a token's attribution is the mean over the last L layers and all heads of
G * A, in the row of the end-of-text token. It is signed: below zero, the token lowers the similarity.

The text tower is causal and the end is the last token: no other token sees it, so G of its row depends on what happens
to the end alone. Everything else is therefore computed without a graph; only the end runs through the last L layers
with one. Chefer's rollout multiplies whole matrices of layers, and takes the graph of all tokens.
Source: naver-ai/clip4dm @ cb9e52d, src/clip4dm.py; hila-chefer/Transformer-MM-Explainability,
CLIP_explainability.ipynb.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.layers import after_attention, projected
from llava_ohd.errors import OptionError

__all__ = ["VARIANTS", "Attribution", "attribute"]

VARIANTS = ("clip4dm", "relu", "relu_mean", "rollout")


@dataclass(frozen=True)
class Attribution:
    """What one caption's tokens say about one image.

    Attributes:
        tokens: One number per token, start and end of text included (N,).
        cosine: Of image and caption.
    """

    tokens: Tensor
    cosine: float


def attribute(
    model: Any, captions: Sequence[Sequence[int]], images_BD: Tensor, layers: int = 3, variant: str = "clip4dm"
) -> list[Attribution]:
    """Attributes the similarity of B captions to their tokens, each with an image of its own.

    Args:
        model: CLIPModel in eval mode, float32.
        captions: Token ids, from start to end of text.
        images_BD: Image features, need not be unit vectors.
        layers: L, the last layers of the text tower that are looked at.
        variant: `clip4dm` (signed); `relu`: only negative gradients count, -A * relu(-G); `relu_mean`: the same after
            the mean over heads, -relu(-mean(G * A)), layer by layer (the paper's second ablation as we read its name);
            `rollout`: Chefer's, positive products of the scaled logit, R = R + relu(G * A) R through the layers, so
            that no score is below zero.

    Raises:
        OptionError: another variant, or more layers than the tower has.
    """
    text = model.text_model
    if not 1 <= layers <= len(text.encoder.layers):
        raise OptionError(f"layers {layers}: the text tower has {len(text.encoder.layers)}; give 1 to that many")
    if variant not in VARIANTS:
        raise OptionError(f"variant {variant!r}: give one of {', '.join(VARIANTS)}")
    ends = torch.tensor([len(ids) - 1 for ids in captions], device=model.device)
    width = int(ends.max()) + 1
    padded = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in captions], device=model.device)
    images_BD = F.normalize(images_BD.to(model.device).float(), dim=-1)
    attend = _whole if variant == "rollout" else _of_the_end
    with torch.inference_mode():
        states_BNC = _read(text, padded, len(text.encoder.layers) - layers)
    with torch.enable_grad():
        cams, cosines = attend(model, states_BNC.clone(), ends, images_BD, layers, variant)
    return [
        Attribution(row[: len(ids)].cpu(), cosine)
        for row, ids, cosine in zip(cams, captions, cosines.tolist(), strict=True)
    ]


def _read(text: Any, tokens_BN: Tensor, layers: int) -> Tensor:
    """Returns the states (B, N, C) before the layers that are looked at."""
    embeddings = text.embeddings
    states = embeddings.token_embedding(tokens_BN) + embeddings.position_embedding.weight[: tokens_BN.shape[1]]
    for layer in text.encoder.layers[:layers]:
        states = _layer(layer, states, projected(layer, states))
    return states


def _layer(layer: Any, states_BNC: Tensor, of_all: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    query, key, value = of_all
    return after_attention(layer, states_BNC, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def _weights(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Returns attention weights, zero where `hidden`."""
    return (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)


def _cosine(model: Any, ends_BC: Tensor, images_BD: Tensor) -> Tensor:
    features = model.text_projection(model.text_model.final_layer_norm(ends_BC))
    return (F.normalize(features, dim=-1) * images_BD).sum(-1)


def _of_the_end(
    model: Any, states_BNC: Tensor, ends: Tensor, images_BD: Tensor, layers: int, variant: str
) -> tuple[Tensor, Tensor]:
    """Returns attributions (B, N) and cosines (B); a graph is kept for the end-of-text tokens only."""
    rows = torch.arange(len(ends), device=ends.device)
    hidden_BN = torch.arange(states_BNC.shape[1], device=ends.device) > ends[:, None]
    end_B1C = states_BNC[rows, ends][:, None].requires_grad_()
    seen = []
    for layer in model.text_model.encoder.layers[-layers:]:
        with torch.no_grad():
            of_all = projected(layer, states_BNC)
            states_BNC = _layer(layer, states_BNC, of_all)
        query, own_key, own_value = projected(layer, end_B1C)
        key, value = (part.clone() for part in of_all[1:])
        key[rows, :, ends], value[rows, :, ends] = own_key[:, :, 0], own_value[:, :, 0]
        seen.append(_weights(query, key, hidden_BN[:, None, None]))
        end_B1C = after_attention(layer, end_B1C, seen[-1] @ value)
    cosines = _cosine(model, end_B1C[:, 0], images_BD)
    gradients = torch.autograd.grad(cosines.sum(), seen)
    total = torch.zeros_like(hidden_BN, dtype=torch.float32)
    for weights, gradient in zip(seen, gradients, strict=True):
        counted = -(-gradient).relu() if variant == "relu" else gradient
        of_layer = (weights.detach() * counted)[:, :, 0].mean(1)
        total += -(-of_layer).relu() if variant == "relu_mean" else of_layer
    return total / layers, cosines.detach()


def _whole(
    model: Any, states_BNC: Tensor, ends: Tensor, images_BD: Tensor, layers: int, _: str
) -> tuple[Tensor, Tensor]:
    """Returns the rollout's attributions (B, N) and cosines (B)."""
    rows, count = torch.arange(len(ends), device=ends.device), states_BNC.shape[1]
    hidden_NN = torch.ones(count, count, dtype=torch.bool, device=ends.device).triu(1)
    states_BNC.requires_grad_()
    seen = []
    for layer in model.text_model.encoder.layers[-layers:]:
        query, key, value = projected(layer, states_BNC)
        seen.append(_weights(query, key, hidden_NN))
        states_BNC = after_attention(layer, states_BNC, seen[-1] @ value)
    cosines = _cosine(model, states_BNC[rows, ends], images_BD)
    gradients = torch.autograd.grad((cosines * model.logit_scale.exp()).sum(), seen)
    rollout = torch.eye(count, dtype=cosines.dtype, device=ends.device).expand(len(ends), -1, -1)
    for weights, gradient in zip(seen, gradients, strict=True):
        rollout = rollout + (weights.detach() * gradient).relu().mean(1) @ rollout
    return rollout[rows, ends], cosines.detach()
