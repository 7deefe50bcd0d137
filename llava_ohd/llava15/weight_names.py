"""Names of weights: transformers' and peft's in a live model, LLaVA's in every file, and which part each belongs to.

    model.multi_modal_projector.linear_1.*      model.mm_projector.0.*
    model.vision_tower.*                        model.vision_tower.vision_tower.vision_model.*
    model.language_model.*                      model.*
    ....lora_A.default.weight                   ....lora_A.weight

LLaVA's names are those of the files that transformers 4.37 reads.
"""

import re

__all__ = ["ADAPTED", "LANGUAGE_LINEARS", "PROJECTOR", "TOWER", "llava_name", "part_of"]

PROJECTOR = {"mm_projector.0": "multi_modal_projector.linear_1", "mm_projector.2": "multi_modal_projector.linear_2"}
"""LLaVA's name of each layer of the projector, and transformers'."""
TOWER = "model.vision_tower.vision_tower."
"""What an encoder's name of a weight (`vision_model.*`) is behind, in LLaVA's files."""
_LINEARS = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LANGUAGE_LINEARS = rf"model\.language_model\.{_LINEARS}"
"""Full names of the modules that get LoRA. CLIP and Llama share the last part of the names, so the path decides."""
ADAPTED = rf"model\.{_LINEARS}"
"""The same modules by LLaVA's names."""


def llava_name(name: str) -> str:
    """Returns LLaVA's name of a parameter that transformers and peft name otherwise."""
    for theirs, ours in PROJECTOR.items():
        name = name.replace(ours, theirs)
    name = name.replace("model.language_model.", "model.").replace(".default.weight", ".weight")
    return re.sub(r"model\.vision_tower\.(vision_model\.)?", f"{TOWER}vision_model.", name)


def part_of(name: str) -> str:
    """Returns `projector`, `tower`, `adapter` or `language model`, for the name of a parameter in a live model."""
    if "multi_modal_projector." in name:
        return "projector"
    if "vision_tower." in name:
        return "tower"
    return "adapter" if ".lora_" in name else "language model"
