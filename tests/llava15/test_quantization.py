"""A language model quantised in memory: only its layers, close to what they were, and never wrong without a word."""

import pytest
import torch
from torch import nn

from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15.quantization import Quantization, quantize

pytest.importorskip("bitsandbytes")


def model(width: int) -> nn.Module:
    """Modules that have the names of a LLaVA's."""

    def branch(**parts: nn.Module) -> nn.Module:
        found = nn.Module()
        for name, part in parts.items():
            found.add_module(name, part)
        return found

    torch.manual_seed(0)
    layer = branch(self_attn=branch(q_proj=nn.Linear(width, 96, bias=False)), mlp=branch(up_proj=nn.Linear(width, 64)))
    language = branch(layers=nn.ModuleList([layer]))
    inner = branch(
        language_model=language,
        vision_tower=branch(q_proj=nn.Linear(width, 32)),
        multi_modal_projector=branch(linear_1=nn.Linear(32, width)),
    )
    return branch(model=inner, lm_head=nn.Linear(width, 10)).eval()


@pytest.mark.parametrize(("bits", "lost"), [(8, 0.02), (4, 0.13)])
def test_the_layers_of_the_language_model_and_nothing_else(bits: int, lost: float) -> None:
    plain, small = model(128), model(128)
    quantize(small, Quantization(bits))
    small.to("cpu")
    states = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    changed = []
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear) and layer.in_features == 128:
            with torch.inference_mode():
                expected, found = layer(states), small.get_submodule(name)(states)
            error = float((found - expected).norm() / expected.norm())
            assert error < lost
            if error:
                changed.append(name)
    assert changed == ["model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.0.mlp.up_proj"]


def test_a_width_that_is_rounded_wrongly_on_a_cpu_is_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"has 160 inputs; with 4 bits .* give --bits 8 or 16"):
        quantize(model(160), Quantization(4))
