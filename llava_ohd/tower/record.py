"""ohd.json: what an encoder folder must hold, and whether it still does.

{"format": 2, "kind": "encoder", "name", "digest": of the vision tower, "file_sha256": of model.safetensors,
 "files": {NAME: SHA-256 of every other file that a loader reads}, "parents": [{"path", "digest"}],
 "config": {how it was made}, "versions": {...}}

Format 1 had no "files": such a folder is still read, with the checks that it has; `import OLD NEW` makes it format 2.
"""

from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, EncoderFormatError
from llava_ohd.files import read_json, sha256_file

__all__ = ["COPIED", "FORMAT", "check_record", "compare_files", "file_sums", "read_object"]

FORMAT = 2
"""Version of the layout that ohd.json states."""

COPIED = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What an encoder folder takes over from the one whose tokenizer and preprocessor it has."""

_RESTORE = "restore it, or make the folder again"


def read_object(file: Path, problem: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        file: The file.
        problem: What it means that it cannot be read; begins the error.

    Raises:
        EncoderFormatError: missing, damaged, or something else.
    """
    try:
        record = read_json(file)
    except DataFormatError as error:
        raise EncoderFormatError(f"{problem}: {error}") from None
    if not isinstance(record, dict):
        raise EncoderFormatError(f"{file} holds {type(record).__name__}; an object is expected")
    return record


def file_sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file, beside the weights, that decides what a loader makes of the folder."""
    return {name: sha256_file(folder / name) for name in ("config.json", *COPIED) if (folder / name).is_file()}


def compare_files(folder: Path, found: dict[str, str], expected: dict[str, str], whose: str) -> None:
    """Compares the files beside the weights with what they were.

    Args:
        folder: The encoder folder.
        found: `file_sums` of it.
        expected: The sums that were recorded.
        whose: Where they were recorded, for the message.

    Raises:
        EncoderFormatError: one is missing, was altered, or was added; the message names it.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise EncoderFormatError(f"{folder / name} is missing, which {whose} lists; {_RESTORE}")
        if name not in expected:
            raise EncoderFormatError(f"{folder / name} was added; {whose} does not list it. Remove it, or {_RESTORE}")
        if found[name] != expected[name]:
            raise EncoderFormatError(
                f"{folder / name} was altered: SHA-256 {found[name][:12]}, {whose} says {str(expected[name])[:12]}. "
                f"To keep the old content, {_RESTORE}; to keep the change, write the model anew "
                "(`python -m llava_ohd.tower import` from a copy without ohd.json)"
            )


def check_record(folder: Path, weights: Path, digest: str, sums: dict[str, str]) -> str:
    """Compares a folder with its ohd.json.

    Args:
        folder: The encoder folder.
        weights: Its weights file.
        digest: That of the vision tower in it.
        sums: `file_sums`, and the SHA-256 of the weights file under its name. Taken before anything else was read: of
            a folder that is replaced meanwhile, no mixture passes.

    Returns:
        The encoder's name; the folder's name where there is no ohd.json.

    Raises:
        EncoderFormatError: another digest, or another file.
    """
    if not (folder / "ohd.json").is_file():
        return folder.resolve().name
    record = read_object(folder / "ohd.json", "incomplete encoder folder")
    if record.get("format") not in (1, FORMAT) or record.get("kind") != "encoder":
        raise EncoderFormatError(
            f"{folder}/ohd.json is format {record.get('format')!r}, kind {record.get('kind')!r}; format 1 or {FORMAT}, "
            "kind 'encoder' is expected. A newer version of llava_ohd may have written it"
        )
    if record.get("digest") != digest:
        raise EncoderFormatError(
            f"{weights}: the vision tower has digest {digest[:12]}, ohd.json says {str(record.get('digest'))[:12]}; "
            "the weights were altered or belong to another encoder. Copy the folder again, or make it again"
        )
    if record.get("file_sha256") != sums.get(weights.name):
        raise EncoderFormatError(
            f"{weights} was altered after it was written (outside the vision tower); copy or make the folder again"
        )
    if record["format"] == FORMAT:
        listed = record.get("files")
        if not isinstance(listed, dict):
            raise EncoderFormatError(f"{folder}/ohd.json: files is {listed!r}; SHA-256 by name is expected; {_RESTORE}")
        compare_files(folder, {name: value for name, value in sums.items() if name != weights.name}, listed, "ohd.json")
    return str(record.get("name") or folder.resolve().name)
