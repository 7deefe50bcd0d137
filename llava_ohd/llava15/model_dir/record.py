"""What ohd.json says about a model folder, and whether the folder still is so."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.files import read_json, sha256_file, sha256_json

__all__ = ["ADAPTER_STAGES", "FORMAT", "SWAPPED", "ModelDir", "base_of", "base_sha256", "encoder_of", "read"]

FORMAT = 1
"""Version of the layout that ohd.json states."""
ADAPTER_STAGES = ("lora", "qlora")
"""Stages that train an adapter."""
SWAPPED = "llava-swapped"
"""Kind of a model folder whose encoder is not the one that it was trained on."""


@dataclass(frozen=True)
class ModelDir:
    """What ohd.json says about a model folder.

    Attributes:
        path: The folder, absolute.
        stage: `projector`, `lora`, `qlora` or `full`.
        encoder: `path`, `digest` and `name` of the encoder it runs on, which is the one it was trained on unless
            `swapped` says otherwise; `path` is relative to the folder where the tower was trained and lies inside.
        base: `path` and `sha256` of the language model that it started from.
        config: Flags that it was trained with.
        digest: SHA-256 of ohd.json, which holds those of the weights.
        swapped: Where the encoder was put in after training: `trained_on`, with the digest of the encoder that it was
            trained on, and how the projector came about; else empty.
    """

    path: Path
    stage: str
    encoder: dict[str, str]
    base: dict[str, str]
    config: dict[str, Any]
    digest: str
    swapped: dict[str, Any] = field(default_factory=dict)


def base_sha256(folder: Path) -> str:
    """Returns one digest of all weight files of a language model folder.

    Raises:
        ModelFormatError: it holds none.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        raise ModelFormatError(
            f"{folder} holds no weights (*.safetensors or pytorch_model*.bin); copy the folder again"
        )
    return sha256_json({file.name: sha256_file(file) for file in files})


def read(path: str | Path) -> ModelDir:
    """Reads and checks ohd.json, and the weight files against it.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: incomplete, altered, or not written by this package.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give a model folder that scripts/finetune_llava.py wrote")
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "llava":
        raise ModelFormatError(
            f"{folder} is a model of transformers; make a model folder of it: python scripts/convert_llava.py "
            f"--source {folder} --to llava --out FOLDER (what was not exported here: with --image_aspect_ratio pad)"
        )
    if not (folder / "ohd.json").is_file():
        raise ModelFormatError(
            f"{folder} has no ohd.json, which is written last: its training did not end. Run the same command again"
        )
    record = read_json(folder / "ohd.json")
    kinds = (SWAPPED,) if "swapped" in record else ("llava",)
    if record.get("format") != FORMAT or record.get("kind") not in kinds:
        raise ModelFormatError(
            f"{folder}/ohd.json is format {record.get('format')!r}, kind {record.get('kind')!r}; format {FORMAT}, kind "
            f"{kinds[0]!r} is expected"
        )
    for name, digest in record["weights"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise ModelFormatError(
                f"{folder / name} is missing or was altered; copy the folder again, or train it again"
            )
    parts = {key: record[key] for key in ("stage", "encoder", "base", "config")}
    return ModelDir(folder.resolve(), digest=sha256_file(folder / "ohd.json"), swapped=_swapped(record), **parts)


def _swapped(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what ohd.json says of a swap; a conversion may have made one, too."""
    if "swapped" in record:
        return dict(record["swapped"])
    before = record.get("converted", {}).get("trained_on")
    if before in (None, record["encoder"]["digest"]):
        return {}
    return {"trained_on": {"digest": before}, "projector": "kept"}


def encoder_of(folder: ModelDir) -> tower.Encoder:
    """Finds the encoder that a model runs on: at its path, or wherever its name leads now.

    Raises:
        EncoderFormatError: only another encoder is there.
        EncoderNotFound: none is there.
    """
    places = [folder.path / folder.encoder["path"]]
    if folder.encoder["name"] in tower.registered():
        places.append(tower.resolve(folder.encoder["name"]))
    found = [tower.check(place) for place in places if place.is_dir()]
    if not found:
        raise EncoderNotFound(
            f"{folder.path} was trained on the encoder {folder.encoder['path']}, which is gone; bring it back, or"
            f" `python -m llava_ohd.tower register {folder.encoder['name']} PATH`"
        )
    for encoder in found:
        if encoder.digest == folder.encoder["digest"]:
            return encoder
    raise EncoderFormatError(
        f"{folder.path} was trained on an encoder with digest {folder.encoder['digest'][:12]}; {found[0].path} has "
        f"{found[0].digest[:12]}: it was trained again since. Train the model again, or bring the old encoder back"
    )


def base_of(folder: ModelDir) -> Path:
    """Returns the folder with the language model of a model: that which it was trained on; of stage full its own.

    Raises:
        ModelNotFound: it is gone.
        ModelFormatError: its weights are others than in training.
    """
    if folder.stage == "full":
        return folder.path
    base = Path(folder.base["path"])
    if not base.is_dir():
        raise ModelNotFound(f"{folder.path} was trained on the language model {base}, which is gone; bring it back")
    if base_sha256(base) != folder.base["sha256"]:
        raise ModelFormatError(f"{base} is another language model than {folder.path} was trained on; bring that back")
    return base
