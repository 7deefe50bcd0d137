"""The training step of LLaVA without what it does not need; loss and gradients stay the same.

    packed(model)           # what `build` returns, before adapters are added
    loss = model(**batch).loss

A batch with labels then goes another way than in transformers, and gets only a loss, no logits:

- Padding is left out (packing.py). The head sees labelled tokens only (labelled_loss.py), and so does the part of the
  last layer behind its attention.
- A frozen tower runs without autograd, to the layer that is read and no further, once per different image. It is
  never recomputed. Features that were computed before (feature_cache.py) are taken as they are.
- A batch of text only runs no tower. The projector takes part with weight zero, so that all ranks have its gradients;
  the tower does too where it trains, and where ZeRO-3 has split it, since the other ranks wait for its parts.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from llava_ohd.errors import DataFormatError, ModelFormatError
from llava_ohd.llava15.labelled_loss import labelled_loss
from llava_ohd.llava15.packing import ROWS, Packed, distinct, pack

__all__ = ["packed", "packed_loss", "run_tower", "tower_features"]


def packed(model: Any) -> Any:
    """Lets a model train the short way; it generates, and computes logits, as before.

    Args:
        model: LlavaForConditionalGeneration without adapters; changed.

    Raises:
        ModelFormatError: its attention cannot keep packed rows apart.
    """
    language = model.model.language_model
    kind = language.config._attn_implementation
    if kind in ("sdpa", ROWS):
        language.config._attn_implementation = ROWS
    elif not kind.startswith("flash_attention"):
        raise ModelFormatError(f"attention {kind!r} cannot train packed rows; take sdpa or flash_attention_2")
    model.forward = MethodType(_forward, model)
    return model


def _forward(
    self: Any,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **others: Any,
) -> Any:
    """Computes the loss the short way where labels are given, else what transformers does."""
    more = {name: value for name, value in others.items() if value is not None}
    if input_ids is None or labels is None:
        return type(self).forward(
            self, input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, labels=labels, **more
        )
    if unknown := more.keys() - {"return_dict", "use_cache"}:
        raise DataFormatError(f"a training batch has {sorted(unknown)}; ids, labels, mask and pixels are expected")
    rows = pack(input_ids, labels, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
    return LlavaCausalLMOutputWithPast(loss=packed_loss(self, rows, pixel_values, num_items_in_batch))


def packed_loss(model: Any, rows: Packed, pixels: Tensor | None, count: Tensor | int | None = None) -> Tensor:
    """Computes the loss of a batch whose padding is out.

    Args:
        model: LlavaForConditionalGeneration, prepared by `packed`.
        rows: The batch.
        pixels: As for `tower_features`; None without images.
        count: What the loss is divided by; None: the labelled tokens of the batch.

    Raises:
        DataFormatError: the batch has more image tokens than its images have features.
    """
    states_1TC = _embedded(model, rows, pixels)
    states_KC = _run_layers(model.model.language_model, states_1TC, rows)
    return labelled_loss(model.lm_head, states_KC, rows.targets_K, count)


def _embedded(model: Any, rows: Packed, pixels: Tensor | None) -> Tensor:
    """Returns what the first layer gets: embeddings of text, projected features of images."""
    states_1TC: Tensor = model.get_input_embeddings()(rows.ids_1T)
    projector = model.model.multi_modal_projector
    if pixels is None or not len(rows.features_P):
        if len(rows.features_P):
            raise DataFormatError(f"the batch has {len(rows.features_P)} image tokens, but no images")
        return states_1TC + 0 * projector(_nothing(model, pixels)).sum().to(states_1TC.dtype)
    features, which = tower_features(model, pixels)
    projected = projector(features)
    if which != list(range(len(projected))):
        projected = projected[which]
    projected_PC = projected.flatten(0, 1)
    if rows.image_tokens != len(projected_PC):
        raise DataFormatError(
            f"the batch has {rows.image_tokens} image tokens, its images have {len(projected_PC)} features; every "
            "<image> must become as many tokens as the encoder has patches"
        )
    if len(rows.features_P) < len(projected_PC):  # some are hidden
        projected_PC = projected_PC[rows.features_P]
    return states_1TC.index_copy(1, rows.patches_P, projected_PC[None].to(states_1TC.dtype))


def _nothing(model: Any, pixels: Tensor | None) -> Tensor:
    """Returns features (1, 1, C) of no image."""
    tower = model.model.vision_tower
    taking_part = any(hasattr(weight, "ds_id") or weight.requires_grad for weight in tower.parameters())
    if pixels is not None and (pixels.shape[1] == 1 or taking_part):
        return tower_features(model, pixels[:1])[0][:, :1]
    weight = model.model.multi_modal_projector.linear_1.weight
    return torch.zeros(1, 1, model.config.vision_config.hidden_size, device=weight.device, dtype=weight.dtype)


def tower_features(model: Any, pixels: Tensor) -> tuple[Tensor, list[int]]:
    """Computes what the projector sees of images.

    Args:
        model: LlavaForConditionalGeneration.
        pixels: (I, 3, S, S), normalised; or features (I, 1, N, C) computed before (feature_cache.py).

    Returns:
        Features of the D different images, (D, N, C), and for each of the I images which of those it has.
    """
    tower = model.model.vision_tower
    if pixels.shape[1] == 1:
        return pixels[:, 0].to(tower.dtype), list(range(len(pixels)))
    first, which = distinct(pixels)
    return run_tower(model, pixels if len(first) == len(pixels) else pixels[first]), which


def run_tower(model: Any, pixels: Tensor) -> Tensor:
    """Computes what the projector sees of images (I, 3, S, S), each of them: (I, N, C)."""
    tower = model.model.vision_tower
    trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in tower.parameters())
    with torch.set_grad_enabled(trains):
        states: Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in _read_layers(tower, model.config.vision_feature_layer):
            states = layer(states, attention_mask=None)
    return states[:, 1:]


def _read_layers(tower: Any, feature_layer: int) -> nn.ModuleList:
    """Returns the layers of the tower up to the one whose output is read: all but the last for -2."""
    layers: nn.ModuleList = tower.encoder.layers
    return layers[: feature_layer % (len(layers) + 1)]


def _run_layers(language: Any, states_1TC: Tensor, rows: Packed) -> Tensor:
    """Runs the language model, and returns what the head sees of the labelled tokens: (K, C)."""
    attention = rows.attention(language.config._attn_implementation)
    attention["position_embeddings"] = language.rotary_emb(states_1TC, position_ids=rows.positions_1T)
    *before, last = language.layers
    for layer in before:
        states_1TC = layer(states_1TC, use_cache=False, **attention)
    mixed_1TC, _ = last.self_attn(hidden_states=last.input_layernorm(states_1TC), **attention)
    states_KC = (states_1TC + mixed_1TC)[0, rows.labelled_K]
    states_KC = states_KC + last.mlp(last.post_attention_layernorm(states_KC))
    normed_KC: Tensor = language.norm(states_KC)
    return normed_KC
