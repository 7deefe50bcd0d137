"""AMBER, discriminative part: yes-no questions about existence, attributes and relations of what an image shows.

Paper: arXiv 2311.07397. Rule: junyangwang0410/AMBER inference.py @ 534babf. Higher is better.

Properties of the published metric that are kept: an answer counts only if it is exactly `Yes` or `No`; **"No" is the
positive class**; every denominator begins at 0.001, so that an empty one gives 0; F1 follows from precision and recall
as rounded for print, with 0.0001 (existence: 0.001) in its denominator. All existence questions are "no": precision
there is 100 % whenever one answer is. So a model that always says No beats LLaVA-1.5 in F1; that is why its score
stands beside every result, and a reading of the answers that is not so strict.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals.answers import same_image, short, whole_characters
from llava_ohd.files import read_jsonl
from llava_ohd.records import Metric

__all__ = [
    "RULE",
    "AmberItem",
    "Query",
    "discriminative",
    "groups_of",
    "parts",
    "read_items",
    "read_queries",
    "read_responses",
    "tolerant",
]

RULE = "official (junyangwang0410/AMBER@534babf inference.py)"
GENERATIVE = "generative"
_STATE, _NUMBER, _ACTION = (f"discriminative-attribute-{kind}" for kind in ("state", "number", "action"))
_EXISTENCE, _RELATIONS = "discriminative-hallucination", ("relation", "discriminative-relation")


@dataclass(frozen=True)
class _Group:
    """Questions that are counted together, and the constants that the official script adds for them."""

    types: tuple[str, ...]
    start: float = 0.001  # of each denominator
    f1_start: float = 0.0001  # of F1's denominator


_GROUPS = {
    "": _Group((_STATE, _NUMBER, _ACTION, _EXISTENCE, *_RELATIONS)),
    "existence/": _Group((_EXISTENCE,), f1_start=0.001),
    "attribute/": _Group((_STATE, _NUMBER, _ACTION), start=0.003),  # the sum of three counters
    "state/": _Group((_STATE,)),
    "number/": _Group((_NUMBER,)),
    "action/": _Group((_ACTION,)),
    "relation/": _Group(_RELATIONS),
}
_TYPES = {GENERATIVE, *_GROUPS[""].types}


@dataclass(frozen=True)
class AmberItem:
    """What the annotations say about one id.

    Attributes:
        id: From 1, the row number in annotations.json.
        type: `generative`, or the kind of question.
        truth: Objects in the image (generative), or one entry, `yes` or `no`.
        hallu: Objects that one would imagine in it (generative).
    """

    id: int
    type: str
    truth: tuple[str, ...]
    hallu: tuple[str, ...] = ()


def groups_of(item: AmberItem) -> list[str]:
    """Returns the groups that a question counts in, as prefixes of metrics: "" and `<group>/`."""
    return [name for name, group in _GROUPS.items() if item.type in group.types]


def read_items(folder: Path) -> dict[int, AmberItem]:
    """Reads annotations.json of AMBER's data folder.

    Raises:
        DataFormatError: missing or damaged, ids that are not 1, 2, 3 ..., or a type or truth that AMBER does not have.
    """
    path = folder / "annotations.json"
    items: dict[int, AmberItem] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            item = _item(row)
        except (KeyError, TypeError, ValueError) as error:
            raise DataFormatError(f"{path} row {number} is not an annotation of AMBER: {error!r}") from None
        if item.id != number:
            raise DataFormatError(f"{path} row {number} has the id {item.id}; ids must be the row numbers from 1 on")
        items[number] = item
    return items


def _item(row: Mapping[str, object]) -> AmberItem:
    kind, truth = row["type"], row["truth"]
    if kind not in _TYPES:
        raise ValueError(f"type {kind!r}")
    if kind == GENERATIVE:
        named = [tuple(map(str, row[key])) for key in ("truth", "hallu")]  # type: ignore[call-overload]
        return AmberItem(int(str(row["id"])), str(kind), *named)
    if truth not in ("yes", "no"):
        raise ValueError(f"truth {truth!r}")
    return AmberItem(int(str(row["id"])), str(kind), (str(truth),))


@dataclass(frozen=True)
class Query:
    """What AMBER asks under one id.

    Attributes:
        image: File name.
        texts: The question; two for the one id whose query files contradict each other.
    """

    image: str
    texts: tuple[str, ...]


def read_queries(folder: Path) -> dict[int, Query]:
    """Reads the query_*.json that lie in AMBER's data folder or in query/ of it; nothing where there is none.

    Raises:
        DataFormatError: damaged.
    """
    found: dict[int, Query] = {}
    for path in sorted([*folder.glob("query_*.json"), *folder.glob("query/query_*.json")]):
        for number, row in enumerate(read_jsonl(path), 1):
            name, image, text = row.get("id"), row.get("image"), row.get("query")
            if not isinstance(name, int) or not isinstance(image, str) or not isinstance(text, str):
                raise DataFormatError(f"{path} row {number} has not id, image and query; copy it from AMBER again")
            texts = found[name].texts if name in found else ()
            found[name] = Query(image, texts if text in texts else (*texts, text))
    return found


def read_responses(
    path: Path, items: Mapping[int, AmberItem], queries: Mapping[int, Query] | None = None
) -> dict[int, str]:
    """Reads responses in AMBER's form (an array of `id`, `response`) or ours (lines of `question_id`, `text`).

    A part of the ids will do, as in the official script; see `parts`. Where a row says what was asked (`prompt` or
    `query`) or of which image (`image`), it is compared: POPE's ids are numbers that AMBER has, too.

    Args:
        path: The file.
        items: The annotations.
        queries: What AMBER asks; may lack ids that no row says anything of.

    Raises:
        DataFormatError: missing, empty, damaged, a row without an id and a text, or with a key twice.
        AnswersMismatch: an id that AMBER does not have, one that occurs twice, or an answer to another question.
    """
    found: dict[int, str] = {}
    for number, row in enumerate(read_jsonl(path, unique_keys=True), 1):
        given, text = str(row.get("id", row.get("question_id"))), row.get("response", row.get("text"))
        if not (given.isascii() and given.isdigit()) or not isinstance(text, str) or "answer" in row:
            raise DataFormatError(
                f"{path} row {number} is {short(row)}; an id (a number) and a response (a text) are expected"
                f"{', no answer: of POPE and OHD-Caps the text is the question' if 'answer' in row else ''}"
            )
        whole_characters(path, number, text)
        if len(given) > 9 or int(given) not in items:
            raise AnswersMismatch(
                f"{path} row {number} answers id {short(given)[1:-1]}; AMBER has 1 to {len(items)}. Give answers to "
                "its questions"
            )
        if int(given) in found:
            raise AnswersMismatch(f"{path} row {number} answers id {given} once more; keep one answer to each id")
        _check_asked(f"{path} row {number}", row, (queries or {}).get(int(given)))
        found[int(given)] = text
    return found


def _check_asked(where: str, row: Mapping[str, object], query: Query | None) -> None:
    """Refuses an answer to another question, or about another image."""
    asked, image = row.get("prompt", row.get("query")), row.get("image")
    if asked is None and image is None:
        return
    if query is None:
        raise DataFormatError(
            f"{where} says what was asked, and there is no query_*.json with its id to compare it with; copy AMBER's "
            "data/query/ into query/ of the data folder"
        )
    same = image is None or (isinstance(image, str) and same_image(query.image, image))
    if not same or not (asked is None or any(_plain(text).rstrip(".?!") in _plain(asked) for text in query.texts)):
        raise AnswersMismatch(
            f"{where} was asked {short(asked)} about {short(image or 'an image not given')}; AMBER asks "
            f"{short(query.texts[0])} about {query.image}. Give answers to AMBER's queries. Nothing was scored."
        )


def _plain(text: object) -> str:
    return " ".join(str(text).casefold().split())


def parts(responses: Iterable[int], items: Mapping[int, AmberItem]) -> dict[str, tuple[int, int]]:
    """Returns how many ids are answered, and how many there are: `generative`, then the groups of questions."""
    answered = [items[number].type for number in responses]
    everything = [item.type for item in items.values()]
    groups = {name: _GROUPS[f"{name}/"].types for name in ("existence", "attribute", "relation")}
    groups = {GENERATIVE: (GENERATIVE,)} | groups
    return {
        name: (sum(kind in kinds for kind in answered), sum(kind in kinds for kind in everything))
        for name, kinds in groups.items()
    }


def tolerant(text: str) -> str:
    """Reads `Yes`, `No` or `` (neither) off the first word, whatever its case, marks and emphasis."""
    words = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.casefold()).split()
    return {"yes": "Yes", "no": "No"}.get(words[0] if words else "", "")


def discriminative(responses: Mapping[int, str], items: Mapping[int, AmberItem]) -> list[Metric]:
    """Scores the yes-no answers; generative ids are passed over.

    Returns:
        `accuracy`, `precision`, `recall`, `f1` over all, then `<group>/...` for existence, attribute (state, number,
        action) and relation: fractions, rounded to a thousandth as the official script prints them. `yes_ratio` and
        `unparsed` (neither of the two) describe; `tolerant/...` reads the first word; `always_no/...` and
        `always_yes/...` are what a constant answer gets on the same ids. Nothing if there is no such answer.
    """
    asked = [items[number] for number in responses if items[number].type != GENERATIVE]
    said = [responses[item.id] for item in asked]
    if not asked:
        return []
    lenient = [tolerant(text) for text in said]
    n = len(asked)
    return [
        *(metric for name in _GROUPS for metric in _scores(name, name, asked, said)),
        Metric("yes_ratio", said.count("Yes") / n, n, "none"),
        Metric("unparsed", sum(text not in ("Yes", "No") for text in said) / n, n, "none"),
        *_scores("tolerant/", "", asked, lenient),
        Metric("tolerant/unparsed", lenient.count("") / n, n, "none"),
        *_described(_scores("always_no/", "", asked, ["No"] * n)),
        *_described(_scores("always_yes/", "", asked, ["Yes"] * n)),
    ]


def _described(metrics: Iterable[Metric]) -> Iterator[Metric]:
    return (replace(metric, better="none") for metric in metrics)


def _scores(prefix: str, group: str, asked: Sequence[AmberItem], said: Sequence[str]) -> list[Metric]:
    """Counts the answers of a group; "No" is positive."""
    kept = _GROUPS[group]
    rows = [(item.truth[0], text) for item, text in zip(asked, said, strict=True) if item.type in kept.types]
    right, right_no = rows.count(("yes", "Yes")) + rows.count(("no", "No")), rows.count(("no", "No"))
    said_no, gold_no = sum(text == "No" for _, text in rows), sum(truth == "no" for truth, _ in rows)
    accuracy, precision, recall = (
        round(part / (whole + kept.start) * 100, 1)
        for part, whole in ((right, len(rows)), (right_no, said_no), (right_no, gold_no))
    )
    p, r = round(precision / 100, 3), recall / 100
    f1 = round(2 * p * r / (p + r + kept.f1_start) * 100, 1)
    return [
        Metric(f"{prefix}accuracy", round(accuracy / 100, 3), len(rows), "higher"),
        Metric(f"{prefix}precision", round(precision / 100, 3), said_no, "higher"),
        Metric(f"{prefix}recall", round(recall / 100, 3), gold_no, "higher"),
        Metric(f"{prefix}f1", round(f1 / 100, 3), len(rows), "higher"),
    ]
