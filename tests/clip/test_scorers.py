"""Ways of comparing captions: what is encoded, how scores are joined, and what no order of objects can change."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llava_ohd import tower
from llava_ohd.clip.accuracy import score
from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images, embed_captions
from llava_ohd.clip.scorers import SCORERS, cost_settings, make_scorer, orders, read_captions
from llava_ohd.errors import OptionError
from llava_ohd.ohd_caps.records import OhdRow

NAMES = ("ball", "cup", "key", "star", "ring")
PHRASES = ("a red ball", "a blue cup", "a key", "a star")
CAPTION = "there is a red ball, a blue cup, a key and a star"


def _caption(phrases: tuple[str, ...]) -> str:
    return f"there is {', '.join(phrases[:-1])} and {phrases[-1]}"


def _unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_texts_of_each_scorer() -> None:
    assert make_scorer("whole").texts(CAPTION) == [CAPTION]
    assert sorted(make_scorer("split-mean", NAMES).texts(CAPTION)) == sorted(PHRASES)
    assert sorted(make_scorer("split-min+whole", NAMES).texts(CAPTION)) == sorted([*PHRASES, CAPTION])
    assert sorted(make_scorer("permuted", NAMES).texts(CAPTION)) == sorted(
        map(_caption, itertools.permutations(PHRASES))
    )
    assert make_scorer("split-mean", NAMES).texts("nothing known here") == ["nothing known here"]
    assert make_scorer("split-min", NAMES).texts("there is a key") == ["a key"]
    with pytest.raises(OptionError, match="--scorer split: one of whole, split-mean"):
        make_scorer("split", NAMES)


@pytest.mark.parametrize("name", [name for name in SCORERS if "whole" not in name])
@pytest.mark.parametrize("most", [24, 6])
def test_scores_do_not_depend_on_the_order_of_objects(name: str, most: int, tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    captions = [_caption(row) for row in itertools.permutations(PHRASES)]
    read = read_captions(model, tokenizer, captions, make_scorer(name, NAMES, most))
    assert len(set(read.cosines(range(24), _unit(0, 32)).tolist())) == 1  # exactly
    one, other = (
        read_captions(model, tokenizer, [caption], make_scorer(name, NAMES, most)).cosines([0], _unit(0, 32))
        for caption in (captions[3], captions[17])
    )
    assert torch.equal(one, other)
    whole = read_captions(model, tokenizer, captions, make_scorer()).cosines(range(24), _unit(0, 32))
    assert len(set(whole.tolist())) > 1  # the encoder itself does depend on it


def test_scores_are_what_the_table_says(tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    texts, which = embed_captions(model, tokenizer, [*PHRASES, CAPTION])
    images = _unit(1, 3, 32)
    parts, whole = images @ texts[which[:4]].T, images @ texts[which[4]]
    every = torch.cat([parts, whole[:, None]], 1)
    t = 1 / float(model.logit_scale.detach().exp())
    expected = {
        "whole": whole,
        "split-mean": parts.mean(1),
        "split-min": parts.amin(1),
        "split-softmin": torch.tensor([[-t * math.log(sum(math.exp(-c / t) for c in r) / 4) for r in parts.tolist()]])[
            0
        ],
        "split-sum": images @ F.normalize(texts[which[:4]].sum(0), dim=0),
        "split-mean+whole": every.mean(1),
        "split-min+whole": every.amin(1),
    }
    for name, value in expected.items():
        read = read_captions(model, tokenizer, [CAPTION], make_scorer(name, NAMES))
        torch.testing.assert_close(read.cosines([0], images)[:, 0], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(read.cosines([0], images[1])[0], value[1], rtol=1e-5, atol=1e-6)


def test_a_soft_minimum_never_falls_when_a_phrase_fits_better() -> None:
    join = make_scorer("split-softmin", NAMES).join
    low = torch.tensor([0.1, 0.5])
    assert join(low, temperature=0.1) < join(low + torch.tensor([0.0, 0.2]), temperature=0.1)
    assert float(join(low, temperature=1e-4)) == pytest.approx(0.1, abs=1e-3)
    assert float(join(low, temperature=1e4)) == pytest.approx(0.3, abs=1e-3)


def test_orders_are_canonical_and_balanced() -> None:
    assert orders(("b", "a", "c"), 24) == list(itertools.permutations("abc"))
    many = orders(tuple("hgfedcba"), 24)
    assert many == orders(tuple("abcdefgh"), 24)
    assert len(many) == 24
    places = Counter((item, place) for row in many for place, item in enumerate(row))
    assert set(places.values()) == {3}


def test_cost_counts_each_text_once(tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    captions = ["a ball and a cup", "a cup and a ball", "a ball and a key", "a ball and a cup"]
    costs = {name: read_captions(model, tokenizer, captions, make_scorer(name, NAMES)).cost for name in SCORERS}
    assert (costs["whole"], costs["split-mean"], costs["permuted"]) == ((3, 3), (3, 3), (3, 4))
    assert costs["split-mean+whole"] == (3, 6)
    scorer = make_scorer("permuted", NAMES)
    assert cost_settings(scorer, (3, 4)) == {"scorer": "permuted", "captions": 3, "texts_encoded": 4}
    assert cost_settings(make_scorer(), (3, 3)) == {}


def test_ohd_caps_with_a_scorer(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path], make_rows: Callable[[int, int], list[OhdRow]]
) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    rows = make_rows(6, 5)
    images = Images(ohd[1], image_names(rows), tower.load_processor(tiny_encoder_dir))
    split = score(model, tokenizer, images, rows, scorer=make_scorer("split-mean", ("ball", "box", *NAMES[1:])))
    whole = score(model, tokenizer, images, rows)
    assert whole.cost == (len({caption for row in rows for caption in row.captions}),) * 2
    assert split.cost[1] < split.cost[0]  # phrases recur
    # the right caption has one object: the phrase is the caption
    assert [float(c[0]) for c in split.cosines] == pytest.approx([float(c[0]) for c in whole.cosines], abs=1e-6)
    assert not torch.equal(split.cosines[0], whole.cosines[0])
