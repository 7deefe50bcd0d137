"""Reading and writing files so that a reader never meets half of one.

Every write goes to a temporary name in the same folder, is flushed to disk and then renamed, so that after a kill
or a full disk the old file is still there or none is. A folder of several files is whole when `complete.json` says so.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, StorageError

__all__ = [
    "COMPLETE",
    "atomic_folder",
    "atomic_path",
    "is_complete",
    "locked",
    "mark_complete",
    "read_json",
    "read_json_objects",
    "read_jsonl",
    "read_text",
    "remove_folder",
    "sha256_file",
    "sha256_json",
    "storage_errors",
    "write_json",
    "write_jsonl",
    "write_text",
]

COMPLETE = "complete.json"
_CARD = "README.md"  # a model card may be written anew when there are more results; the work is whole without it
_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder is needed",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns "no space left" and its kin into a `StorageError` that names the place and the free bytes."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        folder = next(p for p in [path, *path.absolute().parents] if p.exists())
        free = shutil.disk_usage(folder).free / 2**20
        raise StorageError(
            f"cannot write {path}: {reason} ({free:.0f} MiB free). Make room or choose another folder, then run the "
            "same command again: it goes on where it stopped."
        ) from error


def _storage_reason(error: Exception) -> str | None:
    """Says what is wrong with the disk; None where the error is of another kind."""
    if isinstance(error, OSError):
        return _WHY.get(error.errno or 0)
    # safetensors and torch have errors of their own for it
    text = f"{error} {error.__context__}"
    full = "o space left" in text or "PytorchStreamWriter failed writing" in text
    return _WHY[errno.ENOSPC] if full else None


def _temporary(path: Path) -> Path:
    """Returns a new temporary name for `path`, and removes what killed writers on this machine left behind.

    The name holds machine, process and a random part: threads, and machines that share a disk, never meet.
    """
    start = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        parts = left.name.removeprefix(start).split(".")  # a longer name belongs to a file whose name begins like this
        if len(parts) == 4 and parts[0] == _machine() and parts[1].isdigit() and not _is_running(int(parts[1])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{start}{_machine()}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _machine() -> str:
    return re.sub(r"[^\w-]", "-", platform.node())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it replaces `path`, otherwise it is removed.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with storage_errors(path):
        temporary = _temporary(path)
        try:
            _make_folder_of(path)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            if temporary.parent.is_dir():
                temporary.unlink(missing_ok=True)


def _make_folder_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as in /proc, or where a link leads nowhere
        raise StorageError(f"cannot write {path}: the folder cannot be made there; choose another") from error


@contextmanager
def atomic_folder(path: Path, marker: str | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on a clean exit it replaces `path`, otherwise it is removed.

    Args:
        path: The folder to make.
        marker: A name inside every folder of this kind: one that has content but not this is not replaced.

    Raises:
        StorageError: the disk is full or not writable, or `path` holds something else.
    """
    if marker and path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise StorageError(f"{path} holds something else (no {marker} in it) and is not replaced; give another folder")
    with storage_errors(path):
        temporary = _temporary(path)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Puts `new` in the place of `path`, as often as another writer puts its own there in between."""
    while True:
        remove_folder(path)
        try:
            new.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def remove_folder(path: Path) -> None:
    """Removes a folder so that a kill leaves no part of it under its name; does nothing where there is none."""
    if path.is_dir():
        doomed = _temporary(path.with_name(f"{path.name}.old"))
        with suppress(FileNotFoundError):  # another process was faster
            path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Lets one process or thread at a time read and rewrite the file `path`, or what else that name stands for.

    Args:
        path: The lock is a file beside it, which stays.
        wait: Whether to wait for another process that has it.

    Raises:
        StorageError: the disk is full or not writable; or another process has it, and there is no waiting.
    """
    import fcntl

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(
                    f"another process is at work in {path.parent}; wait for its end, or give another folder"
                ) from None
            yield


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_text(path: Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        DataFormatError: missing, a folder, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark, as Windows writes it, is no part of the text
    except FileNotFoundError:
        raise DataFormatError(f"{path} does not exist; give the path of an existing file") from None
    except IsADirectoryError:
        raise DataFormatError(f"{path} is a folder; a file is expected") from None
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataFormatError(f"{path} is empty; make it again, it may stem from an interrupted run")
    return text


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataFormatError: missing, empty, or not JSON; the message gives the line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"{path} is not JSON: {_why_not_json(error)}") from None


def _why_not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)  # a number of thousands of digits


def _cut_off(text: str, last: str) -> str:
    return "" if text.rstrip().endswith(last) else f"; the file does not end with {last}, it may have been cut off"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {[key[:40] for key, _ in pairs][:9]}")
    return found


def read_jsonl(path: Path, *, unique_keys: bool = False) -> list[dict[str, Any]]:
    """Reads JSON Lines (also files named `.json` that hold one object per line) or one JSON array of objects.

    Args:
        path: The file.
        unique_keys: Refuses an object that has a key twice; the last one would count silently.

    Raises:
        DataFormatError: missing, empty, not JSON, or a row that is not an object; the message gives the line.
    """
    text = read_text(path)
    hook = _unique if unique_keys else None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text, object_pairs_hook=hook)
        except (ValueError, RecursionError) as error:
            raise DataFormatError(f"{path} is not JSON: {_why_not_json(error)}{_cut_off(text, ']')}") from None
    else:
        rows, lines = [], text.rstrip().split("\n")  # not splitlines: U+2028 may stand inside a string
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line, object_pairs_hook=hook))
                except (ValueError, RecursionError) as error:
                    why = error.msg if isinstance(error, json.JSONDecodeError) else _why_not_json(error)
                    torn = isinstance(error, json.JSONDecodeError) and number == len(lines) > 1
                    why += (
                        f"; it is the last line, the file may have been cut off after {len(rows)} rows" if torn else ""
                    )
                    raise DataFormatError(f"{path} line {number} is not JSON: {why}") from None
    if not rows:
        raise DataFormatError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataFormatError(f"{path} row {number} is {type(row).__name__}; an object is expected")
    return rows


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """Reads JSON objects one after another, each over one or several lines (so also JSON Lines), or one JSON array.

    Raises:
        DataFormatError: missing, empty, not JSON, a row that is not an object, or one that has a key twice; the message
            gives the line.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return read_jsonl(path, unique_keys=True)
    rows: list[dict[str, Any]] = []
    decoder, blank = json.JSONDecoder(object_pairs_hook=_unique), re.compile(r"\s*")
    place = len(text) - len(text.lstrip())
    while place < len(text):
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            line, torn = text.count("\n", 0, place) + 1, _cut_off(text, "}")
            raise DataFormatError(f"{path} line {line} is not JSON: {why}{torn}") from None
        if not isinstance(row, dict):
            raise DataFormatError(f"{path} row {len(rows) + 1} is {type(row).__name__}; an object is expected")
        rows.append(row)
        place = blank.search(text, place).end()  # type: ignore[union-attr]  # it always matches
    return rows


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def mark_complete(folder: Path, fingerprint: str) -> None:
    """Records that `folder` holds everything of one run, with the size of every file in it.

    Args:
        folder: The output folder of a stage.
        fingerprint: What the run was made from (command, inputs); another fingerprint makes the folder stale.
    """
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (COMPLETE, _CARD)
    }
    write_json(folder / COMPLETE, {"fingerprint": fingerprint, "files": sizes})


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Says whether `folder` was marked complete with this fingerprint and no file is missing or of another size."""
    marker = folder / COMPLETE
    if not marker.is_file():
        return False
    try:
        record = read_json(marker)
    except DataFormatError:
        return False
    if record.get("fingerprint") != fingerprint:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in record["files"].items()
    )
