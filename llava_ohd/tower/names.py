"""Names of encoders: `--encoder ours|openai|NAME|PATH`.

A name is looked up among the registered ones (registry.py; training registers what it made), then among the built-in
rows, then as a folder. `ours` is the encoder trained here if there is one, else the published one;
`openai` is the stock tower of LLaVA-1.5. With the embedded world both are registered, so that both are the mini pair.
"""

from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import EncoderNotFound
from llava_ohd.tower import hub
from llava_ohd.tower.registry import registered, registered_folder

__all__ = ["BUILT_IN", "BuiltIn", "choices", "expect", "resolve"]


@dataclass(frozen=True)
class BuiltIn:
    """An encoder that is known without being registered.

    Attributes:
        source: Folder inside this package, or a repository of the Hugging Face Hub.
        hub: Whether `source` is a repository.
        revision: Commit of the repository; None where it is not known: then the first one that is used here stays.
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


def choices() -> dict[str, str]:
    """Returns every name that can be given, and where it leads."""
    return {name: str(row) for name, row in BUILT_IN.items()} | {n: str(row["path"]) for n, row in registered().items()}


def resolve(name_or_path: str | Path) -> Path:
    """Returns the folder of an encoder, downloading a built-in one where it is not on this machine yet.

    A registered encoder is compared with the digest of its vision tower and the sums of its other files as they were
    registered. `check` and `load` look at everything else.

    Raises:
        EncoderNotFound: unknown (the message lists all choices), vanished, or not to be had.
        EncoderFormatError: a registered folder now holds another encoder, or a repository another commit.
    """
    name = str(name_or_path)
    rows = registered()
    if name in rows:
        return registered_folder(name, rows[name])
    if name in BUILT_IN:
        return _built_in_folder(name, BUILT_IN[name])
    folder = Path(name).expanduser()
    if (folder / "encoder" / "config.json").is_file() and not (folder / "config.json").is_file():
        raise EncoderNotFound(f"{name} is the folder of a run; its encoder is {folder / 'encoder'}")
    if folder.is_dir() and name:
        return folder.resolve()
    if folder.is_file():
        raise EncoderNotFound(
            f"{name} is a file; make an encoder folder of it: python -m llava_ohd.tower import {name} DST"
        )
    known = "; ".join(f"{choice} ({place})" for choice, place in choices().items())
    what = f"there is no folder {name}" if "/" in name else f"unknown encoder {name!r}"
    raise EncoderNotFound(f"{what}; choose one of: {known}; or give the path of an encoder folder")


def expect(name_or_path: str | Path) -> None:
    """Makes sure that there is such an encoder, before anything of it is read or downloaded.

    Raises:
        EncoderNotFound: there is none; the message lists all choices.
    """
    if str(name_or_path) not in choices():
        resolve(name_or_path)


def _built_in_folder(name: str, row: BuiltIn) -> Path:
    if not row.hub:
        if not row.path.is_dir():
            raise EncoderNotFound(f"encoder {name!r} is not shipped with this installation ({row.path} does not exist)")
        return row.path
    try:
        revision = row.revision or hub.remembered_commit(row.source)
        folder = hub.encoder_snapshot(row.source, revision, row.folder)
    except EncoderNotFound as error:
        raise EncoderNotFound(
            f"encoder {name!r} is not trained or registered here, and {error}. Run `make quickstart` for the embedded "
            f"one, or `python -m llava_ohd.tower register {name} PATH`"
        ) from error
    commit = folder.parts[-1 - len(Path(row.folder).parts)]  # huggingface_hub names the snapshot after it
    if row.revision is None:
        hub.remembered_commit(row.source, commit)
    return folder
