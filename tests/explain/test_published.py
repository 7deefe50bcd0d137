"""The example that CLIP4DM's authors publish, on their weights: a picture of coffee is no cup of coke."""

from pathlib import Path
from urllib.request import urlretrieve

import pytest

from llava_ohd.clip.embedding import Images, embed_images
from llava_ohd.explain.explainer import explain

MODEL = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICTURE = "https://raw.githubusercontent.com/naver-ai/clip4dm/cb9e52d/misc/a_cup_of_coffee.jpg"
COKE = {"a": -3.68e-5, "cup": 2.10e-4, "of": 5.72e-5, "coke": -4.444e-4}
COFFEE = {"a": -3.03e-5, "cup": 4.75e-5, "of": 1.7e-6, "coffee": 1.378e-4}


@pytest.mark.network
def test_coke_and_coffee(tmp_path: Path) -> None:
    """Their numbers are float16's, and of open_clip's preprocessing; ours float32: a tenth of the largest apart."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    urlretrieve(PICTURE, tmp_path / "coffee.jpg")
    model = CLIPModel.from_pretrained(MODEL).eval().requires_grad_(False)
    images = Images(tmp_path, ["coffee.jpg"], AutoImageProcessor.from_pretrained(MODEL, use_fast=False))
    seen = embed_images(model, images)
    pairs = [(0, "a cup of coke"), (0, "a cup of coffee")]
    coke, coffee = explain(model, AutoTokenizer.from_pretrained(MODEL), seen, pairs)
    for found, expected, score in ((coke, COKE, 0.5246), (coffee, COFFEE, 0.6885)):
        words = {word.text: word.score for word in found.words}
        assert words == pytest.approx(expected, abs=4.5e-5)
        # that is more than the smallest of them: signs of those that it cannot turn, and the order, are held to as well
        clear = {word: value for word, value in expected.items() if abs(value) > 4.5e-5}
        assert {word: (words[word] or 0.0) > 0 for word in clear} == {word: value > 0 for word, value in clear.items()}
        assert min(words, key=lambda word: words[word] or 0.0) == min(expected, key=expected.__getitem__)
        assert max(words, key=lambda word: words[word] or 0.0) == max(expected, key=expected.__getitem__)
        assert found.clip_score == pytest.approx(score, abs=0.02)
    assert [word.text for word in coke.wrong] == ["coke"]
    assert coffee.wrong == ()
