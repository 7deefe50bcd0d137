"""The audit of several files: table, images in common, cleaned copies."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import write_json
from llava_ohd.ohd_caps.audit import COLUMNS, TOKENS, audit, clean, overlaps, word_count
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.ohd_caps.sets import set_name
from llava_ohd.ohd_caps.sources import image_key

__all__ = ["length_rule", "read_files", "table", "write_clean"]

Files = Mapping[str, Sequence[OhdRow]]
Rule = Callable[[str], bool]

_LEGEND = """repeated, equal: rows in which a negative repeats another, or is the caption itself
chatter: the generator speaks of its task; quoted: negatives that begin with a quotation mark
missing: objects to be inserted that the negative lacks; present: those that the caption names already"""


def length_rule(encoder: str | None) -> tuple[Rule, str]:
    """Returns what says that a caption is too long, and that in words.

    Args:
        encoder: Name or folder of an encoder; None takes a rule that needs no tokenizer.
    """
    if encoder is None:
        return lambda caption: word_count(caption) > TOKENS, f"more than {TOKENS} words and marks"
    from llava_ohd import tower

    tokenizer = tower.load_tokenizer(tower.resolve(encoder))
    most = tokenizer.model_max_length
    return (
        lambda caption: len(tokenizer(caption, truncation=True, max_length=most + 1)["input_ids"]) > most,
        f"more than the {most} tokens of {encoder}",
    )


def read_files(paths: Sequence[Path]) -> dict[str, list[OhdRow]]:
    """Reads files, and all below folders, verbatim; returns their rows by `FOLDER/FILE` without suffix.

    Raises:
        DataFormatError: no file there, one in none of the three forms, or two of one name.
    """
    found: dict[str, list[OhdRow]] = {}
    for path in paths:
        suffixes = (".json", ".jsonl", ".zip")
        below = sorted(file for file in path.rglob("*") if file.suffix in suffixes) if path.is_dir() else [path]
        if not below:
            raise DataFormatError(f"{path} has no .json, .jsonl or .zip file; give files of OHD-Caps, or their folder")
        for file in below:
            name = f"{file.resolve().parent.name}/{file.stem}"
            if name in found:
                raise DataFormatError(f"{file} is the second file {name}; give one of them, or a folder of both's own")
            found[name] = read_rows(file, verbatim=True)
    return found


def table(files: Files, too_long: Rule, rule: str) -> str:
    """Returns the findings, a line per file, and the images that files have in common."""
    width = max(map(len, files))
    lines = [" " * width + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for name, rows in files.items():
        counts = asdict(audit(rows, too_long))
        lines.append(f"{name:{width}}" + "".join(f"{counts[key]:>10,}" for key in COLUMNS))
    lines += ["", _LEGEND, f"long: captions of {rule}", ""]
    common = {pair: count for pair, count in overlaps(files).items() if not _two_forms(*pair)}
    lines += [f"{count} images are in both {one} and {two}" for (one, two), count in common.items()]
    return "\n".join(lines if common else [*lines, "no two sets have an image in common"])


def _two_forms(one: str, two: str) -> bool:
    return set_name(Path(one)) == set_name(Path(two)) and Path(one).parent == Path(two).parent


def write_clean(files: Files, out: Path, too_long: Rule) -> Iterator[tuple[Path, int, int]]:
    """Writes the cleaned copies and `audit.json`.

    Yields:
        Path, rows and negatives of each copy.
    """
    tests = {image_key(row.image) for name, rows in files.items() if _is_test(name) for row in rows}
    for name, rows in files.items():
        kept = clean(rows, too_long, excluded=() if _is_test(name) else tests)
        path = out / f"{name}.jsonl"
        write_rows(path, kept)
        yield path, len(kept), sum(len(row.negatives) for row in kept)
    common = [{"files": pair, "images": count} for pair, count in overlaps(files).items()]
    findings = {name: asdict(audit(rows, too_long)) for name, rows in files.items()}
    write_json(out / "audit.json", {"files": findings, "images_in_common": common})


def _is_test(name: str) -> bool:
    """Says whether a file is of a test set, by the word in its name or its folder's; "latest" has no such word."""
    return re.search(r"(?<![a-z])tests?(?![a-z])", name.lower()) is not None
