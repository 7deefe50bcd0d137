"""Opens an HF folder: what this package exported, llava-hf's, or what transformers 4 or 5 saved."""

from pathlib import Path
from typing import Any

from llava_ohd.errors import ModelFormatError
from llava_ohd.files import read_json, sha256_file
from llava_ohd.llava15.convert.images import read_pixels, says_pad
from llava_ohd.llava15.convert.names import places
from llava_ohd.llava15.convert.parts import Parts, text_config, vision_config, without_tied_head
from llava_ohd.llava15.convert.stored import Stored, in_files, weight_files
from llava_ohd.llava15.convert.vocabulary import reduced

__all__ = ["KIND", "open_hf"]

KIND = "llava-hf"
"""`kind` in ohd.json of an exported HF folder."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "projector_hidden_act": ("gelu",),
    "vision_feature_select_strategy": ("default",),
    "multimodal_projector_bias": (True,),
    "quantization_config": (None,),
}


def open_hf(folder: Path, config: dict[str, Any], aspect_ratio: str | None) -> Parts:
    """Opens an HF folder; the rows that it has for `<image>` and `<pad>` are left out.

    Args:
        folder: The folder.
        config: Its config.json.
        aspect_ratio: `pad` or `square` where the folder does not say it; else it must be what the folder says.

    Raises:
        ModelFormatError: incomplete, altered, or not a LLaVA-1.5.
    """
    _check_settings(folder, config)
    record = _record(folder)
    files = weight_files(folder)
    found = in_files(files)
    parts: dict[str, dict[str, Stored]] = {"language": {}, "projector": {}, "tower": {}}
    for place, name in places(found, "hf").items():
        parts[place.part][place.name] = found[name]
    rows = record.get("vocabulary") or config.get("image_token_index", config.get("image_token_id", 32000))
    text = text_config(config["text_config"])
    text["tie_word_embeddings"] = bool(text["tie_word_embeddings"] or config.get("tie_word_embeddings"))
    if rows > text["vocab_size"]:
        raise ModelFormatError(f"{folder}: <image> is token {rows}, beyond the vocabulary of {text['vocab_size']} rows")
    flags = record.get("config", {})
    return Parts(
        folder=folder,
        layout="hf",
        stage="full",
        language=reduced(without_tied_head(folder, parts["language"], text), rows),
        projector=parts["projector"],
        tower=parts["tower"],
        text=text | {"vocab_size": rows},
        vision=vision_config(config["vision_config"]),
        tokenizer=folder,
        pixels=read_pixels(folder),
        encoder=None,
        aspect_ratio=_aspect_ratio(folder, aspect_ratio, bool(record)),
        feature_layer=config.get("vision_feature_layer", -2),
        max_length=flags.get("model_max_length", 2048),
        base=None,
        files=tuple(files),
        notes={"encoder": record["encoder"]} if record else {},
    )


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    for key, values in _ONLY.items():
        if (value := config.get(key, values[0])) not in values:
            raise ModelFormatError(f"{folder}/config.json: {key} is {value!r}; only {values[0]!r} is LLaVA-1.5")
    for part, kind in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
        if (value := config[part].get("model_type", kind)) != kind:
            raise ModelFormatError(f"{folder}/config.json: {part} is {value!r}; only {kind!r} is LLaVA-1.5")
    if not isinstance(layer := config.get("vision_feature_layer", -2), int):
        raise ModelFormatError(f"{folder}/config.json: vision_feature_layer is {layer!r}; one number is expected")


def _record(folder: Path) -> dict[str, Any]:
    """Reads and checks ohd.json; empty where there is none."""
    if not (folder / "ohd.json").is_file():
        return {}
    record = read_json(folder / "ohd.json")
    if record.get("kind") != KIND:
        raise ModelFormatError(f"{folder}/ohd.json is of kind {record.get('kind')!r}; {KIND!r} is expected")
    for name, digest in record["weights"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise ModelFormatError(
                f"{folder / name} is missing or was altered; copy the folder again, or convert again"
            )
    return dict(record)


def _aspect_ratio(folder: Path, given: str | None, ours: bool) -> str:
    pads = says_pad(folder)
    if given is None and not pads and not ours:
        raise ModelFormatError(
            f"the image processor of {folder} does not pad, though LLaVA-1.5 was trained with padded images, also "
            "where llava-hf publishes it; say --image_aspect_ratio pad, or square to go on cutting the middle out"
        )
    said = "pad" if pads else "square"
    if given not in (None, said) and (pads or ours):
        raise ModelFormatError(f"{folder} says do_pad {pads}, --image_aspect_ratio is {given}; leave the flag out")
    return given or said
