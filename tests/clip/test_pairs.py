"""Pair files: their four forms and counts, COLA's rule, ties, missing images, and the command on images of our own."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.pairs import (
    Matching,
    Pair,
    PairScores,
    existing,
    image_names,
    metrics,
    predictions,
    read_all,
    read_pairs,
    score,
)
from llava_ohd.errors import DataFormatError, ImageError

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
ROWS = {
    "sugarcrepe/add_att.json": (692, 0),
    "sugarcrepe/add_obj.json": (2062, 0),
    "sugarcrepe/replace_att.json": (788, 0),
    "sugarcrepe/replace_obj.json": (1652, 0),
    "sugarcrepe/replace_rel.json": (1406, 0),
    "sugarcrepe/swap_att.json": (666, 0),
    "sugarcrepe/swap_obj.json": (245, 0),
    "foil/foil-it.json": (943, 57),
    "foil/nocaps-val-foil.json": (2500, 0),
    "foil/COLA_multiobjects_matching_benchmark.json": (210, 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_real_files(name: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"{REAL / name} is not here")
    items, left_out = read_pairs(REAL / name)
    assert (len(items), left_out) == ROWS[name]
    assert all(name for item in items for name in image_names([item]))


def test_what_the_real_files_say() -> None:
    if not (REAL / "foil").is_dir():
        pytest.skip(f"{REAL / 'foil'} is not here")
    [first, *_], _ = read_pairs(REAL / "foil" / "COLA_multiobjects_matching_benchmark.json")
    captions = ("standing tall long giraffe to the right of brown giraffe", "brown giraffe behind tall white giraffe")
    assert first == Matching(("2390970.jpg", "2388902.jpg"), captions)
    domains = {
        item.category for item in read_pairs(REAL / "foil" / "nocaps-val-foil.json")[0] if isinstance(item, Pair)
    }
    assert domains == {"in-domain", "near-domain", "out-domain"}
    with pytest.raises(DataFormatError, match=r"row 1 has .*; expected is SugarCrepe with"):
        read_pairs(REAL / "foil" / "hat-trainval.json")


def _pairs(*rows: tuple[float, float], category: str = "c") -> PairScores:
    items = [Pair(f"{number}.png", "a b", "a b c", category) for number in range(len(rows))]
    return PairScores(items, [torch.tensor([row]) for row in rows], [])


def _values(scores: PairScores) -> dict[str, tuple[float, int]]:
    return {metric.name: (metric.value, metric.n) for metric in metrics(scores)}


def test_a_tie_is_not_right() -> None:
    values = _values(_pairs((0.3, 0.2), (0.2, 0.2), (0.1, 0.2), (0.4, 0.1)))
    assert values["accuracy"] == (0.5, 4)
    assert values["control_shortest"] == (1.0, 4)
    assert "accuracy/c" not in values  # one category is the whole


def test_categories_stand_apart() -> None:
    items = [Pair("1", "a", "b", "x"), Pair("2", "a", "b", "x"), Pair("3", "a", "b", "y")]
    cosines = [torch.tensor([row]) for row in ((0.2, 0.1), (0.1, 0.2), (0.2, 0.1))]
    values = _values(PairScores(items, cosines, cosines))
    assert (values["accuracy/x"], values["accuracy/y"]) == ((0.5, 2), (1.0, 1))
    assert values["accuracy_low95"][0] < 2 / 3 < values["accuracy_high95"][0]
    assert values["control_shortest"] == (0.5, 3)  # one word each: a tie of two


@pytest.mark.parametrize(
    ("cosines", "right", "captions"),
    [
        ([[0.3, 0.4], [0.1, 0.5]], True, False),  # each caption finds its image, image 1 prefers the other caption
        ([[0.3, 0.2], [0.4, 0.5]], False, True),  # caption 1 prefers image 2
        ([[0.3, 0.2], [0.3, 0.5]], False, True),  # a tie between images
        ([[0.9, 0.1], [0.1, 0.9]], True, True),
    ],
)
def test_cola_matches_images_to_captions(cosines: list[list[float]], right: bool, captions: bool) -> None:
    preds = torch.tensor(cosines)
    official = bool(preds[0, 0] > preds[1, 0] and preds[1, 1] > preds[0, 1])  # ColaMultiObjAcc @ 1fa52fb
    values = _values(PairScores([Matching(("1", "2"), ("a", "b"))], [preds], []))
    assert values["accuracy"][0] == official == right
    assert (values["accuracy_captions"][0], values["accuracy_both"][0]) == (captions, right and captions)
    assert values["control_chance"][0] == 0.25


def test_scores_are_the_cosines_of_the_model(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    _, folder = ohd
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    processor = tower.load_processor(tiny_encoder_dir)
    items = [Pair("000.png", "a red ball", "a red cup", "c"), Pair("001.png", "a ball", "a ball", "c")]
    found = score(model, tokenizer, Images(folder, image_names(items), processor), items)
    pixels = processor(tower.open_image(folder / "000.png"), return_tensors="pt")["pixel_values"]
    texts = tokenizer(["a red ball", "a red cup"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, **texts).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(found.cosines[0], logits, rtol=1e-4, atol=1e-5)
    assert [row["correct"] for row in predictions(found)][1] is False  # the same caption twice: an exact tie
    torch.testing.assert_close(
        found.shuffled[0][0, 0], found.cosines[0].new_tensor(_other(model, processor, folder, texts))
    )


def _other(model: object, processor: object, folder: Path, texts: object) -> float:
    pixels = processor(tower.open_image(folder / "001.png"), return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    with torch.no_grad():
        return float(model(pixel_values=pixels, **texts).logits_per_image[0, 0] / model.logit_scale.exp())  # type: ignore


def test_missing_images_are_an_error_unless_asked_for(tmp_path: Path) -> None:
    items = [Pair("a.png", "a", "b", "c"), Pair("b.png", "a", "b", "c"), Pair("a.png", "a", "c", "c")]
    with pytest.raises(ImageError, match=r"3 of 3 rows .* \(2 of 2 images, such as a.png\)"):
        existing(items, tmp_path, limit=True)
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match=r"1 of 3 rows .* --limit_to_existing"):
        existing(items, tmp_path, limit=False)
    assert existing(items, tmp_path, limit=True) == [items[0], items[2]]


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"0": {"filename": "a", "caption": "b", "negative_caption": "c"}}))
    (tmp_path / "m.json").write_text(json.dumps([["u/a.jpg", "b", "u/c.jpg", "d"]]))
    assert [len(read_all([tmp_path / name])[0]) for name in ("p.json", "m.json")] == [1, 1]
    foil = {"image_file": "a", "caption": "b", "foil": "c"}
    (tmp_path / "f.json").write_text(json.dumps({"0": foil}))
    for other, kind in (("m.json", "COLA"), ("f.json", "FOIL")):
        with pytest.raises(DataFormatError, match=rf"p\.json is SugarCrepe, .*{other} is {kind}; .* apart"):
            read_all([tmp_path / "p.json", tmp_path / other])
    (tmp_path / "f.json").write_text(json.dumps([foil, {"filename": "a", "caption": "b", "negative_caption": "c"}]))
    with pytest.raises(DataFormatError, match="row 2 is not FOIL, as row 1 is: texts image_file, caption, foil"):
        read_pairs(tmp_path / "f.json")
    (tmp_path / "m.json").write_text(json.dumps([["a", "b"]]))
    with pytest.raises(DataFormatError, match=r"row 1 is not \[image 1"):
        read_pairs(tmp_path / "m.json")


def test_what_is_expected_of_a_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "a"}\n{"image": "b"}\n')
    with pytest.raises(DataFormatError, match=r"Extra data at line 2.* Expected is one JSON .*, not JSON Lines: Sugar"):
        read_pairs(file)
    votes = {"image_file": "a", "caption": "b", "foil": "c", "mturk": {"caption": 1, "foil": 2}}
    file.write_text(json.dumps([votes]))
    with pytest.raises(DataFormatError, match="in none of 1 rows do 2 people prefer the caption"):
        read_pairs(file)
    file.write_text(json.dumps([votes, votes | {"caption": 7, "mturk": {"caption": 3}}]))
    with pytest.raises(DataFormatError, match="row 2 is not FOIL"):
        read_pairs(file)


def test_the_command(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ohd
    rows = {str(i): {"filename": f"{i:03}.png", "caption": "a ball", "negative_caption": "a key"} for i in range(30)}
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    argv = [
        "pairs.py",
        "--encoder",
        str(tiny_encoder_dir),
        "--data",
        *(str(tmp_path / f"{n}.json") for n in ("one", "two")),
    ]
    argv += ["--images", str(folder), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):  # 24 images for 30 rows
        runpy.run_path(str(ROOT / "eval/pairs.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*argv, "--limit_to_existing"])
    runpy.run_path(str(ROOT / "eval/pairs.py"), run_name="__main__")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert (record["n"], record["complete"], record["settings"]["rows_without_image"]) == (48, False, 12)
    assert record["metrics"]["accuracy"]["value"] == pytest.approx(sum(row["correct"] for row in lines) / 48)
    assert {"accuracy/one", "accuracy/two", "accuracy_shuffled", "control_shortest"} <= record["metrics"].keys()
