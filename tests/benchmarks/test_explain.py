"""The benchmark of word attributions at a tiny size: both ways agree, and a difference stops it."""

import json
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import StageFailed
from llava_ohd.explain import speed
from llava_ohd.explain.words import prepare
from llava_ohd.world import MINI_CLIP


def test_both_ways_agree_and_a_difference_is_refused() -> None:
    tokenizer = tower.load_tokenizer(MINI_CLIP)
    model = speed.make_model("tiny", tokenizer)
    captions = [prepare(tokenizer, text, 77).tokens for text in ("a cup", "a large red ball and a tree", "a star")]
    pixels, which = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), [0, 1, 1]
    _, expected = speed.timed(speed.released, model, captions, pixels[which], 2)
    _, found = speed.timed(speed.ours, model, captions, pixels, which, 2, 2)
    assert speed.check_equal(expected, found) < 1e-6 < float(expected[1].abs().max())
    with pytest.raises(StageFailed, match="the two ways differ by"):
        speed.check_equal(expected, [row + 1e-3 for row in found])


@pytest.mark.parametrize("name", ["coco_annotations", "nocaps-val-foil"])
def test_the_committed_results_are_of_equal_attributions(name: str) -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks/results/explain"
    record = json.loads((folder / f"vit-b-32-{name}.json").read_text())
    assert record["largest_difference"] < 1e-6
    assert record["speedup"]["wall"] >= {"coco_annotations": 5, "nocaps-val-foil": 4}[name]  # the former is the default
    assert f"{record['speedup']['wall']:.2f} times as fast" in (folder / f"vit-b-32-{name}.md").read_text()
