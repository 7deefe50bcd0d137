"""LLaVA-1.5 put together from a language model folder and an encoder folder.

The parts are transformers' own classes. Two things differ from the llava-hf checkpoints on purpose:

- The vocabulary stays as it is. llava-hf adds rows for `<image>`, which then take part in every softmax; LLaVA has
  none. Here an image token is LLaVA's index -200, and the embedding never sees it.
- The tower is compared with its encoder folder after the model stands, so that no model ever trains or answers with
  another tower than the one that was asked for.

Source: haotian-liu/LLaVA model/llava_arch.py, model/multimodal_projector/builder.py @ c121f04.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.utils.logging import disable_progress_bar

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.llava15.conversation import IMAGE_TOKEN
from llava_ohd.llava15.quantization import Quantization, check_quantized

__all__ = ["build", "image_tokens", "language_model_folder", "without_zero3"]

_HUB_FILES = ("*.json", "*.safetensors", "pytorch_model*.bin", "tokenizer.model")


def language_model_folder(name_or_path: str) -> Path:
    """Returns the folder of a language model, downloading one that is named like a Hub repository.

    Raises:
        ModelNotFound: neither an existing folder nor a repository that can be reached.
        ModelFormatError: it is a LLaVA model already.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if str(_kind(folder)).startswith("llava"):
            raise ModelFormatError(f"{folder} is a LLaVA model already; give its language model (for 1.5: Vicuna)")
        return folder.resolve()
    if name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise ModelNotFound(f"language model {name_or_path} is not a folder; check --model_name_or_path")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # whatever the network, the proxy or the Hub answers
        raise ModelNotFound(
            f"language model {name_or_path} is not a folder, and the Hub does not give it ({error}); download it, and "
            "give the folder as --model_name_or_path"
        ) from None


def image_tokens(encoder: tower.Encoder) -> int:
    """Returns the number of patches of one image: what each `<image>` becomes."""
    return (encoder.image_size // encoder.patch_size) ** 2


def build(
    language_model: Path,
    encoder: tower.Encoder,
    *,
    feature_layer: int = -2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    quantization: Quantization | None = None,
    attention: str = "sdpa",
) -> LlavaForConditionalGeneration:
    """Puts the model together; every weight is loaded but the projector, which is random.

    Args:
        language_model: Folder of a Llama model, or one that stage full wrote, of which the Llama model is taken.
        encoder: A checked encoder.
        feature_layer: Which hidden states of the tower are read; LLaVA-1.5: -2, without the class token.
        dtype: Type of all weights.
        seed: Of the projector, whose layers start as PyTorch's linear layers do (as in LLaVA).
        quantization: Of the language model; None: it has `dtype` too.
        attention: transformers' name of the language model's attention: `sdpa`, `flash_attention_2`.

    Raises:
        ModelFormatError: the folder holds no Llama model, or not all of its weights; or the tower has no such layer.
        EncoderFormatError: the encoder folder is damaged, or the model ended up with another tower.
    """
    disable_progress_bar()  # of every rank, for every file
    with without_zero3():
        clip: Any = tower.load(encoder.path)
    clip.to(dtype)
    layers = clip.config.vision_config.num_hidden_layers
    if not -layers - 1 <= feature_layer <= layers:
        raise ModelFormatError(
            f"--mm_vision_select_layer {feature_layer}: encoder {encoder.name!r} has {layers} layers; give a number "
            f"from {-layers - 1} to {layers} (LLaVA-1.5: -2)"
        )
    language = _language_model(language_model, dtype, attention, quantization)
    with without_zero3():
        config = LlavaConfig(
            vision_config=clip.config.vision_config,
            text_config=language.config,
            image_token_index=IMAGE_TOKEN,
            image_seq_length=image_tokens(encoder),
            vision_feature_layer=feature_layer,
        )
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.model.multi_modal_projector = LlavaMultiModalProjector(config).to(dtype)
    model.model.vision_tower = clip.vision_model
    model.model.language_model = language.model
    language.config._attn_implementation = attention  # the model above, which shares it, has set its own
    model.lm_head = language.lm_head
    model.get_input_embeddings().register_forward_pre_hook(_without_image_tokens)
    tower.verify(model, encoder, exact=True)
    if quantization is not None:
        check_quantized(model)
        # what peft asks the outermost model to choose its layers
        setattr(model, f"is_loaded_in_{quantization.bits}bit", True)
    return model.eval()


def _without_image_tokens(_: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # The features of the image overwrite whatever embedding stands there.
    return (arguments[0].clamp(min=0),)


class _Language(LlamaForCausalLM):
    """The language model, also out of a folder that holds projector and tower beside it."""

    _keys_to_ignore_on_load_unexpected = [r"\.mm_projector\.", r"\.vision_tower\."]  # noqa: RUF012


def _kind(folder: Path) -> str | None:
    file = folder / "config.json"
    return read_json(file).get("model_type") if file.is_file() else None


def _language_model(
    folder: Path, dtype: torch.dtype, attention: str, quantization: Quantization | None
) -> LlamaForCausalLM:
    kind = _kind(folder)
    if kind not in ("llama", "llava_llama"):
        raise ModelFormatError(f"{folder}/config.json has model_type {kind!r}; LLaVA-1.5 needs a Llama model ('llama')")
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    if quantization is not None:
        options["quantization_config"] = quantization.config(dtype)
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    try:
        config = LlamaConfig.from_dict(read_json(folder / "config.json") | {"model_type": "llama"})
        loaded: Any = _Language.from_pretrained(folder, config=config, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # the last: flash attention is not installed
        raise ModelFormatError(f"{folder} cannot be loaded as a Llama model: {error}") from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelFormatError(f"{folder} lacks {len(wrong)} weights, first {wrong[0]}; copy the folder again")
    model.config.use_cache = False  # of no use in training; who generates asks for it
    return model


@contextlib.contextmanager
def without_zero3() -> Iterator[None]:
    """Builds modules whole where transformers would split them over the ranks; DeepSpeed splits them when it starts."""
    config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config
