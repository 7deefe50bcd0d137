"""Writes rows shard by shard, so that a kill costs one shard per process and a second run takes the rest.

Why not `datasets.Dataset.map(num_proc=...)`: it keeps a process's part only when that is finished, so that a kill costs
all of it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, read_jsonl, remove_folder, write_json, write_jsonl
from llava_ohd.ohd_caps.by_rule import Written
from llava_ohd.ohd_caps.planning import Plan
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.progress import Progress

__all__ = ["SHARD", "write_in_shards"]

SHARD = 200  # rows
_MADE_FROM = "made_from.json"

Write = Callable[[Sequence[Plan]], list[Written]]


def write_in_shards(folder: Path, made_from: Any, plans: Sequence[Plan], write: Write, workers: int) -> list[Written]:
    """Writes all plans, taking what an earlier run with the same `made_from` left in the folder.

    Args:
        folder: Where the shards lie until the caller has its file; another run's shards there are removed.
        made_from: Everything that the rows follow from, as JSON.
        plans: The plans.
        write: Writes some of them.
        workers: Processes; the rows do not depend on their number.

    Returns:
        The rows in the order of the plans.

    Raises:
        StorageError: the disk is full or not writable.
    """
    if not _is_of(folder, made_from):
        remove_folder(folder)
        write_json(folder / _MADE_FROM, made_from)
    shards = [(folder / f"{start:08d}.jsonl", plans[start : start + SHARD]) for start in range(0, len(plans), SHARD)]
    missing = [(path, part) for path, part in shards if not path.exists()]
    progress = Progress("Writing negative captions", len(plans))
    progress.update(len(plans) - sum(len(part) for _, part in missing))
    with _mapping(min(workers, len(missing))) as mapping:
        results = mapping(write, [part for _, part in missing])
        for (path, part), rows in zip(missing, results, strict=True):
            write_jsonl(path, map(asdict, rows))
            progress.update(progress.done + len(part))
    return [_parse(record) for path, _ in shards for record in read_jsonl(path)]


def _is_of(folder: Path, made_from: Any) -> bool:
    try:
        return bool(read_json(folder / _MADE_FROM) == json.loads(json.dumps(made_from)))
    except DataFormatError:  # nothing there, or torn
        return False


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[list[Written]]]]:
    """Yields `map`, over processes where there are several."""
    if workers <= 1:
        yield map
        return
    with get_context("spawn").Pool(workers) as pool:
        yield pool.imap


def _parse(record: dict[str, Any]) -> Written:
    row = record["row"]
    negatives = tuple(Negative(n["caption"], n["strategy"], tuple(n["objects"])) for n in row["negatives"])
    return Written(OhdRow(row["image"], row["caption"], negatives, tuple(row["objects"])), record["fallbacks"])
