"""Where in the image a caption finds what it says: the attention of the last vision layer's class token, by gradient.

Chefer et al. clamp gradient * attention at zero; without it, patches that speak against the caption are negative.
Source: hila-chefer/Transformer-MM-Explainability, CLIP_explainability.ipynb (its default, the last layer).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.layers import after_attention, projected

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
            mixed = F.scaled_dot_product_attention(*projected(layer, states_BNC))
            states_BNC = after_attention(layer, states_BNC, mixed)
        query, key, value = projected(last, states_BNC)
        weights = (query[:, :, :1] @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
    with torch.enable_grad():
        weights.requires_grad_()
        state = after_attention(last, states_BNC[:, :1], weights @ value)
        seen = F.normalize(model.visual_projection(vision.post_layernorm(state[:, 0])), dim=-1)
        cosine = (seen * F.normalize(texts_BD.to(model.device).float(), dim=-1)).sum()
        [gradient] = torch.autograd.grad(cosine, [weights])
    product = (weights.detach() * gradient)[:, :, 0, 1:]
    side = round(product.shape[-1] ** 0.5)
    return (product if signed else product.relu()).mean(1).unflatten(-1, (side, side)).cpu()
