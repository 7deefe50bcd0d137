"""Training files of any size, row by row, and as a table on disk that every rank and worker maps into its memory.

A file of 665,000 conversations is a gigabyte of text and several as Python objects, in every process. Here a file is
read once, a row at a time, into an Arrow table below `home()/rows`, named after what it is made from.
"""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import atomic_folder, locked, sha256_json, storage_errors
from llava_ohd.home import home
from llava_ohd.llava15.rows import examine

__all__ = ["records", "table"]

_BLOCK = 2**20  # characters read at a time
_LONGEST = 2**26  # characters of one row: a quotation mark that is missing must not read the whole file into memory
_VERSION = 2


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields number (from 1) and content of every row of a .json (an array) or .jsonl file (either name holds either).

    Raises:
        DataFormatError: missing, empty, or not JSON; the message names the row.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(_BLOCK).lstrip()
            while start == "" and (more := file.read(_BLOCK)):
                start = more.lstrip()
            if not start:
                raise DataFormatError(f"{path} is empty; make it again, it may stem from an interrupted run")
            number = 0
            for number, record in enumerate(_Rows(path, start, file.read), 1):
                yield number, record
    except FileNotFoundError:
        raise DataFormatError(f"{path} does not exist; give the path of an existing file") from None
    except IsADirectoryError:
        raise DataFormatError(f"{path} is a folder; a .json or .jsonl file is expected") from None
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} is not UTF-8 text ({error.reason})") from None
    if not number:
        raise DataFormatError(f"{path} has no rows")


class _Rows:
    """Takes JSON values off the front of a text that is read block by block."""

    def __init__(self, path: Path, text: str, read: Callable[[int], str]) -> None:
        self._path, self._read, self._number = path, read, 0
        self._is_array = text[0] == "["
        self._text, self._place = text, int(self._is_array)
        self._decode = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[Any]:
        while self._to_next():
            self._number += 1
            yield self._value()

    def _more(self) -> bool:
        block = self._read(_BLOCK)
        self._text, self._place = self._text[self._place :] + block, 0
        return bool(block)

    def _to_next(self) -> bool:
        """Goes to the next value; False at the end."""
        commas = 0
        while True:
            while self._place < len(self._text) and self._text[self._place] in " \t\r\n,":
                commas += self._text[self._place] == ","
                self._place += 1
            if self._place < len(self._text) or not self._more():
                break
        at_end = self._place == len(self._text)
        closed = not at_end and self._is_array and self._text[self._place] == "]"
        if at_end and self._is_array:
            raise self._error("the list is not closed: the file ends too early")
        if not at_end and commas != int(self._is_array and self._number > 0 and not closed):
            raise self._error("one comma between two rows is expected")
        if closed and (self._text[self._place + 1 :].strip() or (self._more() and self._text[1:].strip())):
            raise self._error("something follows the list")
        return not at_end and not closed

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if cut and len(self._text) - self._place < _LONGEST and self._more():
                    continue
                raise self._error(error.msg) from None
            if end == len(self._text) and not isinstance(value, dict) and self._more():
                continue  # a number may go on
            self._place = end
            return value

    def _error(self, what: str) -> DataFormatError:
        near = self._text[self._place : self._place + 40]
        return DataFormatError(f"{self._path} row {max(self._number, 1)} is not JSON: {what}, near {near!r}")


def table(path: Path, template: str, sha256: str, left_out: Collection[int] = ()) -> Any:
    """Returns the rows of a training file as a `datasets.Dataset`, memory-mapped.

    Args:
        path: The file.
        template: `plain` or `v1`.
        sha256: Digest of the file.
        left_out: Numbers of the rows to leave out.

    Returns:
        Columns `number` (from 1, in the file), `id`, `images`, `turns` and `words`, as `rows.examine` gives them, and
        `before`: bytes of the first question, of which no text has more tokens.

    Raises:
        DataFormatError: the file is no JSON, or a row has a fault; the message names the row.
    """
    import datasets

    texts = datasets.List(datasets.Value("string"))
    whole = {name: datasets.Value("int64") for name in ("number", "words", "before")} | {"id": datasets.Value("string")}
    features = datasets.Features(whole | {"images": texts, "turns": datasets.List(texts)})
    made_from = [_VERSION, datasets.__version__, sha256, template, sorted(left_out)]
    folder = home() / "rows" / sha256_json(made_from)[:24]
    with locked(folder.with_suffix(".made")):
        if not folder.is_dir():
            _make(folder, path, template, frozenset(left_out), features)
    return datasets.load_from_disk(str(folder))


def _make(folder: Path, path: Path, template: str, left_out: frozenset[int], features: Any) -> None:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    with storage_errors(folder), _scratch(folder) as scratch:
        try:
            rows = datasets.Dataset.from_generator(
                _checked,
                features=features,
                cache_dir=str(scratch),
                gen_kwargs={"path": path, "template": template, "left_out": left_out},
            )
            with atomic_folder(folder) as temporary:
                rows.save_to_disk(str(temporary))
        except DatasetGenerationError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, DataFormatError | OSError) else error from None
        finally:
            if shown:
                datasets.enable_progress_bars()


def _scratch(folder: Path) -> Any:
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")


def _checked(path: Path, template: str, left_out: frozenset[int]) -> Iterator[dict[str, Any]]:
    if left_out and sum(1 for _ in records(path)) == len(left_out):
        raise DataFormatError(f"{path}: no row is left to train on")
    for number, record in records(path):
        if number in left_out:
            continue
        row, findings = examine(record, template)
        if row is None:
            raise DataFormatError(f"{path} row {number}: {findings[0].text}")
        yield {"number": number, "before": len(row["turns"][0][0].encode())} | row
