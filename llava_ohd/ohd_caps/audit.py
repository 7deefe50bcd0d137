"""What is wrong in files of OHD-Caps: counted, and left out of a cleaned copy.

The authors' negatives were written by a chat model and not checked. Counted on their files: docs/ohd_caps.md.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from llava_ohd.ohd_caps.records import INSERTIONS, Negative, OhdRow
from llava_ohd.ohd_caps.sources import image_key

__all__ = ["COLUMNS", "TOKENS", "Findings", "audit", "clean", "is_chatter", "named", "overlaps", "word_count"]

TOKENS = 60
"""Words and marks from which on a caption may exceed the 77 tokens of CLIP's text tower."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_CHATTER = re.compile(
    r"^\W*(sure|certainly|given (the|your))\b|sentence\b.*:|(becomes|revised):|after removing '", re.IGNORECASE
)
_QUOTES = ('"', "'", "“", "‘")
_QUOTED = re.compile(r'\s*(?:"([^"]*)"|“([^”]*)”)\s*')


@dataclass(frozen=True)
class Findings:
    """Counts of one file. A caption counts as often as it is there.

    Attributes:
        rows: Rows.
        images: Different images.
        negatives: Negative captions, fillers not among them.
        repeated_rows: Rows in which negatives repeat each other.
        repeated: Negatives that repeat an earlier one of their row.
        equal_rows: Rows in which a negative is the caption itself.
        equal: Such negatives.
        chatter: Captions in which the generator speaks about its task ("Sure, here is the revised sentence:").
        newlines: Captions with a newline inside.
        quoted: Negatives that begin with a quotation mark.
        inserted: Names of objects to be inserted.
        missing: Of these, those that the negative does not contain.
        present: Of these, those that the caption names already, so that the negative is not wrong for them.
        long: Captions that may not, or do not, fit into the text tower.
    """

    rows: int
    images: int
    negatives: int
    repeated_rows: int
    repeated: int
    equal_rows: int
    equal: int
    chatter: int
    newlines: int
    quoted: int
    inserted: int
    missing: int
    present: int
    long: int


COLUMNS: Mapping[str, str] = {
    "rows": "rows",
    "images": "images",
    "negatives": "negatives",
    "repeated_rows": "repeated",
    "equal_rows": "equal",
    "chatter": "chatter",
    "newlines": "newlines",
    "quoted": "quoted",
    "missing": "missing",
    "present": "present",
    "long": "long",
}
"""Which findings a table shows, and how it calls them."""


def word_count(caption: str) -> int:
    """Returns the number of words and punctuation marks of a caption: never more than its tokens without the ends."""
    return len(_TOKEN.findall(caption))


def is_chatter(caption: str) -> bool:
    """Says whether the generator speaks about its task in a caption."""
    return _CHATTER.search(caption) is not None


def named(name: str, caption: str) -> bool:
    """Says whether a caption has the name of an object as a word, or its plural on -s."""
    return re.search(rf"\b{re.escape(name)}s?\b", caption, re.IGNORECASE) is not None


def audit(rows: Sequence[OhdRow], too_long: Callable[[str], bool] = lambda text: word_count(text) > TOKENS) -> Findings:
    """Counts what is wrong in a file.

    Args:
        rows: The rows, read `verbatim`.
        too_long: Says whether a caption exceeds the text tower.
    """
    flat = [_flat(row) for row in rows]
    negatives = [(row, negative) for row in flat for negative in row.negatives]
    captions = [caption for row in flat for caption in row.captions]
    repeated = [len(row.negatives) - len({n.caption for n in row.negatives}) for row in flat]
    equal = [sum(n.caption == row.caption for n in row.negatives) for row in flat]
    inserted = [(row, n, name) for row, n in negatives if n.strategy in INSERTIONS for name in n.objects]
    return Findings(
        rows=len(rows),
        images=len({row.image for row in rows}),
        negatives=len(negatives),
        repeated_rows=sum(map(bool, repeated)),
        repeated=sum(repeated),
        equal_rows=sum(map(bool, equal)),
        equal=sum(equal),
        chatter=sum(map(is_chatter, captions)),
        newlines=sum("\n" in caption for row in rows for caption in row.captions),
        quoted=sum(negative.caption.lstrip().startswith(_QUOTES) for _, negative in negatives),
        inserted=len(inserted),
        missing=sum(_is_missing(name, n) for _, n, name in inserted),
        present=sum(named(name, row.caption) for row, _, name in inserted),
        long=sum(map(too_long, captions)),
    )


def _flat(row: OhdRow) -> OhdRow:
    negatives = tuple(replace(negative, caption=_one_line(negative.caption)) for negative in row.negatives)
    return replace(row, caption=_one_line(row.caption), negatives=negatives)


def _one_line(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ")


def _is_missing(name: str, negative: Negative) -> bool:
    return name.lower() not in negative.caption.lower()


def overlaps(files: Mapping[str, Sequence[OhdRow]]) -> dict[tuple[str, str], int]:
    """Counts the images that files have in common, by pairs of files; pairs without any are left out."""
    images = {name: {image_key(row.image) for row in rows} for name, rows in files.items()}
    counts = {(one, two): len(images[one] & images[two]) for one, two in combinations(images, 2)}
    return {pair: count for pair, count in counts.items() if count}


def clean(
    rows: Sequence[OhdRow],
    too_long: Callable[[str], bool] = lambda text: word_count(text) > TOKENS,
    excluded: Collection[str] = (),
) -> list[OhdRow]:
    """Leaves out what `audit` counts.

    Newlines and double blanks become one blank; quotation marks around a whole negative go. Of what is left, negatives
    go that repeat another or the caption (in any case, as CLIP reads it), have chatter, lack an object that they should
    insert, insert one that the caption names, or are too long; then rows without negatives, and those of images that
    are not wanted.

    Args:
        rows: The rows.
        too_long: Says whether a caption exceeds the text tower.
        excluded: Keys of images (`image_key`), such as those of the test set.
    """
    found = []
    for row in rows:
        if image_key(row.image) in excluded:
            continue
        caption, kept, seen = " ".join(row.caption.split()), [], {_read(row.caption)}
        for negative in row.negatives:
            text = _unquoted(" ".join(negative.caption.split()))
            tidy = replace(negative, caption=text)
            if _read(text) in seen or is_chatter(text) or too_long(text) or not _inserts(tidy, caption):
                continue
            seen.add(_read(text))
            kept.append(tidy)
        if kept:
            found.append(replace(row, caption=caption, negatives=tuple(kept)))
    return found


def _read(caption: str) -> str:
    return " ".join(caption.lower().split())


def _unquoted(text: str) -> str:
    match = _QUOTED.fullmatch(text)
    return next((part for part in match.groups() if part), text) if match else text


def _inserts(negative: Negative, caption: str) -> bool:
    """Says whether a negative that should insert objects has all of them, none of which the caption names."""
    if negative.strategy not in INSERTIONS:
        return True
    return not any(_is_missing(name, negative) or named(name, caption) for name in negative.objects)
