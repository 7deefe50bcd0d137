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
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.convert.hf_source import open_hf
from llava_ohd.llava15.convert.images import read_pixels
from llava_ohd.llava15.convert.merging import adapter_file, merged
from llava_ohd.llava15.convert.names import places
from llava_ohd.llava15.convert.parts import TIED, Parts, check, text_config, vision_config
from llava_ohd.llava15.convert.stored import Stored, in_files, weight_files
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.llava_checkpoints import find_encoder
from llava_ohd.tower.llava_files import is_full
from llava_ohd.tower.same_tower import check_geometry
from llava_ohd.tower.weights import TOWER_PREFIX, same_weight, weights_file

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
        parts = replace(parts, encoder=_encoder_of_hf(parts, encoder))
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
    config = read_config(encoder.path).vision_config
    check_geometry(CLIPVisionConfig(**parts.vision), config, encoder.name)
    trained = {"trained_on": parts.encoder.digest if parts.encoder else "the tower inside the source"}
    weights, file = _weights_of(encoder)
    return replace(
        parts,
        tower=weights,
        vision=vision_config(config.to_dict()),
        pixels=read_pixels(encoder.path),
        encoder=encoder,
        files=(*parts.files, file),
        notes=parts.notes | trained,
    )


def _weights_of(encoder: tower.Encoder) -> tuple[dict[str, Stored], Path]:
    file = weights_file(encoder.path)
    return {name: s for name, s in in_files([file]).items() if name.startswith(TOWER_PREFIX)}, file


def _open_llava(folder: Path, config: dict[str, Any], base: str | Path | None, encoder: str | Path | None) -> Parts:
    for key, values in _ONLY.items():
        if (value := config.get(key, values[0])) not in values:
            raise ModelFormatError(f"{folder}/config.json: {key} is {value!r}; only {values[0]!r} is LLaVA-1.5")
    ours = _read_ours(folder)
    place = folder if is_full(folder) else _base(folder, ours, base)
    stage = "full" if place == folder else "lora" if adapter_file(folder) else "projector"
    files = weight_files(place)
    language = _part(files, "language")
    if stage == "lora":
        language = merged(language, folder)
    text = text_config(config)
    if text["tie_word_embeddings"]:
        language.pop(TIED, None)
    own = files if stage == "full" else [_beside(folder, stage)]
    inside = _part(own, "tower") if config.get("unfreeze_mm_vision_tower") else {}
    known = _encoder_of_llava(folder, ours, None if stage == "full" else place, encoder)
    weights, file = _weights_of(known)
    adapter = [found for found in (adapter_file(folder),) if found is not None and stage == "lora"]
    return Parts(
        folder=folder,
        layout="llava",
        stage=stage,
        language=language,
        projector=_part(own, "projector"),
        tower=inside or weights,
        text=text,
        vision=vision_config(read_config(known.path).vision_config.to_dict()),
        tokenizer=place,
        pixels=read_pixels(known.path),
        encoder=known if not inside or _same(inside, known) else None,
        aspect_ratio=config.get("image_aspect_ratio", "square"),
        feature_layer=config.get("mm_vision_select_layer", -2),
        max_length=config.get("tokenizer_model_max_length", 2048),
        base=None if stage == "full" else {"path": str(place), "sha256": model_dir.base_sha256(place)},
        files=(*files, *(own if stage != "full" else ()), *adapter, *(() if inside else (file,))),
        notes={},
    )


def _part(files: list[Path], part: str) -> dict[str, Stored]:
    found = in_files(files)
    return {place.name: found[name] for place, name in places(found, "llava").items() if place.part == part}


def _read_ours(folder: Path) -> model_dir.ModelDir | None:
    return model_dir.read(folder) if (folder / "ohd.json").is_file() else None


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


def _encoder_of_llava(
    folder: Path, ours: model_dir.ModelDir | None, base: Path | None, given: str | Path | None
) -> tower.Encoder:
    """Returns the encoder that a checkpoint of LLaVA was trained on, or laid its own tower over.

    Raises:
        EncoderFormatError: another than the checkpoint records.
        EncoderNotFound: it is not where the checkpoint says, and `given` is None.
        ModelFormatError: the original LLaVA would silently use another tower.
    """
    here = tower.check(tower.resolve(given)) if given is not None else None
    if ours is not None:
        if here is None:
            return model_dir.encoder_of(ours)
        if here.digest != ours.encoder["digest"]:
            raise EncoderFormatError(
                f"{folder} was trained on the encoder with digest {ours.encoder['digest'][:12]}, --encoder {given} has "
                f"{here.digest[:12]}; give the right one, or --swap_encoder {given} where another is meant"
            )
        return here
    try:
        llava = base if base is not None and "mm_vision_tower" in read_json(base / "config.json") else None
        checked = tower.check_llava_checkpoint(folder, llava)
    except EncoderNotFound:
        if here is None:
            raise
        return here
    named = checked or tower.check(find_encoder(read_json(folder / "config.json")["mm_vision_tower"], folder))
    if here is not None and here.digest != named.digest:
        raise EncoderFormatError(
            f"{folder} names the encoder {named.path} (digest {named.digest[:12]}), --encoder {given} has "
            f"{here.digest[:12]}; leave it out, or give --swap_encoder {given} where another is meant"
        )
    return here or named


def _encoder_of_hf(parts: Parts, given: str | Path | None) -> tower.Encoder | None:
    """Returns an encoder folder with the tower that is inside an HF folder; None where none is known."""
    if given is not None:
        here = tower.check(tower.resolve(given))
        if not _same(parts.tower, here):
            raise EncoderFormatError(
                f"the tower inside {parts.folder} is not --encoder {given} (digest {here.digest[:12]}); leave it out, "
                f"or give --swap_encoder {given} where another is meant"
            )
        return here
    recorded = parts.notes.get("encoder", {})
    path = Path(recorded.get("path", ""))
    if not recorded or not (path / "config.json").is_file():
        return None
    try:
        found = tower.check(path)
    except EncoderFormatError:
        return None
    return found if _same(parts.tower, found) else None


def _same(inside: dict[str, Stored], encoder: tower.Encoder) -> bool:
    """Says whether a tower is an encoder's, rounded to half precision at most."""
    stored, _ = _weights_of(encoder)
    if stored.keys() != inside.keys():
        return False
    return all(same_weight(inside[name].read(), weight.read()) for name, weight in stored.items())
