"""AMBER from responses to results.json: both parts, the score over them, and what must be said beside the numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_ohd.errors import AnswersMismatch
from llava_ohd.evals import amber, amber_generative
from llava_ohd.evals.counted import Counted, of_amber
from llava_ohd.evals.yes_no import unread_line
from llava_ohd.records import Metric

__all__ = ["Scored", "evaluate"]

_CONTRADICTION = 13193
_PUBLISHED = 0.747  # F1 of LLaVA-1.5-7B: junyangwang0410/AMBER README_File/result.jpg


@dataclass(frozen=True)
class Scored:
    """What AMBER says of a set of responses.

    Attributes:
        metrics: `amber` if both parts are there, then those of `generative` and `discriminative`.
        parts: As `amber.parts`.
        notes: What a reader of the numbers must know; kept in results.json.
        counted: Counts by image.
    """

    metrics: list[Metric]
    parts: dict[str, tuple[int, int]]
    notes: list[str]
    counted: Counted

    @property
    def complete(self) -> bool:
        """Whether every part is answered as a whole or not at all."""
        return all(answered in (0, total) for answered, total in self.parts.values())

    def lines(self) -> list[str]:
        """Returns how much of each part is answered."""
        marks = {
            name: "" if answered in (0, total) else " (NOT COMPLETE)" for name, (answered, total) in self.parts.items()
        }
        return [f"  {name}: {part} of {whole} answered{marks[name]}" for name, (part, whole) in self.parts.items()]


def evaluate(
    responses: Mapping[int, str],
    items: Mapping[int, amber.AmberItem],
    folder: Path,
    similarity: Literal["exact", "spacy"] = "exact",
    nouns: amber_generative.Nouns | None = None,
    queries: Mapping[int, amber.Query] | None = None,
) -> Scored:
    """Scores both parts.

    Args:
        responses: Texts by id.
        items: The annotations.
        folder: AMBER's data folder, for its word lists.
        similarity: See `amber_generative.generative`.
        nouns: See `amber_generative.generative`.
        queries: What was asked, with the names of the images.

    Raises:
        AnswersMismatch: there are descriptions, and none names an object: the share of imagined ones is 0 of 0, which
            the official script prints as 0 and takes for the best there is.
        DataFormatError, MissingDependency: as `amber_generative.generative`.
    """
    words = amber_generative.read_words(folder)
    judged = amber_generative.judged(responses, items, words, similarity, nouns)
    found = amber_generative.metrics_of(judged)
    if found and found[0].n == 0:
        described = sum(items[number].type == amber.GENERATIVE for number in responses)
        raise AnswersMismatch(
            f"none of the {described} descriptions names an object that AMBER knows, so that chair and amber are "
            "undefined. Give descriptions under the ids of the generative part, or leave these ids out to score the "
            "questions alone. Nothing was scored."
        )
    found += amber.discriminative(responses, items)
    values = {metric.name: metric.value for metric in found}
    if {"chair", "f1"} <= values.keys():
        found.insert(0, Metric("amber", (1 - values["chair"] + values["f1"]) / 2, len(responses), "higher"))
    parts = amber.parts(responses, items)
    counted = of_amber(responses, items, judged, queries or {})
    return Scored(found, parts, _notes(responses, items, values, parts), counted)


def _notes(
    responses: Mapping[int, str],
    items: Mapping[int, amber.AmberItem],
    values: Mapping[str, float],
    parts: Mapping[str, tuple[int, int]],
) -> list[str]:
    said = {str(n): text for n, text in responses.items() if items[n].type != amber.GENERATIVE}
    unread = unread_line(said, lambda text: {"Yes": True, "No": False}.get(text), 'neither "Yes" nor "No"')
    notes = [f"{unread}; the official rule counts them as wrong, tolerant/* reads the first word"] if unread else []
    if all(answered == total for name, (answered, total) in parts.items() if name != amber.GENERATIVE):
        notes.append(
            f"always_no/f1 {100 * values['always_no/f1']:.1f} % is what No to everything gets; LLaVA-1.5-7B's "
            f"published F1 is {100 * _PUBLISHED:.1f} % (junyangwang0410/AMBER README_File/result.jpg)"
        )
    if _CONTRADICTION in responses:
        notes.append(
            f"id {_CONTRADICTION} (AMBER_931) asks for a computer in query_all.json, for a chair in the others"
        )
    return notes
