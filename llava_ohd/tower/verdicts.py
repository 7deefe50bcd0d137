"""Whether a projector that was trained on encoder A still fits encoder B.

| verdict   | when                                                           | what to do                           |
|-----------|----------------------------------------------------------------|--------------------------------------|
| `keep`    | the features that LLaVA reads are the same numbers             | keep projector and LoRA              |
| `fits`    | they moved less than the thresholds below                      | keep the projector; measure once     |
| `retrain` | they moved further                                             | train the projector (and the LoRA)   |
| `must`    | another width or number of patch tokens; it cannot be used     | train a new projector                |
| `unknown` | weights or preprocessing differ and no images were given       | give images                          |

The thresholds lie between two drifts measured on the embedded encoder and 48 photos (docs/tower.md): running it in
bfloat16, in which LLaVA itself trains, moves the features by 0.005 (mean cosine 0.99999); training it on captions with
wrong objects moves them by 0.52 to 0.55 (mean cosine 0.86). `DISTANCE` is ten times the first, a tenth of the second.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from llava_ohd.tower.drift import PERCENTILES, Drift

__all__ = ["DISTANCE", "MEAN_COSINE", "WORST_COSINE", "decide", "misfits", "part_of", "parts"]

DISTANCE = 0.05
"""Largest ||B - A|| / ||A|| of the features at which a projector still fits."""
MEAN_COSINE = 0.998
"""Smallest mean cosine; vectors of one length that are 0.05 apart have a cosine of 0.99875."""
WORST_COSINE = 0.98
"""Smallest cosine at the lowest percentile, so that a few patches (small objects) cannot hide behind the mean."""

_ACTING = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # change the features without changing a weight


def part_of(name: str) -> str | None:
    """Returns the part of the vision tower that a weight belongs to; None for the text tower, which LLaVA lacks."""
    if name.startswith("vision_model.encoder.layers."):
        return f"layer {int(name.split('.')[3]) + 1}"  # as in hidden_states, where 0 is the output of the embeddings
    if name.startswith(("vision_model.embeddings.", "vision_model.pre_layrnorm.")):
        return "embeddings"
    if name.startswith("vision_model.post_layernorm."):
        return "post_layernorm"
    return "visual_projection" if name.startswith("visual_projection.") else None


def parts(*names: Iterable[str]) -> list[str]:
    """Returns all parts in the order in which an image passes them, and `total`."""
    found = {part_of(name) for group in names for name in group} - {None}
    layers = sorted((part for part in found if part and part.startswith("layer ")), key=lambda part: int(part[6:]))
    return ["embeddings", *layers, "post_layernorm", "visual_projection", "total"]


def misfits(geometry: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Returns what makes it impossible to load A's projector on B: `hidden_size`, `patch_tokens`, or nothing."""
    return [name for name in ("hidden_size", "patch_tokens") if geometry[name][0] != geometry[name][1]]


def decide(
    geometry: Mapping[str, tuple[Any, Any]],
    preprocessing: Mapping[str, tuple[Any, Any]],
    weights: Mapping[str, float | None],
    drift: Drift | None,
    layer: int,
) -> tuple[str, str]:
    """Returns the verdict and the reason for it, as in the table of this module."""
    if differing := misfits(geometry):
        numbers = ", ".join(f"{name} {geometry[name][0]} and {geometry[name][1]}" for name in differing)
        return "must", f"Train a new projector: the encoders have {numbers}."
    if _same_features(geometry, preprocessing, weights, layer):
        return (
            "keep",
            f"Keep the projector: everything up to layer {layer} is the same, so LLaVA gets the same features.",
        )
    if drift is None:
        return "unknown", "The encoders differ; give images, on which the drift of the features is measured."
    worst = drift.percentiles[PERCENTILES[0]]
    if drift.distance <= DISTANCE and drift.cosine >= MEAN_COSINE and worst >= WORST_COSINE:
        return "fits", (
            f"The projector still fits: features moved by {drift.distance:.2g} (up to {DISTANCE}), mean cosine "
            f"{drift.cosine:.5f}. Measure one benchmark to be sure."
        )
    return "retrain", (
        f"Train the projector again, and what was trained after it: features moved by {drift.distance:.2g} (at most "
        f"{DISTANCE} fits), mean cosine {drift.cosine:.4f} (at least {MEAN_COSINE}), lowest percentile {worst:.4f} (at "
        f"least {WORST_COSINE})."
    )


def _same_features(
    geometry: Mapping[str, tuple[Any, Any]],
    preprocessing: Mapping[str, tuple[Any, Any]],
    weights: Mapping[str, float | None],
    layer: int,
) -> bool:
    """Says whether nothing differs that an image passes on its way to `layer`."""
    acting = [geometry[name] for name in _ACTING] + list(preprocessing.values())
    depths = geometry["num_hidden_layers"]
    reached = {layer if layer >= 0 else depth + 1 + layer for depth in depths}
    if any(left != right for left, right in acting) or len(reached) > 1:
        return False
    return all(weights[part] == 0 for part in ("embeddings", *(f"layer {n + 1}" for n in range(reached.pop()))))
