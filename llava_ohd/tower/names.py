"""Names of encoders: `--encoder ours|openai|NAME|PATH`.

A name is looked up among the registered ones (`encoders.json` in `home()`; training registers what it made), then among
the built-in rows, then as a folder. `ours` is the encoder trained here if there is one, else the published one;
`openai` is the stock tower of LLaVA-1.5. With the embedded world both are registered, so that both are the mini pair.

encoders.json: {NAME: {"path", "digest", "model": LLaVA model folder trained on it, or null}}
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound, ModelNotFound
from llava_ohd.files import read_json, storage_errors, write_json
from llava_ohd.home import home

__all__ = ["BUILT_IN", "COMMANDS", "BuiltIn", "choices", "model_for", "register", "registered", "resolve"]

COMMANDS = (
    "check",
    "diff",
    "import",
    "list",
    "path",
    "register",
)  # of `python -m llava_ohd.tower`; no encoder can have such a name
_HUB_FILES = ("*.json", "*.txt", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class BuiltIn:
    """An encoder that is known without being registered.

    Attributes:
        source: Folder inside this package, or a repository of the Hugging Face Hub.
        hub: Whether `source` is a repository.
        revision: Commit of the repository.
        folder: Where inside the repository the encoder lies.
    """

    source: str
    hub: bool = True
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        return f"Hub {self.source}" + (f"/{self.folder}" if self.folder else "") if self.hub else str(self.path)

    @property
    def path(self) -> Path:
        """The folder of a row that lies inside this package."""
        return Path(__file__).resolve().parent.parent / self.source


BUILT_IN = {
    "openai": BuiltIn("openai/clip-vit-large-patch14-336", revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1"),
    "ours": BuiltIn("yfliu/llava_clip_ohd_caps_lora", folder="clip"),
    "world-openai": BuiltIn("world/assets/mini_clip", hub=False),
}


def registered() -> dict[str, dict[str, Any]]:
    """Returns the rows of encoders.json: `{NAME: {"path", "digest", "model"}}`, empty where nothing is registered.

    Raises:
        DataFormatError: the file is damaged.
    """
    file = _registry()
    if not file.is_file():
        return {}
    rows = read_json(file)
    if not isinstance(rows, dict) or not all(
        isinstance(r, dict) and {"path", "digest"} <= r.keys() for r in rows.values()
    ):
        raise DataFormatError(f"{file} is not a register of encoders; remove it and register them again")
    return rows


def choices() -> dict[str, str]:
    """Returns every name that can be given, and where it leads."""
    return {name: str(row) for name, row in BUILT_IN.items()} | {n: str(row["path"]) for n, row in registered().items()}


def resolve(name_or_path: str | Path) -> Path:
    """Returns the folder of an encoder, downloading a built-in one where it is not on this machine yet.

    A registered encoder's vision tower is compared with the digest it was registered with. `check` and `load` look at
    everything else.

    Raises:
        EncoderNotFound: unknown (the message lists all choices), vanished, or not to be had.
        EncoderFormatError: a registered folder now holds another encoder.
    """
    name = str(name_or_path)
    rows = registered()
    if name in rows:
        return _registered_folder(name, rows[name])
    if name in BUILT_IN:
        return _built_in_folder(name, BUILT_IN[name])
    folder = Path(name).expanduser()
    if (folder / "encoder" / "config.json").is_file() and not (folder / "config.json").is_file():
        raise EncoderNotFound(f"{name} is the folder of a run; its encoder is {folder / 'encoder'}")
    if folder.is_dir():
        return folder.resolve()
    known = "; ".join(f"{choice} ({place})" for choice, place in choices().items())
    what = f"there is no folder {name}" if "/" in name else f"unknown encoder {name!r}"
    raise EncoderNotFound(f"{what}; choose one of: {known}; or give the path of an encoder folder")


def register(name: str, path: str | Path, model: str | Path | None = None) -> None:
    """Makes an encoder known under a name, after checking it; an earlier row of that name is replaced.

    Args:
        name: Any word but a command of `python -m llava_ohd.tower`.
        path: The encoder folder.
        model: LLaVA model folder trained on it. Left out, a model registered earlier stays if the tower is the same.

    Raises:
        EncoderFormatError: the encoder does not pass `check`, or the name cannot be used.
        EncoderNotFound: there is no such folder.
        ModelNotFound: there is no such model folder.
    """
    from llava_ohd.tower.encoder_dir import check

    if not name or name != Path(name).name or name.startswith(("-", ".")) or name in COMMANDS:
        raise EncoderFormatError(f"{name!r} cannot be the name of an encoder; take a plain word such as 'ours'")
    if model is not None and not Path(model).is_dir():
        raise ModelNotFound(f"{model} is not a folder; give the model folder that scripts/finetune_llava.py wrote")
    encoder = check(path)
    with _locked(_registry()):
        rows = registered()
        old = rows.get(name, {})
        kept = old.get("model") if old.get("digest") == encoder.digest else None
        row = {"path": str(encoder.path), "digest": encoder.digest}
        rows[name] = row | {"model": str(Path(model).resolve()) if model is not None else kept}
        write_json(_registry(), rows)


def model_for(name: str) -> Path:
    """Returns the LLaVA model folder that was registered for an encoder.

    Args:
        name: Registered name, or the path of a registered encoder.

    Raises:
        ModelNotFound: none is registered, or its folder is gone.
    """
    rows = registered()
    path = str(Path(name).expanduser().resolve())
    row = rows.get(name) or next((row for row in rows.values() if row["path"] == path), {})
    model = row.get("model")
    if not model:
        raise ModelNotFound(
            f"no LLaVA model is registered for encoder {name!r}; train one with `make quickstart` or with "
            f"scripts/finetune_llava.py --vision_tower {name}, or give its folder"
        )
    if not Path(model).is_dir():
        raise ModelNotFound(f"the LLaVA model of encoder {name!r} was {model}, which is gone; train it again")
    return Path(model)


def _registry() -> Path:
    return home() / "encoders.json"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lets one process at a time read and rewrite the file."""
    import fcntl

    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _registered_folder(name: str, row: dict[str, Any]) -> Path:
    from llava_ohd.tower.weights import read_weights, tower_digest, weights_file

    folder, again = Path(row["path"]), f"`python -m llava_ohd.tower register {name} PATH`"
    if not folder.is_dir():
        raise EncoderNotFound(
            f"encoder {name!r} was registered at {folder}, which is gone; bring it back, train it again, or {again}"
        )
    digest = tower_digest(read_weights(weights_file(folder)))
    if digest != row["digest"]:
        raise EncoderFormatError(
            f"encoder {name!r} was registered with digest {row['digest'][:12]}, but {folder} now holds {digest[:12]}; "
            f"restore it, or accept the new one by {again}"
        )
    return folder


def _built_in_folder(name: str, row: BuiltIn) -> Path:
    if not row.hub:
        if not row.path.is_dir():
            raise EncoderNotFound(f"encoder {name!r} is not shipped with this installation ({row.path} does not exist)")
        return row.path
    from huggingface_hub import snapshot_download

    files = [f"{row.folder}/{file}" if row.folder else file for file in _HUB_FILES]
    try:
        try:
            snapshot = snapshot_download(row.source, revision=row.revision, allow_patterns=files, local_files_only=True)
        except FileNotFoundError:
            snapshot = snapshot_download(row.source, revision=row.revision, allow_patterns=files)
    except Exception as error:  # whatever the network, the proxy or the Hub answers
        raise EncoderNotFound(
            f"encoder {name!r} is not trained or registered here, and {row} cannot be reached ({error}). Run `make "
            f"quickstart` for the embedded one, or `python -m llava_ohd.tower register {name} PATH`"
        ) from error
    return Path(snapshot) / row.folder
