"""Opens what can be converted, and checks that its parts belong together.

| source                                        | language model from | tower from                               |
|-----------------------------------------------|---------------------|------------------------------------------|
| model folder of scripts/finetune_llava.py     | itself, or its base | the encoder that it records, or itself   |
| LLaVA's whole checkpoint                      | itself              | `mm_vision_tower`, or itself (`unfreeze`)|
| LLaVA's LoRA folder, LLaVA's mm_projector.bin | `base`              | `mm_vision_tower`                        |
| HF folder (LlavaForConditionalGeneration)     | itself              | itself                                   |

Source: haotian-liu/LLaVA model/builder.py @ c121f04; llava-hf/llava-1.5-7b-hf.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.convert.hf_source import open_hf
from llava_ohd.llava15.convert.merging import adapter_file, merged
from llava_ohd.llava15.convert.names import places
from llava_ohd.llava15.convert.parts import Parts, check, text_config, without_tied_head
from llava_ohd.llava15.convert.stored import Stored, has_weight_files, in_files, weight_files
from llava_ohd.llava15.convert.towers import digest, encoder_of_hf, of_encoder, of_llava, of_ours, same
from llava_ohd.tower.same_tower import check_geometry

__all__ = ["open_source", "with_encoder"]

_ONLY: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("pad", "square"),
    "quantization_config": (None,),
}


def open_source(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    encoder: str | Path | None = None,
    aspect_ratio: str | None = None,
) -> Parts:
    """Opens a model folder of any layout.

    Args:
        folder: The model.
        base: Language model that a LoRA or projector of the original LLaVA is loaded on.
        encoder: Where the encoder is that it was trained on; left out, where the folder says.
        aspect_ratio: `pad` or `square`, for HF folders that do not say which.

    Raises:
        ModelNotFound, EncoderNotFound: a folder is gone, or the base is not known.
        ModelFormatError: incomplete, altered, not a LLaVA-1.5, or of parts that do not belong together.
        EncoderFormatError: the encoder is another than the one it was trained on.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give a model folder of LLaVA or HF")
    config = read_json(folder / "config.json")
    if config.get("model_type") == "llava" and "text_config" in config:
        parts = open_hf(folder, config, aspect_ratio)
        recorded = parts.notes.get("encoder", {})
        parts = replace(parts, encoder=encoder_of_hf(folder, parts.tower, recorded, encoder))
    elif "mm_vision_tower" in config:
        parts = _open_llava(folder, config, base, encoder)
    else:
        raise ModelFormatError(
            f"{folder}/config.json has model_type {config.get('model_type')!r} and no mm_vision_tower; a LLaVA-1.5 in "
            "LLaVA's or HF's layout is expected"
        )
    check(parts)
    return parts


def with_encoder(parts: Parts, name: str | Path) -> Parts:
    """Puts another encoder of the same geometry into a model (the swap without training of the OHD-Caps paper).

    Raises:
        EncoderNotFound: no such encoder.
        EncoderFormatError: damaged, or of another geometry.
    """
    encoder = tower.check(tower.resolve(name))
    eyes = of_encoder(encoder)
    check_geometry(CLIPVisionConfig(**parts.vision), CLIPVisionConfig(**eyes.vision), encoder.name)
    return replace(
        parts,
        tower=eyes.weights,
        vision=eyes.vision,
        pixels=eyes.pixels,
        encoder=encoder,
        files=(*parts.files, eyes.file),
        notes=parts.notes | {"trained_on": parts.notes.get("trained_on") or digest(parts.tower)},
    )


def _open_llava(folder: Path, config: dict[str, Any], base: str | Path | None, encoder: str | Path | None) -> Parts:
    for key, values in _ONLY.items():
        if (value := config.get(key, values[0])) not in values:
            raise ModelFormatError(f"{folder}/config.json: {key} is {value!r}; only {values[0]!r} is LLaVA-1.5")
    ours = model_dir.read(folder) if (folder / "ohd.json").is_file() else None
    place = folder if _is_whole(folder) else _base(folder, ours, base)
    stage = "full" if place == folder else "lora" if adapter_file(folder) else "projector"
    files = weight_files(place)
    own = files if stage == "full" else [_beside(folder, stage)]
    eyes = of_ours(ours, encoder) if ours else of_llava(folder, _if_llava(place, folder), encoder)
    # Ours has a trained tower in an encoder folder too, complete and with a digest.
    inside = _part(own, "tower") if config.get("unfreeze_mm_vision_tower") and ours is None else {}
    text = text_config(config)
    language = merged(_part(files, "language"), folder) if stage == "lora" else _part(files, "language")
    adapter = [adapter_file(folder)] if stage == "lora" else []
    return Parts(
        folder=folder,
        layout="llava",
        stage=stage,
        language=without_tied_head(folder, language, text),
        projector=_part(own, "projector"),
        tower=inside or eyes.weights,
        text=text,
        vision=eyes.vision,
        tokenizer=place,
        pixels=eyes.pixels,
        encoder=eyes.encoder if not inside or (eyes.encoder and same(inside, eyes.encoder)) else None,
        aspect_ratio=config.get("image_aspect_ratio", "square"),
        feature_layer=config.get("mm_vision_select_layer", -2),
        max_length=config.get("tokenizer_model_max_length", 2048),
        base=None if stage == "full" else {"path": str(place), "sha256": model_dir.base_sha256(place)},
        files=tuple(file for file in dict.fromkeys([*files, *own, *adapter, eyes.file]) if file),
        notes={"trained_on": ours.swapped["trained_on"]["digest"]} if ours and ours.swapped else {},
    )


def _if_llava(base: Path, folder: Path) -> Path | None:
    """Returns the base of a checkpoint where that is a LLaVA itself."""
    return base if base != folder and "mm_vision_tower" in read_json(base / "config.json") else None


def _is_whole(folder: Path) -> bool:
    """Says whether a checkpoint of LLaVA holds its language model, so that it needs no base."""
    return has_weight_files(folder) and any(n.endswith("embed_tokens.weight") for n in in_files(weight_files(folder)))


def _part(files: list[Path], part: str) -> dict[str, Stored]:
    found = in_files(files)
    return {place.name: found[name] for place, name in places(found, "llava").items() if place.part == part}


def _base(folder: Path, ours: model_dir.ModelDir | None, given: str | Path | None) -> Path:
    """Returns the language model of a LoRA or a projector."""
    if ours is not None and (given is None or Path(given).resolve() == Path(ours.base["path"]).resolve()):
        return model_dir.base_of(ours)
    if ours is not None:
        return model_dir.base_of(replace(ours, base=ours.base | {"path": str(Path(str(given)).resolve())}))
    config = folder / "adapter_config.json"
    named = given or (read_json(config).get("base_model_name_or_path") if config.is_file() else None)
    if named is None or not Path(named).expanduser().is_dir():
        raise ModelNotFound(
            f"{folder} holds no language model, and {named or 'no base'} is not a folder; give the one that it was "
            "trained on as --base (LLaVA's model_base)"
        )
    return Path(named).expanduser().resolve()


def _beside(folder: Path, stage: str) -> Path:
    stem = "non_lora_trainables" if stage == "lora" else "mm_projector"
    for name in (f"{stem}.safetensors", f"{stem}.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ModelFormatError(f"{folder} has no {stem}.bin: the projector is missing; copy the folder again")
