"""Captions word by word: scores made of words, thresholds, parts of long captions, the check against CHAIR."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, OptionError
from llava_ohd.evals.chair_data import Caption
from llava_ohd.evals.chair_words import Vocabulary
from llava_ohd.evals.dense import Judged
from llava_ohd.evals.dense_items import WordItem
from llava_ohd.explain import attribution
from llava_ohd.explain.captions import crosscheck, explain_captions
from llava_ohd.explain.explainer import ExplainConfig, Explanation, ScoredWord, explain, threshold_at
from llava_ohd.explain.page import draw_mentions, terminal
from llava_ohd.explain.scores import clip_score, f_clip_score, noun_clip_score, ref_clip_score
from llava_ohd.explain.words import prepare

CAPTIONS = ["a red ball", "a large blue cup, a key and a star", "a tree"]


def test_scores_by_hand() -> None:
    assert (clip_score(0.3), clip_score(-0.3)) == (0.75, 0.0)
    assert ref_clip_score(0.4, [0.2, 0.5]) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert ref_clip_score(-0.1, [0.5]) == ref_clip_score(0.4, [-0.5]) == 0.0
    assert f_clip_score(0.2, [-0.3, 0.5, -0.1, -0.01], -0.05) == pytest.approx(0.8 * -0.4)
    assert f_clip_score(0.2, [0.5], -0.05) == 0.0
    assert f_clip_score(0.2, [0.5, 0.3], None) == pytest.approx(0.8 * 0.3)
    with pytest.raises(OptionError, match="RefCLIPScore of 0 references"):
        ref_clip_score(0.3, [])
    assert noun_clip_score(0.3, [0.2, -0.1]) == pytest.approx((30 + 20 + 1e-7) / 3)


def test_words_are_the_means_of_their_tokens_whatever_the_batch(stock: Path) -> None:
    model, tokenizer = tower.load(stock).eval(), tower.load_tokenizer(stock)
    images = torch.randn(2, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    pairs = [(0, CAPTIONS[0]), (1, CAPTIONS[1]), (1, CAPTIONS[2])]
    config = ExplainConfig(template="a photo of ", batch=2)
    found = explain(model, tokenizer, images, pairs, config)
    for (image, caption), one in zip(pairs, found, strict=True):
        text = prepare(tokenizer, caption, 64, "a photo of ")
        [expected] = attribution.attribute(model, [text.tokens], images[image : image + 1])
        assert [word.text for word in one.words] == caption.replace(",", " ,").split()
        for word, pieces in zip(one.words, text.pieces, strict=True):
            assert word.score == pytest.approx(float(expected.tokens[list(pieces)].mean()), abs=1e-6)
        assert one.cosine == pytest.approx(expected.cosine, abs=1e-6)


def explanation(*scores: float | None, threshold: float = -0.1) -> Explanation:
    words = tuple(ScoredWord("x", 2 * place, 2 * place + 1, score) for place, score in enumerate(scores))
    return Explanation("x " * len(scores), words, 0.5, threshold)


def test_what_does_not_fit() -> None:
    found = explanation(-0.2, None, 0.3, -0.1)
    assert [word.start for word in found.wrong] == [0]
    assert found.f_clip_score == pytest.approx(0.5 * -0.2)


def test_punctuation_is_no_word_that_does_not_fit() -> None:
    rows = (("a", 0.1), (",", -0.3), ("cup", -0.2), ("-", -0.4), (".", -0.4))
    words = tuple(ScoredWord(text, 0, 0, score) for text, score in rows)
    found = Explanation("a , cup - .", words, 0.5, -0.1)
    assert [word.text for word in found.wrong] == ["cup"]
    assert found.f_clip_score == pytest.approx(0.5 * -0.2)
    judged = Judged(WordItem("1", "", "i.jpg", found.caption, True), rows, 0.5)
    assert [word for _, word, _ in judged.flagged(-0.1)] == ["cup"]  # as eval/dense.py flags
    assert threshold_at([found], 0.5) == 0.1  # of two words, not of five
    shown = terminal(found, colour=False).splitlines()
    assert [line.split()[0] for line in shown if "does not fit" in line] == ["cup"]


def test_a_threshold_flags_the_share_of_right_words_that_is_asked_for() -> None:
    right = [explanation(*[i / 100 for i in range(start, start + 50)]) for start in (0, 50)]
    threshold = threshold_at(right, 0.1)
    assert sum(score < threshold for one in right for score in one.scores) == 10
    for share, rows in ((0.0, right), (1.0, right), (0.1, [])):
        with pytest.raises(OptionError, match="give a share between 0 and 1"):
            threshold_at(rows, share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "grad"}, "variant 'grad': give one of"),
        ({"template": "A photo"}, "its last character must be a blank"),
        ({"layers": 0}, "layers 0: give a number of at least 1"),
        ({"batch": 0}, "batch 0: give a number"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExplainConfig(**options)


LONG = "There is a red ball. " * 20 + "A tree stands behind it."


def test_long_captions_are_read_sentence_by_sentence(stock: Path, pictures: Path) -> None:
    captions = [Caption("red.png", LONG), Caption("blue.png", "a star")]
    config = ExplainConfig(template="")
    found, _ = explain_captions(stock, captions, pictures, config)
    record = found.record()
    assert [LONG[word["start"] : word["end"]] for word in record["words"]] == [w["word"] for w in record["words"]]
    assert "".join(word["word"] for word in record["words"]) == LONG.replace(" ", "")
    assert [part["start"] for part in record["parts"]] == [21 * i for i in range(21)]
    at = LONG.index("tree")
    assert found.lowest(at, at + 4) == next(word["score"] for word in record["words"] if word["word"] == "tree")
    with pytest.raises(DataFormatError, match="score it by sentence"):
        explain_captions(stock, captions, pictures, config, by="caption")
    cut, _ = explain_captions(stock, captions, pictures, ExplainConfig(template="", cut=True), by="caption")
    assert cut.record()["words"][-1]["score"] is None
    assert cut.lowest(at, at + 4) is None


def test_a_picture_of_mentions_counts_both_kinds(tmp_path: Path) -> None:
    draw_mentions([-2e-5, -1e-5], [1e-5, 2e-5, 3e-5], tmp_path / "chair.svg")
    picture = (tmp_path / "chair.svg").read_text()
    for text in ("hallucinated (2 mentions)", "true (3 mentions)", "lowest word (1e-5)", "mentions of its kind, %"):
        assert text in picture


def test_words_against_chair(stock: Path, pictures: Path) -> None:
    """Of two mentions, one true and one hallucinated, the area is 1 or 0, as the scores of the two words are."""
    vocabulary = Vocabulary({("ball",): "ball", ("tree",): "tree", ("star",): "star"}, 1)
    captions = [Caption("red.png", "a red ball and a tree. A ball."), Caption("blue.png", "something else")]
    found = explain_captions(stock, captions, pictures, ExplainConfig(template=""))
    truth = {"red.png": frozenset({"ball"}), "blue.png": frozenset({"star"})}
    words = {word["word"]: word["score"] for word in found[0].record()["words"]}
    balls = [word["score"] for word in found[0].record()["words"] if word["word"] == "ball"]
    check = crosscheck(found, truth, vocabulary)
    assert (check.mentions, check.hallucinated) == (3, 1)
    assert check.area == sum(words["tree"] < score for score in balls) / 2
    assert check.scores == ((words["tree"],), tuple(balls))
    assert crosscheck(found[1:], truth, vocabulary).area is None
    with pytest.raises(DataFormatError, match=r"'red\.png' has no ground truth"):
        crosscheck(found, {"blue.png": frozenset()}, vocabulary)
