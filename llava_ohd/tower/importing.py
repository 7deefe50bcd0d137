"""Makes an encoder folder of a CLIP in any of the forms in which people have one.

    import_encoder("ViT-L-14-336px.pt", "encoders/openai", files_from="openai")
    import_encoder("llava-v1.6-vicuna-7b", "encoders/llava16", base="openai")

Types: where all weights have one type it is kept; a mixture (OpenAI's halves with float32 norms, a half-precision tower
on a float32 base, a merged LoRA) goes to float32, which holds each of them exactly.
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel

from llava_ohd.errors import EncoderFormatError, EncoderNotFound, StorageError
from llava_ohd.files import read_json, sha256_file
from llava_ohd.tower import hub
from llava_ohd.tower.checkpoints import read_folder
from llava_ohd.tower.checks import check_finite, check_keys, check_preprocessor
from llava_ohd.tower.encoder_dir import Encoder, check, fill, read, write
from llava_ohd.tower.every_version import files_of, has_files, has_processor
from llava_ohd.tower.layouts import rename, some
from llava_ohd.tower.lora import is_lora, read_adapter_config
from llava_ohd.tower.names import BUILT_IN, resolve
from llava_ohd.tower.registry import registered
from llava_ohd.tower.sources import Base, Source, read_source
from llava_ohd.tower.tokenizer import tokenizer_for
from llava_ohd.tower.weights import tower_digest

__all__ = ["import_encoder"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ANYWHERE = ("image_mean", "image_std", "do_normalize", "do_rescale", "do_resize", "do_center_crop", "resample")


def import_encoder(
    source: str | Path,
    destination: str | Path,
    *,
    name: str | None = None,
    files_from: str | Path | None = None,
    revision: str | None = None,
    base: str | Path | None = None,
    quick_gelu: bool | None = None,
    overwrite: bool = False,
) -> Encoder:
    """Reads a CLIP, checks it, and writes it as an encoder folder.

    Args:
        source: File, folder, name, or repository of the Hugging Face Hub (`org/name`); the kinds are in sources.py.
        destination: The folder to write.
        name: Name of the encoder; left out, that of the folder.
        files_from: Folder or encoder that gives tokenizer and preprocessor; left out, the source's own, or the base's.
        revision: Commit, tag or branch on the Hub; left out, the commit that a built-in encoder is pinned to, or the
            newest. The commit that was taken is recorded.
        base: Encoder (name, folder or Hub id) that gives what the source lacks: text tower and projections, the weights
            that a LoRA changes, number of heads and activation of an open_clip file that was fine-tuned from it.
        quick_gelu: Which activation an OpenAI or open_clip file was trained with, where the file does not say.
        overwrite: Replace another encoder that is at `destination` already.

    Returns:
        The description of the new encoder.

    Raises:
        EncoderNotFound: no such file, folder, name or repository, or the Hub cannot be reached.
        EncoderFormatError: unknown, damaged, incomplete, of another geometry than its base, with code in it, or with an
            activation that nobody states and the base does not decide.
        StorageError: `destination` cannot be written, or holds something else than an encoder.
    """
    place, commit = _locate(str(source), revision)
    ground = _open_base(place, base)
    found = read_source(place, ground, quick_gelu)
    if found.kind == "CLIPModel" and (place / "ohd.json").is_file():
        check(place)  # so that no altered encoder becomes a sound one
    files = _files(place, files_from, ground, found)
    if found.kind == "CLIPModel" and ground is not None:
        if files != ground.encoder.path:
            raise EncoderFormatError(
                f"--base {base} would not be used: {place} is a full CLIPModel with its own files; leave --base out"
            )
        ground = None  # it gives files, but no weights
    weights = _one_type(found.weights)
    with torch.device("meta"):
        model = CLIPModel(found.config)
    check_keys(place, model, weights)
    check_finite(place, weights)
    how: dict[str, Any] = {"imported": found.kind, "source": str(source), "commit": commit, **found.notes}
    how |= {"sha256": {file.name: sha256_file(file) for file in found.files}, "files_from": str(files)}
    if found.kind == "LoRA":
        how["base_named_by_adapter"] = read_adapter_config(place).get("base_model_name_or_path")
    parents = [] if found.kind == "LoRA" else [{"path": str(place), "digest": tower_digest(found.weights)}]
    if ground is not None:
        parents.append({"path": str(ground.encoder.path), "digest": ground.encoder.digest})
    named = name or Path(destination).resolve().name
    if not overwrite:
        _refuse_other(Path(destination), weights)
    with files_of(files) as ready:
        check_preprocessor(ready, found.config.vision_config.image_size)
        tokenizer_for(found.config.text_config, ready)
        write(fill(model, weights), destination, files_from=ready, name=named, parents=parents, config=how)
    return check(destination)


def _refuse_other(destination: Path, weights: dict[str, torch.Tensor]) -> None:
    """Keeps an encoder that is at the destination already, unless it has the same tower."""
    file = destination / "ohd.json"
    if not file.is_file():
        return
    there, digest = read_json(file).get("digest"), tower_digest(weights)
    if there != digest:
        raise StorageError(
            f"{destination} holds another encoder (digest {str(there)[:12]}, the new one has {digest[:12]}), which "
            "would be lost; choose another folder, or say --overwrite"
        )


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the file or folder on this machine, and the commit where it came from the Hub."""
    known = source in registered() or source in BUILT_IN
    place = resolve(source) if known else Path(source).expanduser()
    if place.exists():
        if revision is not None:
            raise EncoderFormatError(f"{source} is on this machine and has no revision {revision!r}; leave it out")
        return place.resolve(), None
    if not _HUB_ID.fullmatch(source):
        raise EncoderNotFound(f"{source} does not exist; give a file, a folder, or a Hub repository as org/name")
    return _download(source, revision)


def _download(repository: str, revision: str | None) -> tuple[Path, str]:
    """Brings a snapshot to the local cache; of a built-in repository, the pinned commit.

    Raises:
        EncoderNotFound: no such repository or revision, or no network.
    """
    pinned = {row.source: row.revision for row in BUILT_IN.values() if row.hub}
    try:
        snapshot = hub.source_snapshot(repository, revision or pinned.get(repository))
    except EncoderNotFound as error:
        raise EncoderNotFound(
            f"{repository} is no file or folder here, and {error}. Check the name, or download it elsewhere and "
            "give its folder"
        ) from error
    return snapshot, snapshot.name  # huggingface_hub names the folder after the commit


def _open_base(place: Path, base: str | Path | None) -> Base | None:
    """Opens the base that was given, or the one that an adapter names."""
    revision, named = None, None
    if is_lora(place):
        adapter = read_adapter_config(place)
        named, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not (base or named):
        return None
    encoder, model, weights = read(_encoder_folder(str(base), None) if base else _encoder_folder(str(named), revision))
    if base and named:
        _compare_with_named(place, str(named), revision, encoder.path, weights)
    return Base(encoder, model.config, weights)


def _compare_with_named(
    place: Path, named: str, revision: str | None, given: Path, weights: dict[str, torch.Tensor]
) -> None:
    """Compares the base that was given with the one that an adapter names, where that is on this machine.

    Raises:
        EncoderFormatError: other weights, onto which the adapter would be merged wrongly.
    """
    try:
        folder = resolve(named) if named in registered() else Path(named).expanduser()
        if not folder.is_dir() and _HUB_ID.fullmatch(named):
            folder = hub.encoder_snapshot(named, revision, local=True)
        theirs = rename(read_folder(folder).weights)
    except (EncoderNotFound, EncoderFormatError):
        return  # not here, or no CLIP: ohd.json records what the adapter names
    if wrong := [name for name, weight in theirs.items() if not torch.equal(weight, weights.get(name, torch.empty(0)))]:
        raise EncoderFormatError(
            f"{place} was trained on {named}, whose weights differ from those of --base {given} ({some(wrong)}); leave "
            "--base out, or correct base_model_name_or_path in adapter_config.json"
        )


def _encoder_folder(encoder: str, revision: str | None = None) -> Path:
    """Returns the folder of an encoder given as name, path or Hub id; a built-in one at its pinned commit."""
    if encoder not in registered():
        for known, row in BUILT_IN.items():
            if row.hub and row.source == encoder and not row.folder and revision in (None, row.revision):
                return resolve(known)
        if encoder not in BUILT_IN and not Path(encoder).expanduser().exists() and _HUB_ID.fullmatch(encoder):
            return _download(encoder, revision)[0]
    return resolve(encoder)


def _files(place: Path, files_from: str | Path | None, base: Base | None, found: Source) -> Path:
    """Returns the folder that gives tokenizer and preprocessor.

    Raises:
        EncoderFormatError: none has both, or the one taken makes other pixels than the source says it was made for.
    """
    if files_from is not None:
        return _encoder_folder(str(files_from))  # the user's word counts more than the source's files
    if found.kind not in ("LLaVA", "LoRA") and has_files(place):  # theirs are those of the language model
        return place
    if base is None:
        raise EncoderFormatError(
            f"{place} has no {'tokenizer' if has_processor(place) else 'preprocessor_config.json'}; give the "
            "folder that has the preprocessor and tokenizer it was trained with as --files-from (openai: those of "
            "OpenAI's CLIP)"
        )
    files = base.encoder.path
    other = read_json(files / "preprocessor_config.json")
    for key in _ANYWHERE:
        if key in found.pixels and found.pixels[key] != other.get(key, found.pixels[key]):
            raise EncoderFormatError(
                f"{place} was made for {key} {found.pixels[key]}, the base {files} has {other.get(key)}; give a folder "
                "with the right preprocessor_config.json and tokenizer with --files-from"
            )
    return files


def _one_type(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keeps the type that all weights have in common; a mixture becomes float32."""
    if len({weight.dtype for weight in weights.values() if weight.is_floating_point()}) < 2:
        return weights
    return {name: weight.float() if weight.is_floating_point() else weight for name, weight in weights.items()}
