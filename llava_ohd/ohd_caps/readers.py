"""Reads OHD-Caps in its three forms and writes ours.

- ours, JSON Lines: `{"image", "caption", "negatives": [{"caption", "strategy", "objects"}], "objects"}`;
- the authors' annotation files (`*_annotations.json`): `file_path`, `positive_sample`, `ground_truth`, and from
  "object, object" to caption `random_samples`, `popular_samples`, `adversarial_samples` and `delete_samples`;
- the authors' flat files (`*_out_label.json`, `dev_data.json`, `all_train.json`, also inside its `all_train.zip`):
  `image`, `caption` (28, shuffled), `label` (index of the right one) and sometimes `valid_caption` (0 marks a filler:
  "###", once "##z#").

A newline inside a caption becomes a blank, as in the authors' flat files, so that both forms give the same captions.
Negatives equal to the caption are kept here: `ohd_caps/audit.py` counts and drops them.

Source: Yufang-Liu/clip_hallucination@8a748e6 data/OHD-Caps, utils/generate_negative_samples.py
"""

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_jsonl, write_jsonl
from llava_ohd.ohd_caps.records import INSERTIONS, STRATEGIES, UNKNOWN, Negative, OhdRow

__all__ = ["read_rows", "write_rows"]

_FILLER = "###"


def read_rows(path: Path, verbatim: bool = False) -> list[OhdRow]:
    """Reads a file of OHD-Caps rows; the form is recognised by the keys of each row.

    Args:
        path: JSON Lines, or one JSON array of the same objects; or a zip archive with one such file.
        verbatim: Leave newlines inside captions as they are.

    Returns:
        The rows in the order of the file; every row has at least one negative.

    Raises:
        DataFormatError: missing or empty file, or a row in none of the three forms; the message gives the row number.
    """
    rows = []
    for number, record in enumerate(_records(path), 1):
        try:
            row = _parse(record)
            rows.append(row if verbatim else _on_one_line(row))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataFormatError(
                f"{path} row {number} is not an OHD-Caps row: {reason}. Expected is a file of "
                "scripts/build_ohd_caps.py, or *_annotations.json or *_out_label.json of the authors"
            ) from None
    return rows


def write_rows(path: Path, rows: Iterable[OhdRow]) -> None:
    """Writes rows in our form, atomically.

    Raises:
        DataFormatError: there are no rows.
        StorageError: the disk is full or not writable.
    """
    records = [
        {
            "image": row.image,
            "caption": row.caption,
            "negatives": [
                {"caption": n.caption, "strategy": n.strategy, "objects": list(n.objects)} for n in row.negatives
            ],
            "objects": list(row.objects),
        }
        for row in rows
    ]
    if not records:
        raise DataFormatError(f"{path} would have no rows; give images with captions and objects")
    write_jsonl(path, records)


def _records(path: Path) -> list[dict[str, Any]]:
    if not zipfile.is_zipfile(path):
        return read_jsonl(path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith((".json", ".jsonl"))]
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise DataFormatError(f"{path} holds {names or 'no .json'}; an archive with one .json file is expected")
    return read_jsonl(cast(Path, zipfile.Path(path, names[0])))


def _on_one_line(row: OhdRow) -> OhdRow:
    negatives = tuple(replace(negative, caption=_joined(negative.caption)) for negative in row.negatives)
    return replace(row, caption=_joined(row.caption), negatives=negatives)


def _joined(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ")


def _parse(record: dict[str, Any]) -> OhdRow:
    forms: dict[str, Callable[[dict[str, Any]], OhdRow]] = {
        "negatives": _parse_ours,
        "positive_sample": _parse_annotation,
        "label": _parse_flat,
    }
    form = next((parse for key, parse in forms.items() if key in record), None)
    if form is None:
        raise ValueError(f"its keys are {sorted(record)}, none of {sorted(forms)} is among them")
    row = form(record)
    if not row.negatives:
        raise ValueError("it has no negative caption")
    return row


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a text is expected where {value!r} stands")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"a list of object names is expected where {value!r} stands")
    return tuple(_text(name) for name in value)


def _parse_ours(record: dict[str, Any]) -> OhdRow:
    negatives = []
    for negative in record["negatives"]:
        strategy = negative["strategy"]
        if strategy not in STRATEGIES:
            raise ValueError(f"the strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
        negatives.append(Negative(_text(negative["caption"]), strategy, _names(negative["objects"])))
    return OhdRow(_text(record["image"]), _text(record["caption"]), tuple(negatives), _names(record["objects"]))


def _parse_annotation(record: dict[str, Any]) -> OhdRow:
    caption = _text(record["positive_sample"])
    negatives = [
        Negative(_text(text), strategy, tuple(key.split(", ")))
        for strategy in INSERTIONS
        for key, text in record[f"{strategy}_samples"].items()
    ]
    for key, text in record["delete_samples"].items():
        objects = tuple(key.split(", "))
        # The authors' own branch rule, a case-sensitive substring test: it chose which of two prompts was sent.
        strategy = "removal" if all(name in caption for name in objects) else "alteration"
        negatives.append(Negative(_text(text), strategy, objects))
    return OhdRow(_text(record["file_path"]), caption, tuple(negatives), _names(record["ground_truth"]))


def _parse_flat(record: dict[str, Any]) -> OhdRow:
    captions, label = record["caption"], record["label"]
    valid = record.get("valid_caption", [1] * len(captions))
    if len(valid) != len(captions):
        raise ValueError(f"valid_caption has {len(valid)} entries for {len(captions)} captions")
    if type(label) is not int or not 0 <= label < len(captions):
        raise ValueError(f"label is {label!r}; an index from 0 to {len(captions) - 1} is expected")
    if not valid[label] or captions[label] == _FILLER:
        raise ValueError(f"label {label} points to a filler")
    negatives = tuple(
        Negative(_text(text), UNKNOWN, ())
        for index, (text, flag) in enumerate(zip(captions, valid, strict=True))
        if index != label and flag and text != _FILLER
    )
    return OhdRow(_text(record["image"]), _text(captions[label]), negatives, ())
