"""OpenAI's and open_clip's names and packing of CLIP's weights, turned into those of transformers' CLIPModel.

Both store `visual.*` for the vision tower, the text tower at the top (open_clip's CustomTextCLIP: under `text.`), the
three of query, key and value in one `in_proj`, and the projections transposed. Only ViTs are read: a ResNet cannot be
LLaVA's tower.

Source: openai/CLIP clip/model.py @ a1d0717; open_clip src/open_clip/transformer.py, model.py (3.x).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPConfig

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.layouts import some, text_geometry, vision_geometry

__all__ = ["clip_config", "is_openai", "legacy_weights"]

_COUNTERS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}  # beside the weights, and not weights
_TOP = {
    "logit_scale": "logit_scale",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "text_projection": "text_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WIDTHS_OF_64 = (512, 768, 1024)
"""Widths at which every tower of OpenAI and open_clip has heads of 64 channels (ViT-M, B, L; text of B, L, H)."""
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def is_openai(names: Mapping[str, Any]) -> bool:
    """Says whether names are of this layout."""
    return any(".visual." in f".{name}" for name in names)


def legacy_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights under transformers' legacy names, unpacked; no number is changed.

    Args:
        weights: All tensors of one model, also behind a prefix such as `module.`.

    Raises:
        EncoderFormatError: a ResNet, or names that OpenAI's ViT does not have.
    """
    plain = _without_prefix(weights)
    if any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in plain):
        raise EncoderFormatError("a ResNet CLIP; LLaVA's tower is a ViT. Give a ViT checkpoint, e.g. ViT-L-14-336px")
    legacy: dict[str, torch.Tensor] = {}
    foreign = []
    for name, weight in plain.items():
        translated = _translated(name, weight)
        foreign += [] if translated else [name]
        legacy |= translated
    if foreign:
        raise EncoderFormatError(
            f"names that OpenAI's ViT CLIP does not have: {some(foreign)}; only its architecture can be imported"
        )
    return legacy


def _without_prefix(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(name for name in weights if ".visual." in f".{name}")
    prefix = f".{first}".split(".visual.")[0][1:]
    prefix += "." if prefix else ""
    if other := [name for name in weights if not name.startswith(prefix)]:
        raise EncoderFormatError(f"more than one model: {some(other)} beside {prefix}*; save one of them alone")
    short = {name.removeprefix(prefix).removeprefix("text."): weight for name, weight in weights.items()}
    if len(short) < len(weights):
        raise EncoderFormatError("a text tower both at the top level and under 'text.'; save one model alone")
    return {name: weight for name, weight in short.items() if name not in _COUNTERS}


def _translated(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns what one tensor becomes; nothing where the name is unknown."""
    if layer := _LAYER.fullmatch(name):
        tower = "vision_model" if layer[1] else "text_model"
        return _block(f"{tower}.encoder.layers.{layer[2]}.", layer[3], weight)
    if name in ("visual.proj", "text_projection"):
        return {_TOP[name]: weight.t().contiguous()}
    if name == "logit_scale":
        return {name: weight.reshape(())}
    module, _, part = name.rpartition(".")
    if name in _TOP and part not in ("weight", "bias"):
        return {_TOP[name]: weight}
    return {f"{_TOP[module]}.{part}": weight} if module in _TOP and part in ("weight", "bias") else {}


def _block(layer: str, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        part = name.removeprefix("attn.in_proj_")
        rows = weight.chunk(3)
        return {f"{layer}self_attn.{which}_proj.{part}": row.clone() for which, row in zip("qkv", rows, strict=True)}
    module, _, part = name.rpartition(".")
    return {f"{layer}{_BLOCK[module]}.{part}": weight} if module in _BLOCK and part in ("weight", "bias") else {}


def clip_config(
    weights: Mapping[str, torch.Tensor], hidden_act: str, base: Any | None, heads: Mapping[str, int] | None = None
) -> Any:
    """Derives the configuration from the tensors (legacy names).

    Args:
        weights: A full CLIP.
        hidden_act: "quick_gelu" or "gelu", which no tensor says.
        base: `CLIPConfig` of an encoder of the same family, which gives heads and special tokens; without it a head
            has 64 channels where all models of the width have that, and the two highest ids begin and end a caption,
            as in all models of OpenAI.
        heads: Number of heads of the "vision" and "text" tower, as far as the source says it.

    Raises:
        EncoderFormatError: tensors missing, heads that nothing says, or that source and base say differently.
    """
    vision, text = vision_geometry(weights), text_geometry(weights)
    if "visual_projection.weight" not in weights:
        raise EncoderFormatError("no visual.proj; without a projection it is not a CLIP. Give the whole checkpoint")
    common: dict[str, Any] = {"projection_dim": len(weights["visual_projection.weight"]), "hidden_act": hidden_act}
    known = base.text_config if base is not None and base.text_config.vocab_size == text["vocab_size"] else None
    ids = {"bos_token_id": text["vocab_size"] - 2, "eos_token_id": text["vocab_size"] - 1}
    ids["pad_token_id"] = ids["eos_token_id"]
    text |= {key: getattr(known, key) for key in ids} if known is not None else ids
    heads = heads or {}
    for tower, part, known in (
        ("vision", vision, base and base.vision_config),
        ("text", text, base and base.text_config),
    ):
        part["num_attention_heads"] = _heads(part["hidden_size"], heads.get(tower), known, tower)
    return CLIPConfig(vision_config=vision | common, text_config=text | common, projection_dim=common["projection_dim"])


def _heads(width: int, said: int | None, base: Any | None, tower: str) -> int:
    """Returns the number of heads, which no tensor shows: a wrong one gives other features without a word."""
    of_base = int(base.num_attention_heads) if base is not None and base.hidden_size == width else None
    if said is not None and of_base not in (None, said):
        raise EncoderFormatError(
            f"its configuration gives the {tower} tower {said} heads, the base has {of_base}; give a base of its family"
        )
    if (known := of_base if said is None else said) is not None:
        return known
    if width not in _WIDTHS_OF_64:
        raise EncoderFormatError(
            f"the {tower} tower has width {width}, and nothing says its number of heads (64 channels each only at "
            f"width {', '.join(map(str, _WIDTHS_OF_64))}; ViT-H, g and bigG have 16 heads of 80, 88 and 104); give "
            "an encoder of the same geometry with --base NAME_OR_PATH, or the folder with its open_clip_config.json"
        )
    return width // 64
