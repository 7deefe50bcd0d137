"""Finds test and dev rows: in a folder laid out as the authors' (`dev/`, `test/`), beside a file, or as given.

    data/ohd_caps/dev/coco_annotations.json, dev_data.json
    data/ohd_caps/test/{coco,flickr,nocaps}_{annotations,out_label}.json

Where a set has both forms, the rows are those of the flat file, on which the paper's numbers are (NoCaps: 500, its
annotations have 565), read from the annotation file, which says how every negative caption was made.
"""

from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import OhdRow

__all__ = ["dev_file", "read_dev", "read_test_sets"]

_ANNOTATIONS, _FLAT = "_annotations", "_out_label"
_NOT_TEST = ("dev", "train", "all_train")
_DEV = ("dev/coco_annotations.json", "dev/coco_annotations.jsonl", "dev/dev.jsonl", "dev/dev_data.json")
_BESIDE = ("dev.jsonl", "train.jsonl")


def read_test_sets(path: Path) -> dict[str, list[OhdRow]]:
    """Reads one file, or every test file of a folder.

    Args:
        path: A file of rows; or a folder with the files, or with a folder `test` that has them.

    Returns:
        The rows of each set by its name: `coco` for `coco_annotations.json`, `coco_out_label.json`, `coco.jsonl`.

    Raises:
        DataFormatError: nothing there, a file in none of the three forms, or two forms of a set that differ.
    """
    if not path.is_dir():
        return {set_name(path): read_rows(path)}
    folder = path / "test" if (path / "test").is_dir() else path
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.json*")):
        if not file.stem.startswith(_NOT_TEST) and file.name != "complete.json":
            files.setdefault(set_name(file), []).append(file)
    if not files:
        raise DataFormatError(f"{folder} has no test file; expected are such as coco_out_label.json or test.jsonl")
    return {name: _read_set(forms) for name, forms in files.items()}


def set_name(file: Path) -> str:
    """Returns the name of the set that a file holds."""
    return file.stem.removesuffix(_ANNOTATIONS).removesuffix(_FLAT)


def _read_set(files: list[Path]) -> list[OhdRow]:
    forms = {next((form for form in (_ANNOTATIONS, _FLAT) if file.stem.endswith(form)), ""): file for file in files}
    if len(files) == 1:
        return read_rows(files[0])
    if forms.keys() != {_ANNOTATIONS, _FLAT}:
        raise DataFormatError(f"{', '.join(map(str, files))} have one name; give the file that is the test set")
    described = {row.image: row for row in read_rows(forms[_ANNOTATIONS])}
    flat = read_rows(forms[_FLAT])
    for row in flat:
        if row.image not in described or row.caption != described[row.image].caption:
            raise DataFormatError(
                f"{forms[_FLAT]} and {forms[_ANNOTATIONS]} differ about {row.image}; give one of the files"
            )
    return [described[row.image] for row in flat]


def dev_file(path: Path) -> Path | None:
    """Returns the file that controls are fitted on when none is named: the dev (or training) rows nearest to `path`.

    Args:
        path: What `read_test_sets` was given.
    """
    folder = path if path.is_dir() else path.parent
    found = [*(folder / name for name in _DEV + _BESIDE), *(folder.parent / name for name in _DEV)]
    return next((file for file in found if file.is_file() and file != path), None)


def read_dev(path: Path, limit: int = 1000) -> list[OhdRow]:
    """Reads the rows with more than half as many negatives as the longest, at most `limit` rows.

    The authors' compositional rows have at most 4 negatives, the others 27, of which a cleaned copy lacks some.

    Raises:
        DataFormatError: missing or empty file, or a row in none of the three forms.
    """
    rows = read_rows(path)
    most = max(len(row.negatives) for row in rows)
    return [row for row in rows if len(row.negatives) > most / 2][:limit]
