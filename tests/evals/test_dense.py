"""The published protocols on attributions made by hand."""

import random
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense import Judged, score, seetrue_entailment
from llava_ohd.evals.dense_items import WordItem
from llava_ohd.evals.dense_numbers import average_precision, pearson, ref_clip_score, spearman


def judged(name: str, words: str, scores: list[float], cosine: float, *, pair: str = "", **more: Any) -> Judged:
    wrong = more.pop("wrong", ())
    item = WordItem(name, pair, f"{name}.jpg", words, not wrong, wrong, **more)
    return Judged(item, list(zip(words.split(), scores, strict=True)), cosine)


def values(name: str, rows: list[Judged], threshold: float = -0.1) -> dict[str, float]:
    return {metric.name: metric.value for metric in score(name, rows, threshold)}


FOILS = [
    judged("a/right", "a cup .", [0.1, 0.3, 0.0], 0.4, pair="a", group="in"),
    judged("a/foil", "a Key .", [0.1, -0.3, 0.0], 0.3, pair="a", group="in", wrong=("key",)),
    judged("b/right", "a red ball", [-0.1, 0.2, 0.2], 0.5, pair="b", group="out"),
    judged("b/foil", "a red tall tree", [0.1, -0.2, 0.0, 0.1], 0.5, pair="b", group="out", wrong=("tall tree",)),
]


def test_foil_by_the_lowest_word() -> None:
    found = values("foil", FOILS)
    assert found["localisation"] == 0.5  # "Key" is found whatever its case; "tall tree" is no word
    assert found["localisation_single_word"] == 1.0
    assert (found["localisation/in"], found["localisation/out"]) == (1.0, 0.0)
    assert found["localisation_chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    # (1 - cosine) * lowest word: 0, -0.21, -0.05, -0.1; originals are first and second of four
    assert found["f_clip_score/average_precision"] == 1.0
    assert found["f_clip_score/pairwise"] == 1.0
    # cosines .4 .3 .5 .5: the two highest tie, one of them an original: precision 1/2 at recall 1/2, then 2/3
    assert found["clip_score/average_precision"] == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    assert (found["clip_score/pairwise"], found["clip_score/pairwise_ties"]) == (0.5, 0.5)
    assert found["base_rate"] == 0.5


def test_average_precision_by_domain_and_with_references() -> None:
    found = values("foil", FOILS)
    # in: the original is first of two; out: the two tie in CLIPScore, not in F-CLIPScore
    assert found["clip_score/average_precision/in"] == 1.0
    assert found["clip_score/average_precision/out"] == 0.5
    assert found["f_clip_score/average_precision/out"] == 1.0
    assert not any("ref_clip_score" in name for name in found)
    # 2.5 * .4 = 1 and 2/3 have the harmonic mean .8
    cited = [replace(one, reference=near) for one, near in zip(FOILS, (2 / 3, 0.5, 0.7, 0.4), strict=True)]
    scores = [ref_clip_score(one.cosine, [one.reference or 0.0]) for one in cited]
    assert scores[0] == pytest.approx(0.8)
    found = values("foil", cited)
    assert found["ref_clip_score/average_precision"] == average_precision([True, False, True, False], scores)
    assert found["ref_clip_score/pairwise"] == 1.0
    assert not any("ref_clip_score" in name for name in values("foil", [*cited[:3], FOILS[3]]))


def test_the_order_of_rows_does_not_matter() -> None:
    assert values("foil", FOILS[::-1]) == values("foil", FOILS)


def test_hat_by_spans() -> None:
    rows = [
        # "blue cup" is one span (mean -0.3), "tree" another (-0.5): the lower one counts, and is right
        judged("1", "a blue cup and tree .", [0.0, -0.2, -0.4, 0.0, -0.5, -0.9], 0.5, wrong=("tree.",)),
        judged("2", "a blue cup", [0.0, -0.2, -0.4], 0.5, wrong=("blue", "cup.")),
        judged("3", "a cup", [0.0, 0.0], 0.5, wrong=("cup",)),  # nothing flagged is a miss
        judged("4", "a cup", [0.0, -0.2], 0.9),
    ]
    found = values("hat", rows)
    assert found["localisation"] == pytest.approx(2 / 3)
    assert found["base_rate"] == 0.75
    # -(1 - cosine) * sum of flagged: .55, .3, 0, .02: 1, 1, then the right caption, then 3 of 4
    assert found["f_clip_score/average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_rich_hf_by_place_and_word() -> None:
    rows = [
        judged("1", "a red cup , big", [0, -0.2, -0.3, -0.9, 0.1], 0.5, wrong=("1_red", "3_big"), score=0.2),
        judged("2", "a dog!", [0.0, -0.5], 0.0, wrong=("1_dog",), score=0.1),
        judged("3", "a key", [0.0, 0.0], 0.5, score=0.9),
    ]
    found = values("rich-hf", rows)
    assert (found["precision"], found["recall"]) == (2 / 3, 2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    expected = [-0.5 * 0.5, -0.5, 0.0]
    assert found["pearson"] == pytest.approx(stats.pearsonr(expected, [0.2, 0.1, 0.9]).statistic)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["clip_score/pearson"] == pytest.approx(stats.pearsonr([0.5, 0.0, 0.5], [0.2, 0.1, 0.9]).statistic)
    assert found["clip_score/spearman"] == pytest.approx(stats.spearmanr([0.5, 0.0, 0.5], [0.2, 0.1, 0.9]).statistic)


def test_rich_hf_labels_the_parts_of_what_is_glued_together() -> None:
    """ "16:9" is one word of ours and two of theirs; what follows keeps their numbers."""
    photo = judged("1", "a 16:9 photo of a tree", [0, 0, -0.5, 0, 0, 0], 0.5, wrong=("3_photo",), score=0.2)
    both = judged("2", 'a 16:9 "big photo"', [0, -0.5, 0, 0], 0.5, wrong=("1_16", "2_9"), score=0.2)
    twice = judged("3", "a tree a tree", [0, 0, 0, -0.5], 0.5, wrong=("3_tree",), score=0.2)
    found = values("rich-hf", [photo, both, twice])
    assert (found["precision"], found["recall"]) == (1.0, 1.0)


def test_seetrue_asks_the_judge_for_each_flagged_caption() -> None:
    rows = [
        judged("1", "a blue cup", [0.0, -0.2, -0.4], 0.5, wrong=("x",), feedback="it is red"),
        judged("2", "a cup", [0.0, 0.0], 0.5, wrong=("x",), feedback="it is a key"),
    ]
    asked = []

    def judge(premise: str, hypothesis: str) -> tuple[float, float]:
        asked.append((premise, hypothesis))
        return 0.0, 0.0

    assert seetrue_entailment(rows, -0.1, judge).value == 0.25
    assert asked == [("it is red", "blue cup")]


def slowly(labels: list[bool], scores: list[float]) -> float:
    """Precision and recall at every distinct score, from their definitions."""
    area, before = 0.0, 0.0
    for limit in sorted(set(scores), reverse=True):
        taken = [label for label, value in zip(labels, scores, strict=True) if value >= limit]
        recall = sum(taken) / sum(labels)
        area, before = area + (recall - before) * sum(taken) / len(taken), recall
    return area


@pytest.mark.parametrize("seed", range(20))
def test_numbers_with_ties_equal_their_definitions(seed: int) -> None:
    rng = random.Random(seed)
    scores, others = ([rng.randrange(6) / 7 for _ in range(30)] for _ in range(2))
    labels = [rng.random() < 0.4 for _ in scores[1:]] + [True]
    assert average_precision(labels, scores) == pytest.approx(slowly(labels, scores))
    assert pearson(scores, others) == pytest.approx(stats.pearsonr(scores, others).statistic)
    assert spearman(scores, others) == pytest.approx(stats.spearmanr(scores, others).statistic)
    assert pearson(scores, [1.0] * 30) is None


def test_a_caption_twice_or_without_words_is_refused() -> None:
    for rows in ([FOILS[0], FOILS[0]], [], [Judged(FOILS[0].item, [], 0.5)]):
        with pytest.raises(DataFormatError, match="give captions, each once, each with words"):
            score("foil", rows, 0.0)
