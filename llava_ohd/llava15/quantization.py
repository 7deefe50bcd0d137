"""The language model in 4 or 8 bits (QLoRA), by bitsandbytes; on a GPU, and on a CPU too.

Only the linear layers of the language model are quantised: never tower, projector, embedding or head. What is quantised
stays frozen; adapters, and the projector, train beside it in the type of the model.

Source: arXiv 2305.14314; haotian-liu/LLaVA train/train.py (`bnb_model_from_pretrained_args`) @ c121f04.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava_ohd.errors import MissingDependency, ModelFormatError
from llava_ohd.llava15.weight_names import LANGUAGE_LINEARS

__all__ = ["Quantization", "check_quantized", "quantize"]

_CLASSES = ("Linear4bit", "Linear8bitLt")
_BLOCK = 64  # weights that share a scale with 4 bits; bitsandbytes 0.50.2 takes the wrong ones for other widths
_OUTLIERS = 6.0  # inputs above it are not quantised with 8 bits; transformers' default, and that of LLM.int8


@dataclass(frozen=True)
class Quantization:
    """How the language model is quantised.

    Attributes:
        bits: 4 or 8.
        quant_type: With 4 bits: `nf4` or `fp4`.
        double_quant: With 4 bits: quantise the scales as well.
    """

    bits: int
    quant_type: str = "nf4"
    double_quant: bool = True

    def library(self) -> Any:
        """Returns bitsandbytes.

        Raises:
            MissingDependency: it is not installed.
        """
        try:
            import bitsandbytes
        except ImportError as error:
            raise MissingDependency(
                f"--bits {self.bits} needs bitsandbytes ({error}); install it: pip install 'llava_ohd[quant]'"
            ) from None
        return bitsandbytes

    def config(self, dtype: torch.dtype) -> Any:
        """Returns the `BitsAndBytesConfig` for a language model that computes in `dtype`.

        Raises:
            MissingDependency: bitsandbytes is not installed.
        """
        self.library()
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=self.bits == 4,
            load_in_8bit=self.bits == 8,
            llm_int8_skip_modules=["lm_head"],
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
        )


def quantize(model: nn.Module, quantization: Quantization) -> None:
    """Quantises the language model of a LLaVA that has its weights, where it is: on the device it is moved to later.

    Raises:
        MissingDependency: bitsandbytes is not installed.
        ModelFormatError: something else than the language model's layers would be quantised, or the layers are of a
            width that bitsandbytes gets wrong on a CPU.
    """
    library = quantization.library()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(LANGUAGE_LINEARS, name):
            if quantization.bits == 4 and module.in_features % _BLOCK:
                raise ModelFormatError(
                    f"{name} has {module.in_features} inputs; with 4 bits bitsandbytes rounds layers wrongly on a CPU "
                    f"unless that is a multiple of {_BLOCK}; give --bits 8 or 16"
                )
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _quantized(library, module, quantization))
    check_quantized(model)


def _quantized(library: Any, linear: nn.Linear, quantization: Quantization) -> nn.Module:
    """Returns a layer of bitsandbytes with the weights of a plain one; it quantises them when it is moved."""
    sizes = (linear.in_features, linear.out_features)
    made: Any
    if quantization.bits == 8:
        made = library.nn.Linear8bitLt(
            *sizes, bias=linear.bias is not None, has_fp16_weights=False, threshold=_OUTLIERS
        )
        made.weight = library.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        how = {"compress_statistics": quantization.double_quant, "quant_type": quantization.quant_type}
        made = library.nn.Linear4bit(*sizes, bias=linear.bias is not None, compute_dtype=linear.weight.dtype, **how)
        made.weight = library.nn.Params4bit(linear.weight.data, requires_grad=False, **how)
    if linear.bias is not None:
        made.bias = linear.bias
    return made


def check_quantized(model: nn.Module) -> None:
    """Checks that the linear layers of the language model, and nothing else, are quantised.

    Raises:
        ModelFormatError: one more or one less is; the message names it.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = {name for name, module in linears.items() if type(module).__name__ in _CLASSES}
    expected = {name for name in linears if re.fullmatch(LANGUAGE_LINEARS, name)}
    if wrong := sorted(quantized ^ expected):
        raise ModelFormatError(
            f"{wrong[0]} is {'' if wrong[0] in quantized else 'not '}quantised ({len(wrong)} modules like it); only "
            "the layers of the language model should be. This version of transformers or bitsandbytes is not "
            "supported: install those of constraints.txt, or train with --bits 16"
        )
