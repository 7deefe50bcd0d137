"""Says before loading which tower the original LLaVA would use for a checkpoint, where it would not say so itself.

Two of its silent resets:

- A checkpoint that holds tower weights. They are used only if its config.json says `unfreeze_mm_vision_tower: true`;
  else the folder that `mm_vision_tower` names is loaded over them, with a warning at most.
- Training from a base checkpoint whose config.json names tower A already, e.g. llava-v1.5-7b, with `--vision_tower B`:
  it trains with A and writes B into the result.

Source: LLaVA model/llava_arch.py `initialize_vision_modules`, model/multimodal_encoder/clip_encoder.py @ c121f04.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.tower import hub
from llava_ohd.tower.encoder_dir import Encoder, check
from llava_ohd.tower.names import BUILT_IN, choices, resolve
from llava_ohd.tower.weights import TOWER_PREFIX, read_weights, same_weight, weights_file

__all__ = ["check_llava_base", "check_llava_checkpoint", "find_encoder"]

_INSIDE = "vision_tower."
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "non_lora_trainables.bin", "mm_projector.bin")
_TENSORS_OF_A_LANGUAGE_MODEL = "embed_tokens.weight"


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


def check_llava_checkpoint(folder: str | Path) -> Encoder | None:
    """Checks that a checkpoint of the original LLaVA will be loaded with the tower that it holds, if it holds one.

    Args:
        folder: Full, LoRA or projector-only checkpoint.

    Returns:
        The encoder that `mm_vision_tower` names, which will be used; None where the checkpoint's own tower weights will
        be (`unfreeze_mm_vision_tower`), or where it names no tower.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: it holds tower weights that would be ignored; or it promises some and has none.
        EncoderNotFound: the encoder that it names cannot be found.
        EncoderFormatError: that encoder is damaged.
    """
    folder, config = _config(folder)
    inside, full = _tower_weights(folder)
    if "mm_vision_tower" not in config:
        return None
    if config.get("unfreeze_mm_vision_tower"):
        if full and not inside:
            raise ModelFormatError(
                f"{folder}/config.json says unfreeze_mm_vision_tower, but the checkpoint holds no tower weights; set "
                f"it to false, so that {config['mm_vision_tower']} is used"
            )
        return None
    encoder = check(find_encoder(config["mm_vision_tower"], folder))
    wrong = _unlike(inside, encoder)
    if wrong:
        raise ModelFormatError(
            f"{folder} holds the weights of another tower than {encoder.path} ({wrong}), which its config.json names; "
            "LLaVA would ignore them without a word. If they are meant, set unfreeze_mm_vision_tower to true in its "
            "config.json, or make an encoder of them (`python -m llava_ohd.tower import`) and name that there"
        )
    return encoder


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
    folder, config = _config(folder)
    named = config.get("mm_vision_tower")
    if named is None:
        return wanted
    if config.get("unfreeze_mm_vision_tower"):
        inside, _ = _tower_weights(folder)
        used = None if inside and not _unlike(inside, wanted) else "its own tower weights (unfreeze_mm_vision_tower)"
    else:
        used = None if _is_encoder(named, folder, wanted) else str(named)
    if used:
        raise ModelFormatError(
            f"{folder}/config.json names the tower {named}: the original LLaVA would train with {used} and write "
            f'{wanted.path} into the result. In a copy of the base, set "mm_vision_tower": "{wanted.path}" and '
            '"unfreeze_mm_vision_tower": false; or call llava_ohd.tower.register_with_llava() before training'
        )
    return wanted


def _config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give a checkpoint of LLaVA")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelFormatError(f"{folder}/config.json holds {type(config).__name__}; an object is expected")
    return folder, config


def _is_encoder(named: str, folder: Path, wanted: Encoder) -> bool:
    try:
        return check(find_encoder(named, folder)).digest == wanted.digest
    except (EncoderNotFound, EncoderFormatError):
        return False


def _tower_weights(folder: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Returns the tower weights inside a checkpoint under an encoder's names, and whether it holds a language model."""
    inside: dict[str, torch.Tensor] = {}
    full = False
    for file in sorted(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)):
        names, read = _open(file)
        full = full or any(name.endswith(_TENSORS_OF_A_LANGUAGE_MODEL) for name in names)
        for name in (name for name in names if _INSIDE in name and not name.endswith(".position_ids")):
            inside[TOWER_PREFIX + name.rpartition(_INSIDE)[2].removeprefix(TOWER_PREFIX)] = read(name)
    return inside, full


def _open(file: Path) -> tuple[list[str], Any]:
    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, framework="pt")
        return list(opened.keys()), opened.get_tensor
    weights = read_weights(file)
    return list(weights), weights.__getitem__


def _unlike(inside: dict[str, torch.Tensor], encoder: Encoder) -> str:
    """Says in what tower weights differ from an encoder's; empty where they do not."""
    stored = read_weights(weights_file(encoder.path))
    for name, weight in sorted(inside.items()):
        if name not in stored or not same_weight(weight, stored[name]):
            return f"first difference in {name}"
    return ""
