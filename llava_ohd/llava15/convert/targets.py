"""Writes what a conversion makes: HF's layout, LLaVA's, or the projector alone. ohd.json is written last.

Source: llava-hf/llava-1.5-7b-hf; haotian-liu/LLaVA model/builder.py @ c121f04.
"""

from pathlib import Path
from typing import Any

from llava_ohd.errors import ModelFormatError
from llava_ohd.files import sha256_file, sha256_json, write_json, write_text
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import SYSTEM
from llava_ohd.llava15.convert.hf_source import KIND
from llava_ohd.llava15.convert.images import for_hf, for_llava
from llava_ohd.llava15.convert.names import Place, hf_name
from llava_ohd.llava15.convert.parts import Parts
from llava_ohd.llava15.convert.shards import write_shards
from llava_ohd.llava15.convert.tokenizer_files import pieces_of, write_for_hf, write_for_llava
from llava_ohd.llava15.convert.towers import BESIDE, digest
from llava_ohd.llava15.convert.vocabulary import ADDED, extended, rows_for
from llava_ohd.results import versions

__all__ = ["CHAT_TEMPLATE", "write_hf", "write_llava", "write_projector"]

_FORMAT = 1  # of ohd.json
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '" + SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's template v1, with its system text unless another is given; llava-hf's own has none."""


def _type(parts: Parts) -> str:
    return str(parts.language["model.norm.weight"].dtype).removeprefix("torch.")


def write_hf(parts: Parts, folder: Path, max_bytes: int) -> None:
    """Writes a folder for transformers 4.37 to 5, vLLM and everything else that reads llava-hf's.

    Args:
        parts: The model.
        folder: An empty folder.
        max_bytes: Most bytes per weight file.
    """
    added = write_for_hf(parts.tokenizer, folder, parts.max_length, CHAT_TEMPLATE)
    rows = rows_for(parts.text["vocab_size"], pieces_of(parts.tokenizer))
    tokens = {"bos_token_id": parts.text["bos_token_id"], "eos_token_id": parts.text["eos_token_id"]}
    tokens |= {"pad_token_id": added[ADDED[1]]}
    text = parts.text | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "ignore_index": -100,
        "image_token_index": added[ADDED[0]],
        "image_seq_length": parts.image_tokens,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": parts.feature_layer,
        "vision_feature_select_strategy": "default",
        "text_config": text | {"torch_dtype": _type(parts)},
        "vision_config": parts.vision | {"model_type": "clip_vision_model", "torch_dtype": _type(parts)},
        "tie_word_embeddings": parts.text["tie_word_embeddings"],
        "torch_dtype": _type(parts),
    }
    write_json(folder / "config.json", config | tokens)
    write_json(folder / "generation_config.json", tokens)
    write_json(folder / "preprocessor_config.json", for_hf(parts.pixels, parts.aspect_ratio))
    seen = {"patch_size": parts.vision["patch_size"], "num_additional_image_tokens": 1, "image_token": ADDED[0]}
    seen |= {"vision_feature_select_strategy": "default", "processor_class": "LlavaProcessor"}
    write_json(folder / "processor_config.json", seen)
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    tensors = {
        hf_name(Place(part, name)): stored
        for part, group in (
            ("language", extended(parts.language, rows)),
            ("projector", parts.projector),
            ("tower", parts.tower),
        )
        for name, stored in group.items()
    }
    sums = write_shards(folder, tensors, max_bytes)
    encoder = _known_encoder(parts) or {"path": "", "digest": digest(parts.tower), "name": "inside"}
    made = {"vocabulary": parts.text["vocab_size"], "encoder": encoder}
    _write_record(folder, parts, made | {"weights": sums}, kind=KIND)


def write_llava(parts: Parts, folder: Path, final: Path, max_bytes: int) -> None:
    """Writes a whole checkpoint that the unmodified LLaVA loads; a tower that no encoder folder has goes beside it.

    Args:
        parts: The model.
        folder: An empty folder.
        final: Where the folder will lie in the end.
        max_bytes: Most bytes per weight file.

    Raises:
        ModelFormatError: LLaVA would take the folder for another kind of model by its name.
    """
    wrong = [word for word in ("lora", "mpt", "mistral") if word in final.name.lower()]
    if "llava" not in final.name.lower() or wrong:
        raise ModelFormatError(
            f"LLaVA decides by its name how to load a folder, and {final.name!r} would not be loaded as a whole LLaVA "
            "on Llama; give an --out whose last part has 'llava' and none of 'lora', 'mpt', 'mistral' in it"
        )
    write_for_llava(parts.tokenizer, folder, parts.max_length)
    encoder = _known_encoder(parts) or _write_tower(parts, folder, final)
    write_json(folder / "config.json", _llava_config(parts, final / encoder["path"]))
    tokens = ("bos_token_id", "eos_token_id")
    write_json(folder / "generation_config.json", {key: parts.text[key] for key in tokens} | {"pad_token_id": 0})
    sums = write_shards(
        folder,
        parts.language | {f"model.{name}": stored for name, stored in parts.projector.items()},
        max_bytes,
    )
    _write_record(folder, parts, _training_record(parts, encoder, "full") | {"weights": sums}, kind="llava")


def write_projector(parts: Parts, folder: Path, final: Path) -> None:
    """Writes the projector alone, as stage projector does.

    Args:
        parts: The model.
        folder: An empty folder.
        final: Where the folder will lie in the end.
    """
    encoder = _known_encoder(parts) or _write_tower(parts, folder, final)
    record = _training_record(parts, encoder, "projector")
    config = _llava_config(parts, final / encoder["path"]) | {"tune_mm_mlp_adapter": True}
    weights = {f"model.{name}": stored.read().to(stored.dtype) for name, stored in parts.projector.items()}
    model_dir.write(folder, weights, record | {"converted": _origin(parts)}, config)


def _known_encoder(parts: Parts) -> dict[str, str] | None:
    known = parts.encoder
    return None if known is None else {"path": str(known.path), "digest": known.digest, "name": known.name}


def _write_tower(parts: Parts, folder: Path, final: Path) -> dict[str, str]:
    """Writes the tower that is inside a model as a folder that `--vision_tower` takes; a CLIP without text tower."""
    place = folder / BESIDE
    place.mkdir()
    head = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    write_json(place / "config.json", head | parts.vision)
    write_json(place / "preprocessor_config.json", for_llava(parts.pixels))
    write_shards(place, parts.tower, 2**62)
    return {"path": BESIDE, "digest": digest(parts.tower), "name": final.name}


def _llava_config(parts: Parts, encoder: Path) -> dict[str, Any]:
    return parts.text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": _type(parts),
        "use_cache": True,
        "mm_vision_tower": str(encoder),
        "mm_hidden_size": parts.vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": parts.feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": parts.aspect_ratio,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": parts.max_length,
    }


def _training_record(parts: Parts, encoder: dict[str, str], stage: str) -> dict[str, Any]:
    """Returns what ohd.json of a model folder says, for what was not trained but converted."""
    flags = {"mm_vision_select_layer": parts.feature_layer, "image_aspect_ratio": parts.aspect_ratio}
    flags |= {"model_max_length": parts.max_length, "mm_projector_type": "mlp2x_gelu"}
    base = parts.base or {"path": str(parts.folder), "sha256": model_dir.base_sha256(parts.folder)}
    return {"stage": stage, "encoder": encoder, "base": base, "config": flags}


def _origin(parts: Parts) -> dict[str, Any]:
    sums = {file.name: sha256_file(file) for file in parts.files}
    made = {"path": str(parts.folder), "layout": parts.layout, "stage": parts.stage, "sha256": sha256_json(sums)}
    return made | {"trained_on": parts.notes["trained_on"]} if "trained_on" in parts.notes else made


def _write_record(folder: Path, parts: Parts, record: dict[str, Any], kind: str) -> None:
    flags = {"image_aspect_ratio": parts.aspect_ratio, "model_max_length": parts.max_length}
    flags |= {"mm_vision_select_layer": parts.feature_layer}
    head = {"format": _FORMAT, "kind": kind, "converted": _origin(parts), "config": flags}
    write_json(folder / "ohd.json", head | record | {"versions": versions()})
