"""Says before loading which tower the original LLaVA would use for a checkpoint, where it would not say so itself.

Its silent resets:

- A checkpoint that holds tower weights. They are used only if its config.json says `unfreeze_mm_vision_tower: true`;
  else the folder that `mm_vision_tower` names is loaded over them, with a warning at most.
- With that flag, whatever tower weights come along are used: half a tower, or for a LoRA or projector without any, the
  tower inside the base that it is loaded on.
- Training from a base checkpoint whose config.json names tower A already, e.g. llava-v1.5-7b, with `--vision_tower B`:
  it trains with A and writes B into the result.

Source: LLaVA model/builder.py, model/llava_arch.py `initialize_vision_modules`,
model/multimodal_encoder/clip_encoder.py @ c121f04.
"""

from pathlib import Path

import torch

from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError
from llava_ohd.tower import hub
from llava_ohd.tower.encoder_dir import Encoder, check
from llava_ohd.tower.layouts import some
from llava_ohd.tower.llava_files import is_full, read_llava_config, tower_weights, unlike
from llava_ohd.tower.names import BUILT_IN, choices, resolve
from llava_ohd.tower.weights import TOWER_PREFIX, read_weights, weights_file

__all__ = ["check_llava_base", "check_llava_checkpoint", "find_encoder"]


def find_encoder(name: str | Path, beside: str | Path | None = None) -> Path:
    """Returns the encoder folder that a LLaVA config or `--vision_tower` means.

    Args:
        name: A path, also relative to the working directory; a name as for `--encoder`; or a Hub id, which is
            downloaded where it is not on this machine yet.
        beside: Folder that a relative path may also start from, such as the checkpoint's.

    Raises:
        EncoderNotFound: it leads nowhere.
    """
    text = str(name)
    stock = {row.source: known for known, row in BUILT_IN.items() if row.hub and not row.folder}
    if beside is not None and not Path(text).expanduser().is_dir() and (Path(beside) / text).is_dir():
        return (Path(beside) / text).resolve()
    if Path(text).expanduser().is_dir() or text in choices() or text in stock:
        return resolve(stock.get(text, text))
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        return resolve(text)  # which says what can be chosen
    try:
        return hub.encoder_snapshot(text)
    except EncoderNotFound as error:
        raise EncoderNotFound(
            f"encoder {text!r} is not a folder, not one of {', '.join(choices())}, and {error}; download it and give "
            "its folder"
        ) from error


def check_llava_checkpoint(folder: str | Path, base: str | Path | None = None) -> Encoder | None:
    """Checks that a checkpoint of the original LLaVA will be loaded with the tower that it means.

    Args:
        folder: Full, LoRA or projector-only checkpoint.
        base: What a LoRA or projector is loaded on (`model_base`); where `unfreeze_mm_vision_tower` is set and the
            checkpoint holds no tower, that of the base is used.

    Returns:
        The encoder that `mm_vision_tower` names, which will be used; None where the checkpoint's own tower weights will
        be (`unfreeze_mm_vision_tower`), or where it names no tower.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: tower weights would be ignored, or fill only a part of the tower, or come from the base; or
            the base is needed to say so.
        EncoderNotFound: the encoder that it names cannot be found.
        EncoderFormatError: that encoder is damaged.
    """
    folder, config = read_llava_config(folder)
    if "mm_vision_tower" not in config:
        return None
    full = is_full(folder)
    encoder = check(find_encoder(config["mm_vision_tower"], folder))
    if not config.get("unfreeze_mm_vision_tower"):
        _check_ignored(folder, tower_weights(folder, everything=True), encoder)
        if base is not None and not full:
            _check_trained_on_own(folder, base, encoder)
        return encoder
    if inside := tower_weights(folder):
        _check_complete(folder, inside, encoder)
        return None
    if full:
        raise ModelFormatError(
            f"{folder}/config.json says unfreeze_mm_vision_tower, but the checkpoint holds no tower weights; set "
            f"it to false, so that {config['mm_vision_tower']} is used"
        )
    _check_of_base(folder, base, encoder)
    return encoder


def _check_ignored(folder: Path, inside: dict[str, torch.Tensor], encoder: Encoder) -> None:
    if wrong := unlike(inside, encoder):
        raise ModelFormatError(
            f"{folder} holds the weights of another tower than {encoder.path} ({wrong}), which its config.json names; "
            "LLaVA would ignore them without a word. If they are meant, set unfreeze_mm_vision_tower to true in its "
            "config.json, or make an encoder of them (`python -m llava_ohd.tower import`) and name that there"
        )


def _check_complete(folder: Path, inside: dict[str, torch.Tensor], encoder: Encoder) -> None:
    """With the flag, what is inside is laid over the named encoder, name by name."""
    expected = _names(encoder)
    if missing := _missing(inside, encoder):
        raise ModelFormatError(
            f"{folder}/config.json says unfreeze_mm_vision_tower, but the checkpoint holds {len(inside)} tensors of a "
            f"tower that has {len(expected)}; missing: {some(missing)}. LLaVA would take those from elsewhere. Save "
            f"the checkpoint again with its whole tower, or set the flag to false, so that {encoder.path} is used"
        )
    if foreign := sorted(inside.keys() - expected):
        raise ModelFormatError(
            f"{folder} holds tensors that the tower {encoder.path} does not have, which LLaVA would ignore or treat as "
            f"adapters: {some(foreign)}. Merge adapters before saving, and name an encoder of the same layers"
        )


def _names(encoder: Encoder) -> set[str]:
    return {name for name in read_weights(weights_file(encoder.path)) if name.startswith(TOWER_PREFIX)}


def _missing(inside: dict[str, torch.Tensor], encoder: Encoder) -> list[str]:
    return sorted(_names(encoder) - inside.keys())


def _check_of_base(folder: Path, base: str | Path | None, encoder: Encoder) -> None:
    """With the flag and no tower inside, the tower weights of the base are laid over the named encoder."""
    if base is None:
        raise ModelFormatError(
            f"{folder}/config.json says unfreeze_mm_vision_tower, but the checkpoint holds no tower weights: LLaVA "
            "would use those of the base that it is loaded on. Give the base (base=...), or set the flag to false, so "
            f"that {encoder.path} is used"
        )
    inside = tower_weights(read_llava_config(base)[0])
    if wrong := unlike(inside, encoder):
        raise ModelFormatError(
            f"{folder}/config.json says unfreeze_mm_vision_tower and names {encoder.path}, but holds no tower weights: "
            f"LLaVA would use those inside the base {base}, which are another tower ({wrong}). Set the flag to false, "
            "so that the encoder is used; or make an encoder of the base's tower (`python -m llava_ohd.tower import`) "
            "and name that"
        )


def _check_trained_on_own(folder: Path, base: str | Path, encoder: Encoder) -> None:
    """A base that uses its own tower weights was trained on with those, and the checkpoint must name the same."""
    place, config = read_llava_config(base)
    inside = tower_weights(place) if config.get("unfreeze_mm_vision_tower") else {}
    if wrong := unlike(inside, encoder):
        raise ModelFormatError(
            f"the base {base} uses the tower weights inside it (unfreeze_mm_vision_tower); {folder} on top of it would "
            f"be loaded with {encoder.path}, which is another tower ({wrong}). Make an encoder of the base's tower "
            "(`python -m llava_ohd.tower import`) and name that in the config.json of both"
        )


def check_llava_base(folder: str | Path, encoder: str | Path | Encoder) -> Encoder:
    """Checks that the original LLaVA, training from a base with `--vision_tower ENCODER`, will really use it.

    Args:
        folder: What is given as `--model_name_or_path`.
        encoder: Name, path, or what `check` returned.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: it would train with the base's own tower and write the name of this one into the result.
        EncoderNotFound: the encoder's name leads nowhere.
        EncoderFormatError: the encoder is damaged.
    """
    wanted = encoder if isinstance(encoder, Encoder) else check(find_encoder(encoder))
    folder, config = read_llava_config(folder)
    named = config.get("mm_vision_tower")
    if named is None:
        return wanted
    if config.get("unfreeze_mm_vision_tower"):
        inside = tower_weights(folder)
        same = (
            inside
            and not unlike(inside, wanted)
            and (_missing(inside, wanted) == [] or _is_encoder(named, folder, wanted))
        )
        used = None if same else "its own tower weights (unfreeze_mm_vision_tower)"
    else:
        used = None if _is_encoder(named, folder, wanted) else str(named)
    if used:
        raise ModelFormatError(
            f"{folder}/config.json names the tower {named}: the original LLaVA would train with {used} and write "
            f'{wanted.path} into the result. In a copy of the base, set "mm_vision_tower": "{wanted.path}" and '
            '"unfreeze_mm_vision_tower": false; or call llava_ohd.tower.register_with_llava() before training'
        )
    return wanted


def _is_encoder(named: str, folder: Path, wanted: Encoder) -> bool:
    try:
        return check(find_encoder(named, folder)).digest == wanted.digest
    except (EncoderNotFound, EncoderFormatError):
        return False
