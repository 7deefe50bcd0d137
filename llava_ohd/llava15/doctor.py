"""Looks at a training set before it costs GPU-hours: every row and every image.

Inputs:  a training file in LLaVA's format or with messages (--data_path), its images
         (--image_folder: a folder, zip or tar).
Outputs: a manifest with every finding and the digests of what was looked at (--manifest), for training's
         --data_manifest; with --fix OUT also a training file without the faulty rows.
Command: python -m llava_ohd.llava15.doctor --data_path llava_v1_5_mix665k.json --image_folder playground/data \\
             --model_name_or_path lmsys/vicuna-7b-v1.5 --policy report
Cost:    about 3 ms of one core per photo of 640 x 480; memory for the names of the images.

A run that was killed goes on when the same command is given again.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd.command_line import HelpFormatter, helps
from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.files import atomic_path
from llava_ohd.llava15.conversation import TEMPLATES
from llava_ohd.llava15.diagnosis import diagnose, summary
from llava_ohd.llava15.examination import Checks, twin
from llava_ohd.llava15.image_source import image_source
from llava_ohd.llava15.row_files import records
from llava_ohd.llava15.rows import FAULTS, examine

__all__ = ["Config", "fixed_rows", "main"]

_POLICIES = ("error", "skip", "report")


@dataclass(frozen=True)
class Config:
    """What to look at, and what follows from a fault."""

    data_path: Path = field(metadata=helps("training file, .json or .jsonl"))
    image_folder: Path = field(metadata=helps("folder, .zip or .tar that image names are relative to"))
    policy: str = field(default="error", metadata=helps("error: exit code 2 at a fault; skip: say what training skips"))
    strict: bool = field(default=False, metadata=helps("with policy error: remarks count as faults"))
    version: str = field(default="v1", metadata=helps("conversation template: plain or v1"))
    model_name_or_path: str | None = field(default=None, metadata=helps("language model, to count tokens of rows"))
    model_max_length: int = field(default=2048, metadata=helps("tokens at which training cuts a row; LLaVA-1.5: 2048"))
    image_tokens: int = field(default=576, metadata=helps("tokens of an image: patches of the encoder; LLaVA-1.5: 576"))
    manifest: Path | None = field(default=None, metadata=helps("where to write; default: DATA_PATH.manifest.json"))
    fix: Path | None = field(default=None, metadata=helps("write a training file without the faulty rows here"))
    processes: int | None = field(default=None, metadata=helps("default: one per CPU core"))


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    from transformers import HfArgumentParser

    parts: Any = Config
    parser = HfArgumentParser(
        parts, description=__doc__, formatter_class=HelpFormatter, prog="llava_ohd.llava15.doctor"
    )
    config: Config = parser.parse_args_into_dataclasses(arguments)[0]
    if config.policy not in _POLICIES or config.version not in TEMPLATES:
        raise DataFormatError(f"--policy is one of {', '.join(_POLICIES)}, --version one of {', '.join(TEMPLATES)}")
    if config.fix is not None and config.fix.resolve() == config.data_path.resolve():
        raise DataFormatError(f"--fix {config.fix} is --data_path, which would be lost; give another file")
    checks = Checks(
        config.data_path,
        config.image_folder,
        config.version,
        _language_model(config.model_name_or_path),
        config.image_tokens,
        config.model_max_length,
    )
    manifest = config.manifest or config.data_path.with_name(f"{config.data_path.name}.manifest.json")
    record = diagnose(checks, manifest, config.processes)
    print("\n".join(summary(record)))
    print(f"manifest: {manifest}")
    if config.fix is not None:
        with atomic_path(config.fix) as temporary, temporary.open("w", encoding="utf-8") as file:
            count = _write(fixed_rows(checks, record), file)
        print(f"fixed: {config.fix}, {count:,} of {record['rows']:,} rows")
    if config.policy == "skip":
        print(f"training skips {record['faulty_rows']:,} rows with --data_policy skip --data_manifest {manifest}")
    return 2 if config.policy == "error" and (record["faulty_rows"] or (config.strict and record["findings"])) else 0


def _language_model(name_or_path: str | None) -> Path | None:
    if name_or_path is None:
        return None
    if Path(name_or_path).is_dir():
        return Path(name_or_path).resolve()
    from llava_ohd.llava15.model import language_model_folder  # imports torch

    return language_model_folder(name_or_path)


def fixed_rows(checks: Checks, record: dict[str, Any]) -> Iterator[Any]:
    """Yields the rows of a training file that have no fault.

    A missing image of which there is a twin with another suffix is mended: the row takes the twin.

    Args:
        checks: What was looked at.
        record: The manifest.
    """
    faults: dict[int, set[str]] = {}
    for finding in record["findings"]:
        if finding["kind"] in FAULTS:
            faults.setdefault(finding["row"], set()).add(finding["kind"])
    source = image_source(checks.image_folder)
    for number, row in records(checks.data_path):
        if number not in faults:
            yield row
        elif faults[number] == {"missing_image"}:
            missing = [name for name in (examine(row, checks.template)[0] or {})["images"] if name not in source]
            twins = {name: other for name in missing if (other := twin(source, name)) is not None}
            if len(twins) == len(set(missing)):
                yield _renamed(row, twins)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Replaces image names anywhere in a row."""
    if isinstance(value, dict):
        return {key: _renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def _write(rows: Iterator[Any], file: Any) -> int:
    """Writes a JSON array, a row a line; returns how many."""
    count = 0
    for count, row in enumerate(rows, 1):
        file.write(("[\n" if count == 1 else ",\n") + json.dumps(row, ensure_ascii=False))
    file.write("\n]\n" if count else "[]\n")
    return count


if __name__ == "__main__":
    with exit_on_error():
        code = main(sys.argv[1:])
    sys.exit(code)
