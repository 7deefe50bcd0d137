"""Builds a file of OHD-Caps rows: for each image one caption and 27 captions that are wrong about it.

`planning.py` says what will be written, `by_rule.py` or `by_endpoint.py` writes it, `shards.py` keeps what is written.
"""

import importlib.metadata
import inspect
import platform
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from llava_ohd import __version__
from llava_ohd.code_digest import code_digest
from llava_ohd.errors import DataFormatError
from llava_ohd.files import sha256_file, write_json
from llava_ohd.ohd_caps.by_rule import RuleWriter, Written
from llava_ohd.ohd_caps.coco import CocoImage
from llava_ohd.ohd_caps.exclusions import image_key, read_exclusions
from llava_ohd.ohd_caps.planning import BuildConfig, Plan, Planned, make_plans
from llava_ohd.ohd_caps.readers import write_rows
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.ohd_caps.shards import write_in_shards

__all__ = ["BuildConfig", "Exclusion", "Writer", "build_file", "build_rows", "exclusions", "provenance_path"]


class Writer(Protocol):
    """Writes rows of plans."""

    identity: dict[str, Any]
    """What it is: enough to know whether two files were written alike, and nothing secret."""

    def __call__(self, plans: Sequence[Plan]) -> list[Written]:
        """Writes one row per plan, in their order."""


@dataclass(frozen=True)
class Exclusion:
    """A file of images to leave out.

    Attributes:
        path: The file.
        keys: Their `image_key`s.
        images: How many images of the source they are.
    """

    path: Path
    keys: frozenset[str]
    images: int


def exclusions(paths: Iterable[Path], images: Sequence[CocoImage]) -> list[Exclusion]:
    """Reads files of images to leave out, and counts how many of the images each has.

    Raises:
        DataFormatError: a missing or empty file, or one without images.
    """
    found = []
    for path in paths:
        keys = frozenset(read_exclusions(path))
        found.append(Exclusion(path, keys, sum(image_key(image.file_name) in keys for image in images)))
    return found


def build_rows(
    images: Sequence[CocoImage],
    config: BuildConfig,
    *,
    vocabulary: Iterable[str] = (),
    excluded: Collection[str] = (),
) -> list[OhdRow]:
    """Builds rows by rule in memory; arguments and errors are those of `planning.make_plans`."""
    planned = make_plans(images, config, vocabulary=vocabulary, excluded=excluded)
    return [written.row for written in RuleWriter(planned)(planned.plans)]


def build_file(
    out: Path, planned: Planned, write: Writer, sources: Sequence[Path], left_out: Sequence[Exclusion]
) -> list[Written]:
    """Writes the rows and, beside them, where they come from; goes on where an interrupted run stopped.

    Args:
        out: The file of rows. `OUT.parts` is there while it is not finished.
        planned: What to write.
        write: Writes it.
        sources: The files that the images come from.
        left_out: What was excluded.

    Returns:
        The rows, and how they were written.

    Raises:
        DataFormatError: `out` is one of the sources.
        StageFailed: an endpoint's budget is used up or it does not answer; what it answered is kept.
        StorageError: the disk is full or not writable.
    """
    if out.resolve() in [source.resolve() for source in sources]:
        raise DataFormatError(f"{out} is what the rows are made from and would be lost; give another --out")
    parts = out.with_name(f"{out.name}.parts")
    code = [code_digest(Path(file)) for file in (__file__, inspect.getfile(type(write)))]
    made_from = {"code": code, "planned": planned.digest, "writer": write.identity}
    workers = planned.config.workers if isinstance(write, RuleWriter) else 1
    written = write_in_shards(parts, made_from, planned.plans, write, workers)
    write_rows(out, [item.row for item in written])
    write_json(provenance_path(out), _provenance(out, planned, write, written, sources, left_out))
    shutil.rmtree(parts)
    return written


def provenance_path(out: Path) -> Path:
    """Returns where the origin of a file of rows is written down."""
    return out.with_name(f"{out.stem}.provenance.json")


def _provenance(
    out: Path,
    planned: Planned,
    write: Writer,
    written: Sequence[Written],
    sources: Sequence[Path],
    left_out: Sequence[Exclusion],
) -> dict[str, Any]:
    config = asdict(planned.config)
    del config["workers"]  # does not change the rows
    strategies = Counter(negative.strategy for item in written for negative in item.row.negatives)
    return {
        "file": out.name,
        "sha256": sha256_file(out),
        "rows": len(written),
        "config": config,
        "sources": [_named(path) for path in sources],
        "exclusions": [
            {**_named(item.path), "names": len(item.keys), "images_excluded": item.images} for item in left_out
        ],
        "objects": len(planned.lexicon.names),
        "negatives": dict(strategies),
        "rewriter": write.identity,
        "by_rule_instead": {
            "negatives": sum(item.fallbacks for item in written),
            "rows": sum(item.fallbacks > 0 for item in written),
        },
        "versions": {
            "python": platform.python_version(),
            "llava_ohd": __version__,
            "inflect": importlib.metadata.version("inflect"),
        },
    }


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_file(path)}
