"""What is wrong with a training set: every row and every image looked at, by several processes, before it costs GPUs.

The work is cut into pieces of rows; what each piece found is a line in a journal, so that a run that was killed goes on
behind the last whole line. The end is a manifest: what was looked at, by digest, and every row with a finding. Training
takes it (`--data_manifest`), or makes one itself (`--data_policy skip`).
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ohd.errors import StageFailed
from llava_ohd.files import read_json, sha256_file, sha256_json, storage_errors, write_json
from llava_ohd.llava15.examination import Checks, look
from llava_ohd.llava15.image_source import image_source
from llava_ohd.llava15.row_files import records
from llava_ohd.llava15.rows import FAULTS, Finding, examine
from llava_ohd.progress import Progress

__all__ = ["diagnose", "summary"]

_PIECE = 200  # rows


def diagnose(checks: Checks, manifest: Path, processes: int | None = None, keep: bool = False) -> dict[str, Any]:
    """Looks at every row and image, and writes the manifest; goes on where a killed run stopped.

    Args:
        checks: What to look at.
        manifest: Where to write.
        processes: How many to start; None: one per CPU core, 1: none.
        keep: Return a manifest of the same file and checks that is there already. A training that goes on must leave
            out the same rows as before, whatever happened to the images.

    Raises:
        DataFormatError: the file is no JSON, or there is no such image folder.
        StageFailed: a process was killed from outside.
    """
    made_from = {"data_sha256": _data_sha256(checks), "images": str(checks.image_folder.resolve())} | checks.settings()
    fingerprint = sha256_json(made_from)
    if keep and manifest.is_file() and read_json(manifest).get("fingerprint") == fingerprint:
        return dict(read_json(manifest))
    image_source(checks.image_folder)
    total = sum(1 for _ in records(checks.data_path))
    journal = _Journal(manifest.with_name(f"{manifest.name}.journal"), fingerprint)
    images: dict[str, Any] = {}
    rows: dict[int, list[Finding]] = {}
    with journal:
        progress = Progress("looking at training rows", total)
        for numbers, result in _results(checks, journal, processes or os.cpu_count() or 1):
            images |= result["images"]
            for number, findings in result["rows"].items():
                rows[int(number)] = [Finding(*finding) for finding in findings]
            progress.update(numbers)
    listed = _by_row(checks, rows, images)
    kinds = Counter(kind for finding in listed for kind in {finding["kind"]})
    faulty = {finding["row"] for finding in listed if finding["kind"] in FAULTS}
    digest = hashlib.sha256("".join(f"{name}\0{images[name][0]}\n" for name in sorted(images)).encode())
    record = {
        "fingerprint": fingerprint,
        "made_from": made_from,
        "data_path": str(checks.data_path),
        "rows": total,
        "faulty_rows": len(faulty),
        "images": {"count": len(images), "bytes": sum(row[1] for row in images.values()), "sha256": digest.hexdigest()},
        "counts": dict(sorted(kinds.items())),
        "findings": listed,
    }
    write_json(manifest, record)
    journal.path.unlink(missing_ok=True)
    return record


def _data_sha256(checks: Checks) -> str:
    for _ in records(checks.data_path):  # says what is wrong with a file that is missing or empty
        break
    return sha256_file(checks.data_path)


class _Journal:
    """A line for each piece that is done; the first says of what. A line that a kill cut short does not count.

    Pieces with a faulty image are looked at again: it may be there now.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.done: dict[int, dict[str, Any]] = {}
        whole = 0
        if path.is_file():
            lines = path.read_bytes().split(b"\n")[:-1]
            if lines and json.loads(lines[0]) == {"fingerprint": fingerprint}:
                whole = sum(len(line) + 1 for line in lines)
                pieces = [json.loads(line) for line in lines[1:]]
                fine = [piece for piece in pieces if not any(image[2] for image in piece["images"].values())]
                self.done = {piece["piece"]: piece for piece in fine}
        self._whole, self._fingerprint = whole, fingerprint

    def __enter__(self) -> "_Journal":
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(self._whole)
        if not self._whole:
            self.add({"fingerprint": self._fingerprint})
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Appends a line."""
        with storage_errors(self.path):
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()


def _pieces(checks: Checks) -> Iterator[tuple[int, list[tuple[int, Any]], list[str]]]:
    """Yields number, rows, and the images that no piece before had; findings about the whole set come with a row."""
    seen: set[str] = set()
    piece: list[tuple[int, Any]] = []
    names: dict[str, None] = {}
    count = 0
    for number, record in records(checks.data_path):
        row, _ = examine(record, checks.template)
        for name in row["images"] if row else ():
            if name not in seen:
                seen.add(name)
                names[name] = None
        piece.append((number, record))
        if len(piece) == _PIECE:
            yield count, piece, list(names)
            piece, names, count = [], {}, count + 1
    if piece:
        yield count, piece, list(names)


def _end_with_parent() -> None:
    """Lets a worker end when the command was killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _results(checks: Checks, journal: _Journal, processes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of the last row, and the findings, of every piece; new ones go into the journal."""
    waiting: deque[tuple[int, dict[str, Any] | Future[dict[str, Any]]]] = deque()
    pool: ProcessPoolExecutor | None = None
    if processes > 1:
        spawn = multiprocessing.get_context("spawn")  # no fork beside threads of torch
        pool = ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent)

    def first() -> tuple[int, dict[str, Any]]:
        last, found = waiting.popleft()
        if isinstance(found, Future):
            found = found.result()
            journal.add(found)
        return last, found

    try:
        for number, piece, names in _pieces(checks):
            last = piece[-1][0]
            if number in journal.done:
                waiting.append((last, journal.done[number]))
            elif pool is not None:
                waiting.append((last, pool.submit(look, checks, number, piece, names)))
            else:
                found = look(checks, number, piece, names)
                journal.add(found)
                waiting.append((last, found))
            while len(waiting) > 4 * processes:
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool as error:
        raise StageFailed("a process was killed (out of memory?); the same command goes on where it stopped") from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _by_row(checks: Checks, rows: dict[int, list[Finding]], images: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists every finding with its row, in the order of the file: also those of images, and of rows that are alike."""
    listed = []
    seen: dict[str, dict[bytes, int]] = {"duplicate_id": {}, "duplicate_row": {}}
    for number, record in records(checks.data_path):
        row, _ = examine(record, checks.template)
        findings = list(rows.get(number, ()))
        for name in dict.fromkeys(row["images"]) if row else ():
            findings += [Finding(*finding) for finding in images[name][2]]
        for kind, key in _keys(row):
            before = seen[kind].setdefault(hashlib.blake2b(key.encode(), digest_size=12).digest(), number)
            if before != number:
                findings.append(
                    Finding(kind, f"row {before} has {'this id' if kind == 'duplicate_id' else 'the same'}")
                )
        name = row["id"] if row else str(record.get("id", "")) if isinstance(record, dict) else ""
        listed += [{"row": number, "id": name} | asdict(finding) for finding in findings]
    return listed


def _keys(row: dict[str, Any] | None) -> list[tuple[str, str]]:
    if row is None:
        return []
    own = [("duplicate_id", row["id"])] if row["id"] else []
    return [*own, ("duplicate_row", json.dumps([row["images"], row["turns"]]))]


def summary(record: dict[str, Any]) -> list[str]:
    """Describes a manifest: a line for each kind of finding, with the first row as example."""
    lines = [f"{record['rows']:,} rows, {record['images']['count']:,} images: {record['faulty_rows']:,} faulty rows"]
    for kind, count in record["counts"].items():
        first = next(finding for finding in record["findings"] if finding["kind"] == kind)
        sort = "fault " if kind in FAULTS else "remark"
        lines.append(f"  {sort} {kind:18} {count:>8,}  first: row {first['row']}: {first['text']}")
    if record["made_from"]["tokenizer_sha256"] is None:
        lines.append("  not looked at: lengths in tokens (give --model_name_or_path)")
    return lines
