"""Finds the vision tower of a model, and refuses one that it was not trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError
from llava_ohd.files import read_json
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.convert.images import read_pixels
from llava_ohd.llava15.convert.parts import vision_config
from llava_ohd.llava15.convert.stored import Stored, in_files
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.llava_checkpoints import find_encoder
from llava_ohd.tower.llava_files import tower_weights, unlike
from llava_ohd.tower.weights import TOWER_PREFIX, same_weight, tower_digest, weights_file

__all__ = ["BESIDE", "StoredTower", "digest", "encoder_of_hf", "of_encoder", "of_llava", "of_ours", "same"]

BESIDE = "encoder"
"""Folder inside a model folder that holds its tower, where no encoder folder has it."""


@dataclass(frozen=True)
class StoredTower:
    """A tower that is not loaded yet.

    Attributes:
        weights: Under `vision_model.*`.
        vision: Settings of CLIPVisionConfig.
        pixels: Settings of CLIP's image processor.
        encoder: The encoder folder that it is in; None where that is no whole CLIP.
        file: The weights file.
    """

    weights: dict[str, Stored]
    vision: dict[str, Any]
    pixels: dict[str, Any]
    encoder: tower.Encoder | None
    file: Path


def of_encoder(encoder: tower.Encoder) -> StoredTower:
    """Opens the tower of a checked encoder folder."""
    vision = vision_config(read_config(encoder.path).vision_config.to_dict())
    return _open(encoder.path, vision, encoder)


def _open(folder: Path, vision: dict[str, Any], encoder: tower.Encoder | None) -> StoredTower:
    file = weights_file(folder)
    weights = {name: stored for name, stored in in_files([file]).items() if name.startswith(TOWER_PREFIX)}
    return StoredTower(weights, vision, read_pixels(folder), encoder, file)


def digest(weights: dict[str, Stored]) -> str:
    """Returns the digest of a tower as an encoder folder records it."""
    return tower_digest({name: stored.read().to(stored.dtype) for name, stored in weights.items()})


def same(inside: dict[str, Stored], encoder: tower.Encoder) -> bool:
    """Says whether a tower is an encoder's, rounded to half precision at most."""
    stored = of_encoder(encoder).weights
    if stored.keys() != inside.keys():
        return False
    return all(same_weight(inside[name].read(), weight.read()) for name, weight in stored.items())


def of_ours(made: model_dir.ModelDir, given: str | Path | None) -> StoredTower:
    """Opens the tower that ohd.json of a model folder names by its digest.

    Args:
        made: The model folder.
        given: Where the encoder is now; None: where the folder says.

    Raises:
        EncoderFormatError: only another encoder is there.
        EncoderNotFound: none is there.
    """
    beside = made.path / BESIDE
    expected = made.encoder["digest"]
    if given is None and (beside / "config.json").is_file():
        config = read_json(beside / "config.json")
        if config.get("model_type") == "clip_vision_model":  # which a conversion writes, as it has no text tower
            found = _open(beside, vision_config(config), None)
            if (has := digest(found.weights)) != expected:
                raise EncoderFormatError(
                    f"the tower in {beside} has digest {has[:12]}, {made.path}/ohd.json says {expected[:12]}; it was "
                    "altered. Copy the folder again"
                )
            return found
        encoder = tower.check(beside)
    else:
        encoder = model_dir.encoder_of(made) if given is None else tower.check(tower.resolve(given))
    if encoder.digest != expected:
        raise EncoderFormatError(
            f"{made.path} was trained on the encoder with digest {expected[:12]}, {encoder.path} has "
            f"{encoder.digest[:12]}; give the right one as --encoder, or --swap_encoder where another is meant"
        )
    return of_encoder(encoder)


def of_llava(folder: Path, base: Path | None, given: str | Path | None) -> StoredTower:
    """Opens the tower that the original LLaVA would use for a checkpoint, without its own tower weights.

    Args:
        folder: The checkpoint.
        base: LLaVA checkpoint that it is loaded on, if any.
        given: Where the encoder is, if not where its config.json says.

    Raises:
        EncoderFormatError: `given` is another than the one that config.json names.
        EncoderNotFound: it is not where config.json says, and not given.
        ModelFormatError: the original LLaVA would silently use another tower.
    """
    here = tower.check(tower.resolve(given)) if given is not None else None
    named = str(read_json(folder / "config.json")["mm_vision_tower"])
    try:
        known = tower.check(find_encoder(named, folder))
    except EncoderNotFound:
        if here is None:
            raise
        _check_ignored(folder, here)
        return of_encoder(here)
    if here is not None and here.digest != known.digest:
        raise EncoderFormatError(
            f"{folder} names the encoder {known.path} (digest {known.digest[:12]}), --encoder {given} has "
            f"{here.digest[:12]}; leave it out, or give --swap_encoder {given} where another is meant"
        )
    tower.check_llava_checkpoint(folder, base)
    return of_encoder(known)


def _check_ignored(folder: Path, encoder: tower.Encoder) -> None:
    """Raises where a checkpoint holds another tower than an encoder, which LLaVA would ignore without a word."""
    flag = read_json(folder / "config.json").get("unfreeze_mm_vision_tower")
    if not flag and (wrong := unlike(tower_weights(folder, everything=True), encoder)):
        raise ModelFormatError(
            f"{folder} holds the weights of another tower than {encoder.path} ({wrong}), without "
            "unfreeze_mm_vision_tower in its config.json; LLaVA would ignore them. Set it to true if they are meant"
        )


def encoder_of_hf(
    folder: Path, inside: dict[str, Stored], recorded: dict[str, str], given: str | Path | None
) -> tower.Encoder | None:
    """Returns an encoder folder with the tower that is inside an HF folder; None where none is known.

    Args:
        folder: The HF folder.
        inside: Its tower.
        recorded: `path` and `digest` of the encoder that its ohd.json names; empty where it has none.
        given: An encoder that must have this tower.

    Raises:
        EncoderFormatError: `given` has another one.
    """
    if given is not None:
        here = tower.check(tower.resolve(given))
        if not same(inside, here):
            raise EncoderFormatError(
                f"the tower inside {folder} is not --encoder {given} (digest {here.digest[:12]}); leave it out, or "
                f"give --swap_encoder {given} where another is meant"
            )
        return here
    path = Path(recorded.get("path") or folder / BESIDE)
    if not (path / "config.json").is_file():
        return None
    try:
        found = tower.check(path)
    except (EncoderFormatError, ModelFormatError):
        return None
    return found if same(inside, found) else None
