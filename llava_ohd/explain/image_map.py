"""Where in the image a caption finds what it says: the attention of the last vision layer's class token, by gradient.

Chefer et al. clamp gradient * attention at zero; without it, patches that speak against the caption are negative.
Source: hila-chefer/Transformer-MM-Explainability, CLIP_explainability.ipynb (its default, the last layer).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.layers import feed_forward, heads, run_layer

__all__ = ["image_maps"]


def image_maps(model: Any, pixels_BCHW: Tensor, texts_BD: Tensor, signed: bool = True) -> Tensor:
    """Computes which patches raise the cosine of each image with its caption.

    Args:
        model: CLIPModel in eval mode, float32.
        pixels_BCHW: Normalised.
        texts_BD: Caption features, need not be unit vectors.
        signed: Keep what lowers it; else it is clamped at zero, head by head, as Chefer et al. do.

    Returns:
        (B, P, P), the mean over heads of gradient * attention, P patches a side.
    """
    vision = model.vision_model
    *before, last = vision.encoder.layers
    with torch.no_grad():
        states_BNC = vision.pre_layrnorm(vision.embeddings(pixels_BCHW.to(model.device)))
        for layer in before:
            states_BNC = run_layer(_whole_layer, layer, states_BNC)
        attention, normed = last.self_attn, last.layer_norm1(states_BNC)
        query = heads(attention.q_proj(normed[:, :1]), attention.head_dim)
        key, value = (heads(part(normed), attention.head_dim) for part in (attention.k_proj, attention.v_proj))
        weights = (query @ key.transpose(2, 3) * attention.head_dim**-0.5).softmax(-1)
    with torch.enable_grad():
        weights.requires_grad_()
        state = states_BNC[:, :1] + attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
        state = state + feed_forward(last.mlp, last.layer_norm2(state))
        seen = F.normalize(model.visual_projection(vision.post_layernorm(state[:, 0])), dim=-1)
        cosine = (seen * F.normalize(texts_BD.to(model.device).float(), dim=-1)).sum()
        [gradient] = torch.autograd.grad(cosine, [weights])
    product = (weights.detach() * gradient)[:, :, 0, 1:]
    side = round(product.shape[-1] ** 0.5)
    return (product if signed else product.relu()).mean(1).unflatten(-1, (side, side)).cpu()


def _whole_layer(layer: Any, states_BNC: Tensor) -> Tensor:
    attention, normed = layer.self_attn, layer.layer_norm1(states_BNC)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (heads(part(normed), attention.head_dim) for part in projections)
    mixed = F.scaled_dot_product_attention(query, key, value)
    states_BNC = states_BNC + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return states_BNC + feed_forward(layer.mlp, layer.layer_norm2(states_BNC))
