"""Caption accuracy: ties never count, groups are counted right, shuffled images are never the row's own."""

import json
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip.accuracy import Scores, accuracy, derangement, is_right, metrics, predictions, score
from llava_ohd.clip.accuracy_report import table
from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.ohd_caps.readers import read_rows
from llava_ohd.ohd_caps.records import Negative, OhdRow


def test_a_tie_is_wrong() -> None:
    assert is_right(torch.tensor([0.3, 0.2, 0.1]))
    assert not is_right(torch.tensor([0.3, 0.3, 0.1]))
    assert not is_right(torch.tensor([0.1, 0.3, 0.2]))


def test_a_derangement_leaves_nothing_in_place() -> None:
    for n in (2, 3, 10, 101):
        order = derangement(n, seed=n)
        assert sorted(order) == list(range(n))
        assert all(index != place for place, index in enumerate(order))
        assert order == derangement(n, seed=n)
    assert derangement(101, 0) != derangement(101, 1)


def test_metrics_by_group() -> None:
    def negative(strategy: str, *objects: str) -> Negative:
        return Negative("x", strategy, objects)

    rows = [
        OhdRow("a", "c", (negative("random", "p"), negative("adversarial", "p", "q")), ("m", "n")),
        OhdRow("b", "c", (negative("random", "p"), negative("removal", "m")), ("m",)),
        OhdRow("d", "c", (negative("unknown"),), ()),
        OhdRow("e", "c", (negative("random", "p"), negative("random", "q")), ("m",)),
    ]
    cosines = [[0.5, 0.1, 0.2], [0.5, 0.6, 0.1], [0.5, 0.5], [0.5, 0.4, 0.5]]
    scores = Scores(rows, [torch.tensor(row) for row in cosines])
    found = {metric.name: (metric.value, metric.n) for metric in metrics(scores)}
    low, high = found["accuracy_low95"][0], found["accuracy_high95"][0]
    # Wilson 1927 for 1 of 4: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (low, high) == (pytest.approx(0.045587, abs=1e-5), pytest.approx(0.699358, abs=1e-5))
    assert {name: value for name, value in found.items() if not name.endswith(("95", "_chance"))} == {
        "accuracy": (0.25, 4),
        "accuracy/random": (pytest.approx(1 / 3), 3),
        "accuracy/adversarial": (1.0, 1),
        "accuracy/removal": (1.0, 1),
        "accuracy/unknown": (0.0, 1),
        "accuracy/edited_1": (pytest.approx(1 / 3), 3),
        "accuracy/edited_2": (1.0, 1),
        "accuracy/present_1": (0.0, 2),
        "accuracy/present_2": (1.0, 1),
        "pairwise": (pytest.approx(4 / 7), 7),
    }
    assert found["accuracy_chance"] == (pytest.approx((3 / 3 + 1 / 2) / 4), 4)
    assert found["accuracy/random_chance"] == (pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3), 3)
    shown = table(metrics(scores), "nothing").splitlines()
    assert shown[1].split() == ["above", "all", "negatives", "25.0", "[4.6,", "69.9]", "37.5", "4"]
    rows_out = predictions(scores)
    json.dumps(rows_out)
    assert [row["correct"] for row in rows_out] == [True, False, False, False]
    assert (rows_out[1]["strategy"], rows_out[1]["margin"]) == ("random", pytest.approx(-0.1, abs=1e-6))


def test_scores_are_the_cosines_of_transformers(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    file, folder = ohd
    rows = [*read_rows(file)[:6], OhdRow("000.png", "a ball", (Negative("A ball", "random", ()),), ())]
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    processor = tower.load_processor(tiny_encoder_dir)
    images = Images(folder, image_names(rows), processor)
    scores = score(model, tokenizer, images, rows, seed=3)
    scale = model.logit_scale.exp()
    order = derangement(len(images), 3)
    for number, row in enumerate(rows):
        own = image_names(rows).index(row.image)
        text = tokenizer(list(row.captions), padding="max_length", return_tensors="pt")
        opened = [tower.open_image(folder / image_names(rows)[place]) for place in (own, order[own])]
        with torch.no_grad():
            logits = model(**text, pixel_values=processor(opened, return_tensors="pt")["pixel_values"]).logits_per_image
        torch.testing.assert_close(scores.cosines[number], logits[0] / scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores.shuffled[number], logits[1] / scale, rtol=1e-4, atol=1e-5)
    images_seen = embed_images(model, images)
    texts, _ = embed_captions(model, tokenizer, [rows[0].caption])
    mean = images_seen.mean(0) / images_seen.mean(0).norm()
    torch.testing.assert_close(scores.mean_image[0][0], texts[0] @ mean)
    assert not is_right(scores.cosines[-1])  # the same tokens: an exact tie
    assert accuracy(scores.cosines) == sum(row["correct"] for row in predictions(scores)) / 7


def test_one_image_cannot_be_shuffled(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    file, folder = ohd
    rows = read_rows(file)[:1]
    images = Images(folder, image_names(rows), tower.load_processor(tiny_encoder_dir))
    scores = score(tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir), images, rows)
    assert (scores.shuffled, scores.mean_image) == ((), ())
    assert "accuracy_shuffled" not in {metric.name for metric in metrics(scores)}
