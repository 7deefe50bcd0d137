"""The names under which the parts of a LLaVA-1.5 are stored.

| part           | here, and in LLaVA            | HF, as llava-hf publishes it                             |
|----------------|-------------------------------|----------------------------------------------------------|
| language model | `model.…`, `lm_head.weight`   | `language_model.model.…`, `language_model.lm_head.weight`|
| projector      | `mm_projector.{0,2}.…`        | `multi_modal_projector.linear_{1,2}.…`                   |
| tower          | `vision_model.…`              | `vision_tower.vision_model.…`                            |

LLaVA's whole checkpoints have `model.mm_projector.…` and, where they hold a tower, `model.vision_tower.vision_tower.…`.
HF's are also read as transformers 5 stores them (`model.language_model.…`, `model.vision_tower.encoder.…`), and as its
Trainer does under ZeRO-3 (`language_model.model.model.…`). Only those of llava-hf are written: transformers 4.37 to 5,
vLLM and the rest read them.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from llava_ohd.errors import ModelFormatError

__all__ = ["Place", "hf_name", "of_hf", "of_llava", "places"]

_PROJECTOR = {"mm_projector.0": "multi_modal_projector.linear_1", "mm_projector.2": "multi_modal_projector.linear_2"}
_HF_LANGUAGE = re.compile(r"(?:model\.|language_model\.)+(?P<rest>(?:embed_tokens|layers|norm)\..+)")
_HF_TOWER = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(?P<rest>.+)")


class Place(NamedTuple):
    """Which part of the model a tensor belongs to (`language`, `projector` or `tower`), and its name there."""

    part: str
    name: str


def of_llava(name: str) -> Place:
    """Returns the place of a tensor in a whole checkpoint of LLaVA, `non_lora_trainables.bin` or `mm_projector.bin`."""
    if "vision_tower." in name:
        rest = name.rpartition("vision_tower.")[2].removeprefix("vision_model.")
        return Place("tower", f"vision_model.{rest}")
    if "mm_projector." in name:
        return Place("projector", name[name.index("mm_projector.") :])
    return Place("language", name.removeprefix("base_model.model."))


def of_hf(name: str) -> Place:
    """Returns the place of a tensor in a folder of transformers' LlavaForConditionalGeneration."""
    if match := _HF_TOWER.fullmatch(name):
        return Place("tower", f"vision_model.{match['rest']}")
    for ours, theirs in _PROJECTOR.items():
        if theirs in name:
            return Place("projector", ours + name.partition(theirs)[2])
    if match := _HF_LANGUAGE.fullmatch(name):
        return Place("language", f"model.{match['rest']}")
    return Place("language", "lm_head.weight" if name.endswith("lm_head.weight") else name)


def hf_name(place: Place) -> str:
    """Returns the name of llava-hf."""
    if place.part == "projector":
        layer, leaf = place.name.rsplit(".", 1)
        return f"{_PROJECTOR[layer]}.{leaf}"
    return f"{'vision_tower' if place.part == 'tower' else 'language_model'}.{place.name}"


def places(names: Iterable[str], layout: str) -> dict[Place, str]:
    """Maps the place of every tensor to its name in a file.

    Args:
        names: Those in the file.
        layout: `llava` or `hf`.

    Raises:
        ModelFormatError: two names for one tensor.
    """
    found: dict[Place, str] = {}
    for name in names:
        place = of_llava(name) if layout == "llava" else of_hf(name)
        if place in found:
            raise ModelFormatError(f"{found[place]} and {name} are two names for one tensor; save the model again")
        found[place] = name
    return found
