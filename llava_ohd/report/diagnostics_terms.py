"""Whether the results of two encoders may stand on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.probes.evaluate import check_digest
from llava_ohd.results import differences, read_results

__all__ = ["read_alike"]

_TERMS = ("eval", "rule", "set", "n", "versions")
_CHANGE_NOTHING = {"batch_size", "device", "out", "seconds"}


def read_alike(names: Sequence[str], folders: Sequence[Path], evaluation: str) -> list[dict[str, Any]] | str:
    """Reads the results of an evaluation of two encoders.

    Args:
        names: Of the encoders.
        folders: Of their results.
        evaluation: Such as `dense`, the folder's name, too.

    Returns:
        The records; or, where one is not there, a sentence that says how to make it.

    Raises:
        DataFormatError: one is unfinished, they differ in set, rule, settings or versions, or one is of another encoder
            than the one that bears the name today.
    """
    files = [folder / evaluation / "results.json" for folder in folders]
    for name, file in zip(names, files, strict=True):
        if not file.is_file():
            return f"{file.parent}; run: python eval/{evaluation}.py --encoder {name}"
    records = [read_results(file) for file in files]
    for name, file, record in zip(names, files, records, strict=True):
        check_digest(file.parent, record, name)
        if not record["complete"]:
            raise DataFormatError(f"{file.parent} is incomplete; run its evaluation again, it goes on where it stopped")
    if unlike := differences(*map(_terms, records)):
        raise DataFormatError(
            f"{files[0].parent} and {files[1].parent} cannot stand on one page: {'; '.join(unlike)}. Measure both in "
            "the same way"
        )
    return records


def _terms(record: dict[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in record.get("settings", {}).items() if key not in _CHANGE_NOTHING}
    if settings.get("flag") is not None:  # the share was asked for; the threshold that gives it is the encoder's own
        settings.pop("threshold", None)
    return {**{key: record.get(key) for key in _TERMS}, **{f"setting {key}": value for key, value in settings.items()}}
