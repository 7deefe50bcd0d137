"""A LLaVA-1.5 taken apart, whatever folder it came from; nothing of it is loaded yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15.convert.stored import Stored, cast
from llava_ohd.tower import Encoder
from llava_ohd.tower.layouts import some

__all__ = ["TIED", "Parts", "check", "in_type", "text_config", "vision_config", "without_tied_head"]

TIED = "lm_head.weight"
"""Not stored where `tie_word_embeddings` is set: the head is the embedding."""
_TEXT: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT += ("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range")
_TEXT += ("rms_norm_eps", "bos_token_id", "eos_token_id", "pretraining_tp", "tie_word_embeddings")
_TEXT += ("attention_bias", "attention_dropout", "mlp_bias")
_VISION: tuple[str, ...] = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_VISION += ("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout")
_VISION += ("initializer_factor", "initializer_range", "projection_dim")


@dataclass(frozen=True)
class Parts:
    """What a conversion starts from.

    Attributes:
        folder: Where it came from.
        layout: `llava` or `hf`.
        stage: What is in the folder: `full`, `lora` or `projector` (the latter two on a base).
        language: Weights under the names of LlamaForCausalLM; adapters are merged when they are read.
        projector: Weights under LLaVA's names.
        tower: Weights under `vision_model.*`.
        text: Settings of LlamaConfig, as transformers 4.37 spells them; `vocab_size` is LLaVA's.
        vision: Settings of CLIPVisionConfig.
        tokenizer: Folder with the tokenizer.
        pixels: Settings of CLIP's image processor.
        encoder: An encoder folder with exactly this tower, where one is known.
        aspect_ratio: `pad` or `square`.
        feature_layer: Hidden states of the tower that are read.
        max_length: Tokens at which a row was cut in training.
        base: `path` and `sha256` of the language model, where it was trained on one.
        files: Every weight file that is read.
        notes: For ohd.json.
    """

    folder: Path
    layout: str
    stage: str
    language: dict[str, Stored]
    projector: dict[str, Stored]
    tower: dict[str, Stored]
    text: dict[str, Any]
    vision: dict[str, Any]
    tokenizer: Path
    pixels: dict[str, Any]
    encoder: Encoder | None
    aspect_ratio: str
    feature_layer: int
    max_length: int
    base: dict[str, str] | None
    files: tuple[Path, ...]
    notes: dict[str, Any]

    @property
    def image_tokens(self) -> int:
        """Number of tokens that an image becomes."""
        return int(self.vision["image_size"] // self.vision["patch_size"]) ** 2


def text_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a Llama in the spelling that transformers 4.37 to 5 read.

    Args:
        record: A config.json of Llama or LLaVA, or the `text_config` of HF's; other keys are left out.

    Raises:
        ModelFormatError: not a Llama.
    """
    rope = dict(record.get("rope_parameters") or {})  # transformers 5
    theta = rope.pop("rope_theta", None) or record.get("rope_theta") or 10000.0
    scaling = record.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    given = {key: record[key] for key in _TEXT if key in record}
    try:
        full = LlamaConfig(**given).to_dict()
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"the language model's settings are not those of a Llama: {error}") from error
    made = {key: full[key] for key in _TEXT if key in full}
    kind = {} if scaling is None else {"type": scaling.get("type") or scaling.get("rope_type")}
    return made | {"rope_theta": float(theta), "rope_scaling": None if scaling is None else kind | scaling}


def vision_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a CLIP vision tower that every version reads."""
    full = CLIPVisionConfig(**{key: record[key] for key in _VISION if key in record}).to_dict()
    return {key: full[key] for key in _VISION}


def without_tied_head(folder: Path, language: dict[str, Stored], text: dict[str, Any]) -> dict[str, Stored]:
    """Leaves a head out that is the embedding again.

    Raises:
        ModelFormatError: it is said to be, but is not.
    """
    if not text["tie_word_embeddings"] or TIED not in language:
        return language
    if not torch.equal(language[TIED].read(), language["model.embed_tokens.weight"].read()):
        raise ModelFormatError(f"{folder}/config.json says tie_word_embeddings, but {TIED} is not the embedding")
    return {name: stored for name, stored in language.items() if name != TIED}


def in_type(parts: Parts, dtype: torch.dtype) -> Parts:
    """Returns the same with all weights in one type."""

    def group(weights: dict[str, Stored]) -> dict[str, Stored]:
        return {name: cast(stored, dtype) for name, stored in weights.items()}

    return replace(parts, language=group(parts.language), projector=group(parts.projector), tower=group(parts.tower))


def check(parts: Parts) -> None:
    """Compares names and shapes of all weights with what the settings ask for.

    Raises:
        ModelFormatError: anything is missing, too much, or of another shape.
    """
    with torch.device("meta"):
        language: Any = LlamaForCausalLM(LlamaConfig(**parts.text))
        tower: Any = CLIPVisionModel(CLIPVisionConfig(**parts.vision))
    expected = {name: weight.shape for name, weight in language.state_dict().items()}
    if parts.text["tie_word_embeddings"]:
        expected.pop(TIED, None)
    _compare(parts.folder, "language model", expected, parts.language)
    inside = {f"vision_model.{name.removeprefix('vision_model.')}": w.shape for name, w in tower.state_dict().items()}
    _compare(parts.folder, "tower", {n: s for n, s in inside.items() if not n.endswith("position_ids")}, parts.tower)
    _compare(parts.folder, "projector", _projector(parts), parts.projector)


def _projector(parts: Parts) -> dict[str, Iterable[int]]:
    seen, width = parts.vision["hidden_size"], parts.text["hidden_size"]
    shapes: dict[str, Iterable[int]] = {"mm_projector.0.weight": (width, seen), "mm_projector.2.weight": (width, width)}
    return shapes | {f"mm_projector.{layer}.bias": (width,) for layer in (0, 2)}


def _compare(folder: Path, part: str, expected: Mapping[str, Iterable[int]], found: Mapping[str, Stored]) -> None:
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or more:
        raise ModelFormatError(
            f"{folder}: the {part} is not what its config.json describes"
            + (f"; missing: {some(missing)}" if missing else "")
            + (f"; unexpected: {some(more)}" if more else "")
            + ". Only LLaVA-1.5 is converted: a Llama, a CLIP tower and a projector of two layers"
        )
    for name, shape in expected.items():
        if tuple(shape) != found[name].shape:
            raise ModelFormatError(
                f"{folder}: {name} has shape {list(found[name].shape)}, the settings ask for {list(shape)}; the parts "
                "belong to different models"
            )
