"""What every command does with answers that are there already: where results lie, what is kept, which flags count."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, OptionError, StorageError
from llava_ohd.files import read_jsonl, sha256_file, write_jsonl

__all__ = ["flags_of", "keep", "out_beside", "refuse_idle", "stated", "told"]

_MARK = "scored_from"  # in the metadata of rows that `keep` wrote


def out_beside(file: Path) -> Path:
    """Returns where the results of a file or folder of answers lie unless --out says it: NAME_scored/ beside it.

    Raises:
        OptionError: it has no name of its own.
    """
    place = file.resolve() if file.name in ("", "..") else file
    if not place.name:
        raise OptionError(f"{file} has no name that results could be named after; give a folder as --out")
    return place.with_name(f"{place.name if place.is_dir() else place.stem}_scored")


def told(files: Iterable[Path]) -> list[dict[str, str]]:
    """Returns name and SHA-256 of each file of answers, for the details of results.json."""
    return [{"name": file.name, "sha256": sha256_file(file)} for file in files]


def keep(path: Path, rows: Sequence[dict[str, Any]], files: Sequence[Path]) -> list[dict[str, str]]:
    """Writes the answers that were scored beside their results, where comparisons look for them; returns `told(files)`.

    Args:
        path: OUT/answers.jsonl; if that is the one file that was given, it stays as it is.
        rows: In the form of this package.
        files: Where the answers are from.

    Raises:
        StorageError: another file has this name; or no room, not writable.
    """
    if path.exists():
        if len(files) == 1 and (path.samefile(files[0]) or sha256_file(path) == sha256_file(files[0])):
            return told(files)
        if not _kept_before(path):
            raise StorageError(
                f"{path} is there and holds other answers than those given; it is not replaced. Give another folder "
                "as --out"
            )
    mark = {_MARK: ", ".join(file.name for file in files)}
    write_jsonl(path, ({**row, "metadata": mark} for row in rows))
    return told(files)


def _kept_before(path: Path) -> bool:
    try:
        rows = read_jsonl(path)
    except DataFormatError:
        return False
    return all(isinstance(row.get("metadata"), dict) and _MARK in row["metadata"] for row in rows)


def stated(parser: argparse.ArgumentParser, given: argparse.Namespace) -> set[str]:
    """Returns the names of the flags that stand on the command line, not those that are there by default."""
    untouched = object()
    again = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(given), untouched)))
    return {name for name, value in vars(again).items() if value is not untouched}


def flags_of(add_flags: Callable[[argparse.ArgumentParser, int], Any]) -> set[str]:
    """Returns the names of the flags that `answering.options.add_flags` adds: who answers, and how."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser, 1)
    return set(vars(parser.parse_args([])))


def refuse_idle(flags: Iterable[str], idle: Iterable[str], why: str) -> None:
    """Refuses flags that would change nothing.

    Args:
        flags: From `stated`.
        idle: Those that change nothing.
        why: In which case, for the message.

    Raises:
        OptionError: there is one.
    """
    if found := sorted(set(flags) & set(idle)):
        shown = ", ".join(f"--{name}" for name in found)
        raise OptionError(f"{shown} would change nothing {why}; leave {'it' if len(found) == 1 else 'them'} out")
