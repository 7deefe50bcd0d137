"""The names under which transformers and LLaVA store CLIP's weights, and the way back to the legacy ones.

| written by                                       | vision tower                                                    |
|--------------------------------------------------|-----------------------------------------------------------------|
| CLIPModel, any version                           | `vision_model.encoder.…` (legacy)                               |
| CLIPVisionModel of transformers >= 5.6           | `encoder.…`                                                     |
| LLaVA, tower unfrozen                            | `model.vision_tower.vision_tower.vision_model.encoder.…`        |
| LlavaForConditionalGeneration, 4.x               | `vision_tower.vision_model.encoder.…`, later `model.vision_…`   |
| LlavaForConditionalGeneration, 5.x               | `model.vision_tower.encoder.…`, `vision_tower.encoder.…`        |
| DDP, torch.compile, a CLIP inside another module | any of these behind `module.`, `_orig_mod.`, `clip.`            |

Source: transformers PR 44431 (5.6 removed the level); LLaVA clip_encoder.py @ c121f04.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llava_ohd.errors import EncoderFormatError

__all__ = ["VISION", "legacy_names", "rename", "some", "text_geometry", "tower_of_llava", "vision_geometry"]

VISION, _TEXT = "vision_model.", "text_model."
_NAME = re.compile(
    r"(?P<outer>(?:\w+\.)*?)(?P<tower>(?:vision_model\.|text_model\.)*)"
    r"(?P<rest>(?:embeddings|encoder|pre_layrnorm|post_layernorm|final_layer_norm)\..+"
    r"|logit_scale|visual_projection\.weight|text_projection\.weight)"
)
_BARE_VISION, _BARE_TEXT = "embeddings.class_embedding", "embeddings.token_embedding.weight"


def some(names: Iterable[str]) -> str:
    """Returns the first three names and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def tower_of_llava(name: str) -> bool:
    """Says whether a name in a LLaVA checkpoint belongs to the vision tower."""
    return "vision_tower." in name


def legacy_names(names: Iterable[str]) -> dict[str, str]:
    """Maps the names of any CLIP layout of transformers to `vision_model.*`, `text_model.*` and the three others.

    Args:
        names: All names of a CLIP, or of one of its towers.

    Raises:
        EncoderFormatError: a name that CLIP does not have, names of two models, or two names for one tensor.
    """
    found = {name: _NAME.fullmatch(name) for name in names}
    if foreign := [name for name, match in found.items() if match is None]:
        raise EncoderFormatError(f"names that no layout of CLIP has: {some(foreign)}; give the checkpoint of a CLIP")
    matches = {name: match for name, match in found.items() if match is not None}
    if len(outer := {match["outer"] for match in matches.values()}) > 1:
        raise EncoderFormatError(f"more than one model: names begin with {some(outer)!r}; save one of them alone")
    bare = {match["rest"] for match in matches.values() if not match["tower"]}
    if _BARE_VISION in bare and _BARE_TEXT in bare:
        raise EncoderFormatError("both towers have the same names (no 'vision_model.'); save the full CLIPModel again")
    unsaid = VISION if _BARE_VISION in bare or _BARE_TEXT not in bare else _TEXT
    legacy = {name: _tower(match, unsaid) + match["rest"] for name, match in matches.items()}
    if len(set(legacy.values())) < len(legacy):
        raise EncoderFormatError("two names lead to the same tensor of CLIP; save the full CLIPModel again")
    return legacy


def _tower(match: re.Match[str], unsaid: str) -> str:
    if match["rest"].startswith(("logit_scale", "visual_projection.", "text_projection.")):
        return ""
    return match["tower"].split(".")[-2] + "." if match["tower"] else unsaid


def rename(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights under their legacy names.

    Raises:
        EncoderFormatError: as `legacy_names`.
    """
    return {new: weights[old] for old, new in legacy_names(weights).items()}


def vision_geometry(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Reads the sizes of a vision tower off its tensors (legacy names), under the names of `CLIPVisionConfig`.

    Raises:
        EncoderFormatError: a tensor that says them is missing, or the patches do not form a square.
    """
    patch = _need(weights, f"{VISION}embeddings.patch_embedding.weight", 4)
    positions = len(_need(weights, f"{VISION}embeddings.position_embedding.weight", 2)) - 1
    side = round(positions**0.5)
    if side * side != positions:
        raise EncoderFormatError(f"{positions} patch positions do not form a square; only square images are supported")
    sizes = {"image_size": side * patch.shape[-1], "patch_size": patch.shape[-1], "hidden_size": patch.shape[0]}
    return sizes | _depth(weights, VISION)


def text_geometry(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Reads the sizes of a text tower off its tensors (legacy names), under the names of `CLIPTextConfig`.

    Raises:
        EncoderFormatError: a tensor that says them is missing.
    """
    vocabulary, width = _need(weights, f"{_TEXT}embeddings.token_embedding.weight", 2).shape
    length = len(_need(weights, f"{_TEXT}embeddings.position_embedding.weight", 2))
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "max_position_embeddings": length}
    return sizes | _depth(weights, _TEXT)


def _depth(weights: Mapping[str, torch.Tensor], tower: str) -> dict[str, int]:
    numbers = {match[1] for name in weights if (match := re.match(rf"{tower}encoder\.layers\.(\d+)\.", name))}
    wide = _need(weights, f"{tower}encoder.layers.0.mlp.fc1.weight", 2)
    return {"num_hidden_layers": len(numbers), "intermediate_size": len(wide)}


def _need(weights: Mapping[str, Any], name: str, dimensions: int) -> torch.Tensor:
    if name not in weights or weights[name].ndim != dimensions:
        found = f"has shape {list(weights[name].shape)}" if name in weights else "is missing"
        raise EncoderFormatError(f"{name} {found}; a CLIP has {dimensions} dimensions there. Give the whole checkpoint")
    return weights[name]
