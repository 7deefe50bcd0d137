"""How well word scores point at wrong words: the published protocols of FOIL, nocaps-FOIL, HAT, SeeTRUE and Rich-HF.

Paper:   Nam et al., AAAI 2025, arXiv 2412.18404 (CLIP4DM); naver-ai/clip4dm @ cb9e52d main.py.
Input:   for each caption its words with scores (lower = fits less), and the cosine with its image.
Metrics: localisation (higher), average precision of right against wrong captions (higher; beside it the base rate that
         a constant score reaches), pairwise accuracy (higher), precision, recall, F1 of flagged words, correlations.
Quirks:  exact match cannot hit a foil of several words: 285 of nocaps-FOIL's 2,500, so single words stand apart. HAT's
         base rate is 0.3375. Pairs are joined by id, a tie is a miss and counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense_items import WordItem, rich_hf_words
from llava_ohd.evals.dense_numbers import average_precision, f_clip_score, mean, pearson, ref_clip_score, spearman
from llava_ohd.records import Metric

__all__ = ["Judged", "is_hit", "is_word", "score", "seetrue_entailment"]

Entailment = Callable[[str, str], tuple[float, float]]
"""From premise and hypothesis to the logits of contradiction and entailment."""


@dataclass(frozen=True)
class Judged:
    """A caption with what an encoder says of it.

    Attributes:
        item: The caption.
        words: Its words with their scores, in order; words that were not read are left out.
        cosine: Of image and caption.
        reference: The caption's largest cosine with a reference; None where there are none.
    """

    item: WordItem
    words: Sequence[tuple[str, float]]
    cosine: float
    reference: float | None = None

    def flagged(self, threshold: float) -> list[tuple[int, str, float]]:
        """Returns place, word and score of the words below a threshold, without those that are punctuation alone."""
        words = [(word, score) for word, score in self.words if is_word(word)]
        return [(place, word, score) for place, (word, score) in enumerate(words) if score < threshold]


def is_word(text: str) -> bool:
    """Says whether a piece of a caption has a letter or a digit; punctuation alone is never wrong, nor counted."""
    return any(character.isalnum() for character in text)


def score(name: str, judged: Sequence[Judged], threshold: float) -> list[Metric]:
    """Computes the metrics of a set by its protocol.

    Args:
        name: Of `dense_items.SETS`.
        judged: All captions of the set.
        threshold: Words below it count as wrong, in HAT, SeeTRUE and Rich-HF.

    Raises:
        DataFormatError: no captions, one twice, or one without words.
    """
    ids = [one.item.id for one in judged]
    if not ids or len(set(ids)) < len(ids) or not all(one.words for one in judged):
        raise DataFormatError(f"{len(ids)} captions, {len(set(ids))} ids: give captions, each once, each with words")
    if name in ("foil", "nocaps-foil"):
        return _foil(judged)
    if name == "hat":
        return _hat(judged, threshold)
    return [*_words(judged, threshold), *_agreement(judged, threshold)] if name == "rich-hf" else []


# --- FOIL and nocaps-FOIL: the lowest word


def _foil(judged: Sequence[Judged]) -> list[Metric]:
    foils = [one for one in judged if not one.item.right]
    single = [one for one in foils if len(one.item.wrong[0].split()) == 1]
    groups = sorted({one.item.group for one in foils} - {""})
    found = [
        *_localisation("localisation", foils),
        *_localisation("localisation_single_word", single),
        *(m for g in groups for m in _localisation(f"localisation/{g}", [o for o in foils if o.item.group == g])),
        Metric("localisation_chance", mean([1 / len(one.words) for one in foils]), len(foils), "none"),
    ]
    for name, value in ({"clip_score": _cosine, "f_clip_score": _lowest} | _with_references(judged)).items():
        found.append(_precision(f"{name}/average_precision", judged, value))
        for group in groups:
            rows = [one for one in judged if one.item.group == group]
            found.append(_precision(f"{name}/average_precision/{group}", rows, value))
        found += _pairwise(name, judged, [value(one) for one in judged])
    return [*found, Metric("base_rate", mean([one.item.right for one in judged]), len(judged), "none")]


Value = Callable[[Judged], float]


def _precision(name: str, judged: Sequence[Judged], value: Value) -> Metric:
    """Average precision over all captions at once (not a mean over domains), right ones being the positive ones."""
    labels, scores = [one.item.right for one in judged], [value(one) for one in judged]
    return Metric(name, average_precision(labels, scores), len(judged), "higher")


def _cosine(one: Judged) -> float:
    return one.cosine


def _with_references(judged: Sequence[Judged]) -> dict[str, Value]:
    """Returns RefCLIPScore where every caption has a reference."""
    if any(one.reference is None for one in judged):
        return {}
    return {"ref_clip_score": lambda one: ref_clip_score(one.cosine, [one.reference or 0.0])}


def _lowest(one: Judged) -> float:
    """F-CLIPScore of the FOIL protocols: the lowest word, whatever its sign."""
    return f_clip_score(one.cosine, [score for _, score in one.words], None)


def is_hit(words: Sequence[Sequence[Any]], wrong: str) -> bool:
    """Says whether the lowest of words with scores is the wrong one, whatever its case."""
    return bool(min(words, key=lambda word: word[1])[0].lower() == wrong.lower())


def _localisation(name: str, foils: Sequence[Judged]) -> list[Metric]:
    hits = [is_hit(one.words, one.item.wrong[0]) for one in foils]
    return [Metric(name, mean(hits), len(hits), "higher")] if hits else []


def _pairwise(name: str, judged: Sequence[Judged], scores: Sequence[float]) -> list[Metric]:
    """Share of foils that score below the original with the same id: each foil against its one original."""
    originals = {one.item.pair: value for one, value in zip(judged, scores, strict=True) if one.item.right}
    pairs = [
        (originals[o.item.pair], v)
        for o, v in zip(judged, scores, strict=True)
        if o.item.pair in originals and not o.item.right
    ]
    if not pairs:
        return []
    wins, ties = [right > wrong for right, wrong in pairs], [right == wrong for right, wrong in pairs]
    return [
        Metric(f"{name}/pairwise", mean(wins), len(pairs), "higher"),
        Metric(f"{name}/pairwise_ties", mean(ties), len(pairs), "none"),
    ]


# --- HAT: spans


def _hat(judged: Sequence[Judged], threshold: float) -> list[Metric]:
    wrong = [one for one in judged if not one.item.right]
    hits = []
    for one in wrong:
        gold = " ".join(one.item.wrong).replace(".", "").replace(",", "")
        span = _worst_span(one, threshold)
        hits.append(bool(span) and span in gold)
    labels = [not one.item.right for one in judged]
    found = [Metric("localisation", mean(hits), len(hits), "higher")]
    kinds: dict[str, Value] = {"clip_score": _cosine, "f_clip_score": lambda one: _thresholded(one, threshold)}
    for name, value in (kinds | _with_references(judged)).items():
        values = [-value(one) for one in judged]
        found.append(Metric(f"{name}/average_precision", average_precision(labels, values), len(judged), "higher"))
    return [*found, Metric("base_rate", mean(labels), len(judged), "none")]


def _thresholded(one: Judged, threshold: float) -> float:
    return f_clip_score(one.cosine, [score for _, _, score in one.flagged(threshold)], threshold)


def _spans(one: Judged, threshold: float) -> list[tuple[str, float]]:
    """Returns flagged neighbours merged, each span with the mean of its scores."""
    flagged = one.flagged(threshold)
    found = []
    for _, run in groupby(enumerate(flagged), key=lambda row: row[1][0] - row[0]):
        words = [row for _, row in run]
        found.append((" ".join(word for _, word, _ in words), mean([score for _, _, score in words])))
    return found


def _worst_span(one: Judged, threshold: float) -> str:
    return min(_spans(one, threshold), key=lambda span: span[1], default=("", 0.0))[0]


# --- SeeTRUE-Feedback


def seetrue_entailment(judged: Sequence[Judged], threshold: float, entailment: Entailment) -> Metric:
    """Computes how far what people wrote entails what is flagged, the mean over all rows; 0 where nothing is flagged.

    Args:
        judged: Captions of SeeTRUE-Feedback.
        threshold: Words below it are flagged.
        entailment: The judge; the paper's is BART-large-MNLI.
    """
    values = []
    for one in judged:
        said = ", ".join(span for span, _ in _spans(one, threshold))
        against, for_it = entailment(one.item.feedback, said) if said else (0.0, -math.inf)
        values.append(1 / (1 + math.exp(min(against - for_it, 700.0))))
    return Metric("entailment", mean(values), len(values), "higher")


# --- Rich-HF


def _words(judged: Sequence[Judged], threshold: float) -> list[Metric]:
    hits = flagged = gold = 0
    for one in judged:
        found = _as_labelled(one, threshold)
        hits, flagged, gold = hits + len(found & {*one.item.wrong}), flagged + len(found), gold + len(one.item.wrong)
    precision, recall = hits / flagged if flagged else 0.0, hits / gold if gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    numbers = {"precision": (precision, flagged), "recall": (recall, gold), "f1": (f1, gold)}
    return [Metric(name, value, n, "higher") for name, (value, n) in numbers.items()]


def _as_labelled(one: Judged, threshold: float) -> set[str]:
    """Returns what is flagged as Rich-HF names it: "16:9" is one word here and two there, and flags both."""
    words = list(rich_hf_words(one.item.caption))
    found, at = set(), 0
    for text, score in one.words:
        begin = one.item.caption.index(text, at)
        at = begin + len(text)
        if is_word(text) and score < threshold:
            found |= {f"{i}_{word}" for i, (word, start, end) in enumerate(words) if start < at and begin < end}
    return found


def _agreement(judged: Sequence[Judged], threshold: float) -> list[Metric]:
    people = [one.item.score for one in judged]
    if len(people) < 2 or any(value is None for value in people):
        return []
    given = [float(value) for value in people if value is not None]
    kinds = {"": [_thresholded(one, threshold) for one in judged], "clip_score/": [one.cosine for one in judged]}
    found: dict[str, float | None] = {}
    for name, scores in kinds.items():  # CLIPScore is what the paper's F-CLIPScore is held against
        found |= {f"{name}pearson": pearson(scores, given), f"{name}spearman": spearman(scores, given)}
    return [Metric(name, value, len(given), "higher") for name, value in found.items() if value is not None]
