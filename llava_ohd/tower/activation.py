"""Which activation a CLIP was trained with, where its file does not say.

OpenAI's models use QuickGELU, x sigmoid(1.702 x); most of open_clip's use the exact GELU. The weights fit either, load
without a word, and give worse features with the wrong one (open_clip issue 771). Here it is stated, read, or measured.

Source: openai/CLIP clip/model.py `QuickGELU` @ a1d0717; transformers activations.py `QuickGELUActivation`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.layouts import VISION

__all__ = ["NAMES", "decide_activation", "distances_to_base", "of_program"]

NAMES = {True: "quick_gelu", False: "gelu"}
"""Whether it is QuickGELU, to the name in `hidden_act`."""
CLEAR = 0.5
"""The nearer activation counts as found where its distance is less than this fraction of the other's."""


def of_program(program: str) -> bool | None:
    """Reads off the text of a TorchScript program whether it uses QuickGELU; None where it does not say."""
    quick, exact = "sigmoid(" in program, re.search(r"\bgelu\(", program) is not None
    return quick if quick != exact else None


def decide_activation(
    weights: Mapping[str, torch.Tensor], base: Any | None, said: bool | None, stated: bool | None
) -> tuple[str, dict[str, Any]]:
    """Says which activation the weights belong to, and how that is known.

    Args:
        weights: A full CLIP under the legacy names.
        base: `Base` of which it is a fine-tune.
        said: Whether it is QuickGELU, as the file itself says; None where it does not.
        stated: Whether it is QuickGELU, as the user says.

    Returns:
        "quick_gelu" or "gelu", and the grounds, JSON-able; with the distances wherever a base can be compared.

    Raises:
        EncoderFormatError: two of user, file and base contradict each other, or neither says and the base does not
            decide.
    """
    if said is not None and stated is not None and said != stated:
        raise EncoderFormatError(
            f"--quick-gelu {str(stated).lower()} was given, but the file itself says {NAMES[said]}; leave the flag out"
        )
    comparable = base is not None and not _differs(weights, base.weights)
    distances = distances_to_base(weights, base) if comparable else {}
    near = _nearest(distances)
    shown = ", ".join(f"{name} {distance:.3g}" for name, distance in distances.items())
    measured = {"distances": distances} if distances else {}
    if (known := stated if said is None else said) is not None:
        who = "the file" if said is not None else "the user"
        if near not in (None, NAMES[known]):
            raise EncoderFormatError(
                f"{who} says {NAMES[known]}, but the features are those of the base with {near} (relative distances: "
                f"{shown}). One of the two is wrong: correct the configuration or the flag, or give another --base"
            )
        return NAMES[known], {"activation": f"{'said' if said is not None else 'stated'} by {who}", **measured}
    ask = "say it with --quick-gelu true (OpenAI's weights and what was trained from them) or --quick-gelu false"
    if not comparable:
        why = "" if base is None else " (the base has another geometry, so it cannot be compared)"
        raise EncoderFormatError(
            f"the file does not say which activation it was trained with{why}; {ask}, or give the encoder that it was "
            "fine-tuned from with --base, so that both can be tried"
        )
    if near is None:
        raise EncoderFormatError(
            f"the activation is undecided: relative distance of the features from those of the base is {shown}; one "
            f"below {CLEAR} of the other was expected of a fine-tune. Therefore {ask}"
        )
    return near, {"activation": "measured against the base", **measured}


def _nearest(distances: Mapping[str, float]) -> str | None:
    """Returns the activation that the distances clearly speak for."""
    if not distances:
        return None
    near, far = sorted(distances, key=lambda name: distances[name])
    return near if distances[near] < CLEAR * distances[far] else None


def _differs(weights: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> bool:
    found, expected = (
        {name: weight.shape for name, weight in part.items() if name.startswith(VISION)} for part in (weights, base)
    )
    return found != expected


def distances_to_base(weights: Mapping[str, torch.Tensor], base: Any) -> dict[str, float]:
    """Measures how far the patch tokens at the last layer lie from the base's, on fixed pixels, per activation.

    Returns:
        |f - b| / |b| over all tokens, by name of the activation; b has the base's own.
    """
    pixels = _pixels(base.config.vision_config.image_size)
    expected = _tokens(base.weights, base.config, base.config.vision_config.hidden_act, pixels)
    found = {name: _tokens(weights, base.config, name, pixels) for name in NAMES.values()}
    return {name: float((tokens - expected).norm() / expected.norm()) for name, tokens in found.items()}


def _pixels(side: int) -> torch.Tensor:
    """Two smooth pictures and one of noise, (3, 3, side, side), about as bright as normalised photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return torch.cat([smooth, torch.randn(1, 3, side, side, generator=generator)])


@torch.no_grad()
def _tokens(weights: Mapping[str, torch.Tensor], config: Any, activation: str, pixels: torch.Tensor) -> torch.Tensor:
    record = config.to_dict()
    record["vision_config"]["hidden_act"] = activation
    with torch.device("meta"):
        tower: Any = CLIPModel(CLIPConfig.from_dict(record)).vision_model
    part = {name.removeprefix(VISION): w.float() for name, w in weights.items() if name.startswith(VISION)}
    tower.load_state_dict(part, assign=True)
    count = len(part["embeddings.position_embedding.weight"])
    tower.embeddings.register_buffer("position_ids", torch.arange(count).expand((1, -1)), persistent=False)
    return tower.eval()(pixels).last_hidden_state
