"""Snapshots of Hugging Face Hub repositories on this machine. huggingface_hub is imported at the first download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound
from llava_ohd.files import locked, read_json, write_json
from llava_ohd.home import home

__all__ = ["encoder_snapshot", "remembered_commit", "source_snapshot", "whole_snapshot"]

_SMALL = ("*.json", "*.txt")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def encoder_snapshot(repository: str, revision: str | None = None, folder: str = "", local: bool = False) -> Path:
    """Returns an encoder folder out of a repository, downloaded unless all of it is in the local cache.

    Args:
        repository: `org/name`.
        revision: Commit, tag or branch; left out, the newest that is known here, or the newest.
        folder: Where inside the repository the encoder lies.
        local: Download nothing.

    Raises:
        EncoderNotFound: no such repository or revision, or no network.
    """
    patterns = [f"{folder}/{file}" if folder else file for file in (*_SMALL, *_WEIGHTS)]
    try:
        place = _snapshot(repository, revision, patterns, local_files_only=True) / folder
        if _is_whole(place):  # a download that was interrupted leaves a part
            return place
    except EncoderNotFound:
        if local:
            raise
    if local:
        raise EncoderNotFound(f"{repository} is not whole in the local cache; download it again")
    return _snapshot(repository, revision, patterns) / folder


def _is_whole(folder: Path) -> bool:
    small = all((folder / name).is_file() for name in ("config.json", "preprocessor_config.json"))
    return small and any((folder / name).is_file() for name in _WEIGHTS)


def source_snapshot(repository: str, revision: str | None) -> Path:
    """Returns a whole repository for import: safetensors where there are any, else the older containers.

    Raises:
        EncoderNotFound: no such repository or revision, or no network.
    """
    snapshot = _snapshot(repository, revision, [*_SMALL, "*.safetensors"])
    if any(snapshot.glob("*.safetensors")):
        return snapshot
    return _snapshot(repository, revision, [*_SMALL, "*.bin", "*.pt"])


def whole_snapshot(repository: str) -> Path:
    """Returns a whole repository, such as a checkpoint of LLaVA with the encoder that may lie in it.

    Raises:
        EncoderNotFound: no such repository, or no network.
    """
    return _snapshot(repository, None, ["*"])


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str], **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), **settings))
    except Exception as error:  # whatever the network, the proxy or the Hub answers
        at = f" at revision {revision!r}" if revision else ""
        raise EncoderNotFound(f"the Hub repository {repository}{at} cannot be had ({error})") from error


def remembered_commit(repository: str, found: str | None = None) -> str | None:
    """Returns the commit of a repository that was used here first, from `hub.json` in `home()`.

    A repository for which the code names no commit stays at this one: what its owner puts there later would be another
    encoder under the same name.

    Args:
        repository: `org/name`.
        found: The commit that was had now; it is remembered where there is none yet.

    Raises:
        DataFormatError: the file is damaged.
        EncoderFormatError: another commit than the remembered one was had.
    """
    file = home() / "hub.json"
    if found is None:
        return _commits(file).get(repository)
    with locked(file):
        commits = _commits(file)
        if commits.setdefault(repository, found) != found:
            raise EncoderFormatError(
                f"{repository} was at commit {commits[repository]} when it was first used here, and is {found} now: "
                f"maybe another encoder. Take the old one from a backup, or remove its line from {file} to accept this"
            )
        write_json(file, commits)
    return found


def _commits(file: Path) -> dict[str, str]:
    commits = read_json(file) if file.is_file() else {}
    if not isinstance(commits, dict) or not all(isinstance(commit, str) for commit in commits.values()):
        raise DataFormatError(f"{file} is not a list of commits by repository; remove it")
    return commits
