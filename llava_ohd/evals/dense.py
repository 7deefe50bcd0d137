"""How well word scores point at wrong words: the published protocols of FOIL, nocaps-FOIL, HAT, SeeTRUE and Rich-HF.

Paper:   Nam et al., AAAI 2025, arXiv 2412.18404 (CLIP4DM); naver-ai/clip4dm @ cb9e52d main.py.
Input:   for each caption its words with scores (lower = fits less), and the cosine with its image.
Metrics: localisation (higher), average precision of right against wrong captions (higher; beside it the base rate that
         a constant score reaches), pairwise accuracy (higher), precision, recall, F1 of flagged words, correlations.
Quirks:  exact match cannot hit a foil of several words: 285 of nocaps-FOIL's 2,500, so single words stand apart. HAT's
         base rate is 0.3375. Pairs are joined by id, a tie is a miss and counted.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense_items import WordItem, rich_hf_words
from llava_ohd.records import Metric

__all__ = [
    "Judged",
    "average_precision",
    "f_clip_score",
    "is_hit",
    "is_word",
    "pearson",
    "score",
    "seetrue_entailment",
    "spearman",
]

Entailment = Callable[[str, str], tuple[float, float]]
"""From premise and hypothesis to the logits of contradiction and entailment."""


@dataclass(frozen=True)
class Judged:
    """A caption with what an encoder says of it.

    Attributes:
        item: The caption.
        words: Its words with their scores, in order; words that were not read are left out.
        cosine: Of image and caption.
    """

    item: WordItem
    words: Sequence[tuple[str, float]]
    cosine: float

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
        Metric("localisation_chance", _mean([1 / len(one.words) for one in foils]), len(foils), "none"),
    ]
    kinds: dict[str, Callable[[Judged], float]] = {"clip_score": lambda one: one.cosine, "f_clip_score": _lowest}
    for name, value in kinds.items():
        labels = [one.item.right for one in judged]
        scores = [value(one) for one in judged]
        found.append(Metric(f"{name}/average_precision", average_precision(labels, scores), len(judged), "higher"))
        found += _pairwise(name, judged, scores)
    return [*found, Metric("base_rate", _mean([one.item.right for one in judged]), len(judged), "none")]


def _lowest(one: Judged) -> float:
    """F-CLIPScore of the FOIL protocols: the lowest word, whatever its sign."""
    return f_clip_score(one.cosine, [score for _, score in one.words], None)


def is_hit(words: Sequence[Sequence[Any]], wrong: str) -> bool:
    """Says whether the lowest of words with scores is the wrong one, whatever its case."""
    return bool(min(words, key=lambda word: word[1])[0].lower() == wrong.lower())


def _localisation(name: str, foils: Sequence[Judged]) -> list[Metric]:
    hits = [is_hit(one.words, one.item.wrong[0]) for one in foils]
    return [Metric(name, _mean(hits), len(hits), "higher")] if hits else []


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
        Metric(f"{name}/pairwise", _mean(wins), len(pairs), "higher"),
        Metric(f"{name}/pairwise_ties", _mean(ties), len(pairs), "none"),
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
    found = [Metric("localisation", _mean(hits), len(hits), "higher")]
    for name, values in (
        ("clip_score", [-one.cosine for one in judged]),
        ("f_clip_score", [-_thresholded(one, threshold) for one in judged]),
    ):
        found.append(Metric(f"{name}/average_precision", average_precision(labels, values), len(judged), "higher"))
    return [*found, Metric("base_rate", _mean(labels), len(judged), "none")]


def _thresholded(one: Judged, threshold: float) -> float:
    return f_clip_score(one.cosine, [score for _, _, score in one.flagged(threshold)], threshold)


def _spans(one: Judged, threshold: float) -> list[tuple[str, float]]:
    """Returns flagged neighbours merged, each span with the mean of its scores."""
    flagged = one.flagged(threshold)
    found = []
    for _, run in groupby(enumerate(flagged), key=lambda row: row[1][0] - row[0]):
        words = [row for _, row in run]
        found.append((" ".join(word for _, word, _ in words), _mean([score for _, _, score in words])))
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
    return Metric("entailment", _mean(values), len(values), "higher")


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
    ours = [_thresholded(one, threshold) for one in judged]
    kinds = {"pearson": pearson(ours, given), "spearman": spearman(ours, given)}
    return [Metric(name, value, len(given), "higher") for name, value in kinds.items() if value is not None]


# --- numbers


def f_clip_score(cosine: float, words: Sequence[float], threshold: float | None) -> float:
    """Returns (1 - cosine) times the sum of the words below the threshold; 0 where there is none, else negative.

    Args:
        cosine: Of image and caption; below 0 it counts as 0.
        words: Attributions of the words.
        threshold: None: the lowest word stands for the sum, whatever its sign, as in the FOIL protocols.

    Source: Nam et al., arXiv 2412.18404; naver-ai/clip4dm @ cb9e52d, main.py.
    """
    wrong = min(words) if threshold is None else sum(word for word in words if word < threshold)
    return (1 - max(cosine, 0.0)) * wrong


def average_precision(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Returns the sum over thresholds of the gain in recall times precision; equal scores are one threshold.

    Source: scikit-learn, `average_precision_score`.
    """
    positives, area, seen, hits = sum(labels), 0.0, 0, 0
    if not positives:
        return 0.0
    rows = sorted(zip(scores, labels, strict=True), key=lambda row: -row[0])
    for _, run in groupby(rows, key=lambda row: row[0]):
        right = [label for _, label in run]
        seen, before, hits = seen + len(right), hits, hits + sum(right)
        area += (hits - before) / positives * hits / seen
    return area


def pearson(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the linear correlation; None where one side does not vary."""
    a, b = _mean(one), _mean(other)
    spread = math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in other))
    return sum((x - a) * (y - b) for x, y in zip(one, other, strict=True)) / spread if spread else None


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the correlation of ranks, equal values having the mean of their ranks."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = defaultdict(list)
    for rank, value in enumerate(sorted(values)):
        places[value].append(rank)
    return [_mean(places[value]) for value in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
