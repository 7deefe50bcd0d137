"""CHAIR from captions to results.json: which set and rule, what is scored, what is said of it."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd.errors import AnswersMismatch, OptionError
from llava_ohd.evals import chair
from llava_ohd.evals.chair_data import COCO, Caption, ChairSet, coco_id, open_set
from llava_ohd.evals.chair_protocol import Protocol
from llava_ohd.evals.given_answers import keep, refuse_idle
from llava_ohd.files import sha256_json
from llava_ohd.records import Metric
from llava_ohd.results import print_metrics, write_results

__all__ = ["Scored", "check_flags", "choose", "evaluate"]


def choose(
    data: str | None, rule: str | None, split: str, made: bool, nltk_data: Path | None = None
) -> tuple[ChairSet, str]:
    """Settles what was not said: the world by "exact", COCO by "pattern", COCO for captions by the rules made for it.

    Args:
        data: See `open_set`; None if not given.
        rule: One of `chair.RULES`, or None.
        split: Of a folder.
        made: Whether the captions are there already.
        nltk_data: For the rule "wordnet".

    Returns:
        The set and the rule.

    Raises:
        DataFormatError, LlavaOhdError: the set is not there.
    """
    name = _set_name(data, rule, made)
    found = open_set(name, split, nltk_data)
    return found, rule or ("exact" if found.instances else "pattern")


def _set_name(data: str | None, rule: str | None, made: bool) -> str:
    return data or (COCO if made and rule in ("pattern", "wordnet") else "world")


def check_flags(data: str | None, rule: str | None, made: bool, limit: int, stated: Set[str]) -> None:
    """Refuses flags that would change nothing, or ask for no image.

    Args:
        data: See `choose`.
        rule: See `choose`.
        made: See `choose`.
        limit: Number of images.
        stated: The flags that stand on the command line.

    Raises:
        OptionError: there is one.
    """
    name = _set_name(data, rule, made)
    if name == COCO or name.endswith(".json"):
        refuse_idle(
            stated, ("limit", "split"), f"with the set {name}, which has objects by image and no list of images"
        )
    if limit < 1:
        raise OptionError(f"--limit {limit} leaves no image; give 1 or more")


@dataclass(frozen=True)
class Scored:
    """What CHAIR says of a set of captions.

    Attributes:
        data: The set.
        rule: The word rule.
        rows: What each caption mentions.
        complete: False if there are fewer captions than images that were to be described.
        settings: What the protocol did to the captions.
        others: The metrics by the other rules, where they were asked for.
        captions: As they were given, before the protocol.
    """

    data: ChairSet
    rule: str
    rows: Sequence[chair.Mentions]
    complete: bool
    settings: Mapping[str, Any]
    others: Mapping[str, Sequence[Metric]] = field(default_factory=dict)
    captions: Sequence[Caption] = ()

    def write(self, path: Path, settings: Mapping[str, Any], given: Path | None = None, **source: Any) -> None:
        """Writes results.json, and beside it the captions that were there already.

        Args:
            path: The file.
            settings: Further ones, of the model.
            given: The file of the captions, where no model made them.
            source: `encoder` and `model`, where one answered.

        Raises:
            StorageError: no room, not writable, or other captions lie there.
        """
        told = [] if given is None else keep(path.with_name("answers.jsonl"), self.answers(), [given])
        length = chair.published_length(self.rows)
        write_results(
            path,
            chair.metrics(self.rows),
            evaluation="chair",
            rule=chair.RULES[self.rule],
            data_set=self.data.name,
            n=len(self.rows),
            complete=self.complete,
            settings={**self.settings, **settings},
            details={
                "objects": chair.by_object(self.rows),
                "published_length": length,
                "other_rules": {
                    rule: {metric.name: metric.value for metric in found} for rule, found in self.others.items()
                },
            }
            | ({"answers": told} if told else {}),
            **source,
        )

    def answers(self) -> list[dict[str, Any]]:
        """Returns the captions as they were given, as rows of answers.jsonl; images by file name where it is known."""
        files = dict(self.data.images()) if self.data.instances else {}
        return [
            {"question_id": coco_id(row.image), "image": files.get(row.image, row.image), "text": row.text}
            for row in self.captions
        ]

    def show(self, objects: bool = False) -> None:
        """Prints the metrics, those of the other rules beside them, and the counts by object if asked for."""
        found, length = chair.metrics(self.rows), chair.published_length(self.rows)
        print_metrics(found)
        lines = [] if length is None else [f"  length as papers print it beside this rule: {length:.1f}"]
        lines += (
            [] if found[0].n else ["  NO CAPTION NAMES AN OBJECT: chair_i is undefined, and chair_s of 0 says nothing"]
        )
        lines += [] if self.complete else ["  NOT COMPLETE: fewer captions than images"]
        lines += chair.side_by_side({self.rule: found, **self.others}) if self.others else []
        for line in lines + (chair.object_lines(chair.by_object(self.rows)) if objects else []):
            print(line)


def evaluate(
    captions: Sequence[Caption],
    data: ChairSet,
    rule: str,
    protocol: Protocol,
    limit: int,
    all_rules: bool = False,
    nltk_data: Path | None = None,
) -> Scored:
    """Scores captions.

    Args:
        captions: One per image.
        data: The images.
        rule: One of `chair.RULES`.
        protocol: What is done to the captions before.
        limit: Number of images that were to be described, where `data` has a list of them.
        all_rules: Whether to score by the other rules, too.
        nltk_data: For the rule "wordnet".

    Raises:
        AnswersMismatch: no captions, or all are empty; unknown or missing images, two captions of one.
        MissingDependency: NLTK or its data, SentencePiece.
    """
    said, settings = protocol.apply(captions)
    if not said:
        raise AnswersMismatch("there are no captions to score")
    if not any(caption.text.strip() for caption in said):
        some = any(caption.text.strip() for caption in captions)
        kept = " (before their unfinished sentences were dropped some were not)" if some else ""
        raise AnswersMismatch(
            f"all {len(said)} captions are empty{kept}, so that nothing is hallucinated and CHAIR would be 0; give the "
            "captions that the model made. Nothing was scored."
        )
    if data.instances is None:
        complete, listed = True, sorted(coco_id(caption.image) for caption in said)
        settings = {"image_list": {"images": len(listed), "sha256": sha256_json(listed)}} | settings
    else:
        complete = protocol.image_list is not None or len(said) >= min(limit, len(data.images()))
        settings = {"limit": limit, "split": data.split} | settings

    ids = {file: number for number, file in data.images()} if data.instances else {}

    def scored(name: str) -> list[chair.Mentions]:
        return chair.scored_captions(said, data.truth(name), data.vocabulary, rule=name, nltk_data=nltk_data, ids=ids)

    others = {name: chair.metrics(scored(name)) for name in chair.RULES if all_rules and name != rule}
    return Scored(data, rule, scored(rule), complete, settings, others, captions)
