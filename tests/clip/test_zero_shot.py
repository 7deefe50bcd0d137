"""Zero-shot recognition: the ensemble, ties, classes by name, every layout of the data sets, and the command."""

import csv
import json
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.image_sets import read_image_set
from llava_ohd.clip.prompts import SETS, prompt_set
from llava_ohd.clip.zero_shot import (
    TEMPLATES,
    Recognition,
    ZeroShotSet,
    embed_classes,
    metrics,
    predictions,
    read_set,
    recognise,
)
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects

ROOT = Path(__file__).parents[2]
KINDS = ["ball", "umbrella", "key"]


def _prompts(kinds: list[str]) -> list[list[str]]:
    return [[template.format(f"the {kind}") for template in TEMPLATES] for kind in kinds]


# --- recognition


def test_a_class_is_the_mean_of_its_prompts(tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    for vector, prompts in zip(embed_classes(model, tokenizer, _prompts(KINDS)), _prompts(KINDS), strict=True):
        texts = tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.no_grad():
            features = model.text_projection(model.text_model(**texts).pooler_output)
        mean = torch.nn.functional.normalize(features, dim=-1).mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_recognises_the_nearest_class_and_nothing_where_two_are(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    _, folder = ohd
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    processor = tower.load_processor(tiny_encoder_dir)
    names = [f"{number:03}.png" for number in range(8)]
    objects = [ImageObjects(name, ("ball",)) for name in names]
    images, prompts = Images(folder, names, processor), _prompts(KINDS)
    found = recognise(model, tokenizer, ZeroShotSet("x", images, objects, KINDS, prompts))
    classes = embed_classes(model, tokenizer, prompts)
    for name, kind in zip(names, found.predicted, strict=True):
        pixels = processor(tower.open_image(folder / name), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        assert kind == KINDS[int((classes @ image[0]).argmax())]
    twice = [prompts[KINDS.index(str(found.predicted[0]))]] * 3  # three classes with the same prompts
    tied = recognise(model, tokenizer, ZeroShotSet("x", images, objects, KINDS, twice))
    assert set(tied.predicted) == {None}
    assert {metric.name: metric.value for metric in metrics(tied)}["accuracy"] == 0


def test_images_of_one_class_and_of_several_are_kept_apart() -> None:
    images = [ImageObjects("a", ("ball",)), ImageObjects("b", ("cup",)), ImageObjects("c", ("cup", "key"))]
    found = Recognition(images, ["ball", "ball", "key"])
    values = {metric.name: (metric.value, metric.n) for metric in metrics(found)}
    assert values["accuracy"] == (0.5, 2)
    assert values["accuracy_present"] == (1.0, 1)
    assert [(row["image"], row["correct"]) for row in predictions(found)] == [("a", True), ("b", False)]
    assert [row["image"] for row in predictions(found, single=False)] == ["c"]


def test_every_class_weighs_the_same_in_the_mean() -> None:
    images = [ImageObjects(str(i), ("ball" if i < 8 else "cup",)) for i in range(10)]
    values = {m.name: m.value for m in metrics(Recognition(images, ["ball"] * 9 + ["cup"]))}
    assert values["accuracy"] == pytest.approx(0.9)
    assert values["mean_per_class"] == pytest.approx((8 / 8 + 1 / 2) / 2)
    half = 1.96 * (0.5 * 0.5 / 2) ** 0.5 / 2
    assert values["mean_per_class_low95"] == pytest.approx(0.75 - half, rel=1e-6)
    assert values["accuracy_low95"] == pytest.approx(0.5958, abs=1e-3)  # Wilson: 9 of 10


# --- prompts and classes


def test_the_prompts_are_openais() -> None:
    sizes = {name: (len(prompt_set(name).names), len(prompt_set(name).templates)) for name in SETS}
    assert sizes == {
        "cifar10": (10, 18), "cifar100": (100, 18), "stl10": (10, 2), "eurosat": (10, 3), "gtsrb": (43, 3),
        "imagenet": (1000, 80),
    }  # fmt: skip
    assert prompt_set("gtsrb").prompts()[14][2] == 'a close up photo of a "stop" traffic sign.'
    imagenet = prompt_set("imagenet")
    assert [imagenet.labels[0][1], imagenet.names[134], imagenet.names[517]] == [
        "n01440764", "crane bird", "construction crane",
    ]  # fmt: skip
    assert [label[1] for label in imagenet.labels] == sorted(label[1] for label in imagenet.labels)
    again = {name for name in imagenet.names if list(imagenet.names).count(name) > 1}
    assert again == {"missile", "sunglasses"}


def test_labels_are_looked_up_by_name_whatever_their_order() -> None:
    folders = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"]
    folders += ["Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]
    eurosat = prompt_set("eurosat")
    names = "annual forest brushland highway industrial pasture permanent residential river lake"
    assert [eurosat.names[place].split()[0] for place in eurosat.places(folders)] == names.split()
    assert prompt_set("gtsrb").places([f"{i:05}" for i in range(43)]) == list(range(43))
    imagenet = prompt_set("imagenet")
    for column in (1, 2):  # WordNet ids, lemmas
        assert imagenet.places([label[column] for label in imagenet.labels]) == list(range(1000))
    assert imagenet.places([label[1] for label in imagenet.labels][::-1]) == list(range(1000))[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: [*names[:-1], "lorry"], r"1 of them are unknown \('lorry'\), .* 1 are not there \('truck'\)"),
        (lambda names: names[:-1], "the data name 9 classes, cifar10 has 10"),
        (lambda names: [*names[:-1], "cat"], "1 name a class again, 1 are not there"),
        (lambda names: [str(number) for number in range(10)], "10 of them are unknown"),
    ],
)
def test_other_classes_are_refused(change: Callable[[list[str]], list[str]], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        prompt_set("cifar10").places(change(list(prompt_set("cifar10").names)))


# --- layouts: three images of known colour, label and corner each

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
LABELS = [2, 0, 2]


def _pixels(side: int) -> np.ndarray:
    """Three images (3, side, side, 3) of one colour each, the top right corner black."""
    pixels = np.stack([np.full((side, side, 3), colour, np.uint8) for colour in COLOURS])
    pixels[:, 0, -1] = 0
    return pixels


def _cifar10_names() -> list[str]:
    return list(prompt_set("cifar10").names)


def _cifar_pickle(folder: Path) -> None:
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    raw = _pixels(32).transpose(0, 3, 1, 2).reshape(3, -1)
    (inner / "test_batch").write_bytes(pickle.dumps({"data": raw, "labels": LABELS, "filenames": ["a", "b", "c"]}))
    (inner / "batches.meta").write_bytes(pickle.dumps({"label_names": _cifar10_names()}))


def _cifar_binary(folder: Path) -> None:
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    raw = _pixels(32).transpose(0, 3, 1, 2).reshape(3, -1)
    (inner / "test_batch.bin").write_bytes(np.hstack([np.array(LABELS, np.uint8)[:, None], raw]).tobytes())
    (inner / "batches.meta.txt").write_text("\n".join(_cifar10_names()) + "\n\n")


def _cifar100(folder: Path) -> None:
    folder.mkdir(parents=True)
    raw = _pixels(32).transpose(0, 3, 1, 2).reshape(3, -1)
    both = np.array([[9, label] for label in LABELS], np.uint8)  # coarse, fine
    (folder / "test.bin").write_bytes(np.hstack([both, raw]).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(n.replace(" ", "_") for n in prompt_set("cifar100").names))


def _stl10(folder: Path) -> None:
    inner = folder / "stl10_binary"
    inner.mkdir(parents=True)
    (inner / "test_X.bin").write_bytes(_pixels(96).transpose(0, 3, 2, 1).tobytes())  # column by column
    (inner / "test_y.bin").write_bytes(bytes(label + 1 for label in LABELS))
    (inner / "class_names.txt").write_text("\n".join(prompt_set("stl10").names))


def _gtsrb(folder: Path) -> None:
    inner = folder / "GTSRB" / "Final_Test" / "Images"
    inner.mkdir(parents=True)
    for number, pixels in enumerate(_pixels(20)):
        Image.fromarray(pixels).save(inner / f"{number:05}.ppm")
    with (folder / "GT-final_test.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["Filename", "Width", "ClassId"])
        writer.writerows([f"{number:05}.ppm", 20, label] for number, label in enumerate(LABELS))


def _folders(folder: Path) -> None:
    names = _cifar10_names()
    for name in names:
        (folder / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "test" / name / "black.png")
    for number, (pixels, label) in enumerate(zip(_pixels(8), LABELS, strict=True)):
        Image.fromarray(pixels).save(folder / "test" / names[label] / f"{number}.png")


def _dataset(names: list[str]) -> object:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=names),
            "coarse": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    images = [Image.fromarray(pixels) for pixels in _pixels(8)]
    return datasets.Dataset.from_dict({"img": images, "label": LABELS, "coarse": [0, 1, 0]}, features=features)


def _saved(folder: Path) -> None:
    import datasets

    data = _dataset(_cifar10_names()[::-1])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(folder))


def _parquet(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    _dataset(_cifar10_names()[::-1]).to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("write", "name", "reverse"),
    [
        (_cifar_pickle, "cifar10", False), (_cifar_binary, "cifar10", False), (_cifar100, "cifar100", False),
        (_stl10, "stl10", False), (_gtsrb, "gtsrb", False), (_folders, "cifar10", False),
        (_saved, "cifar10", True), (_parquet, "cifar10", True),
    ],
)  # fmt: skip
def test_every_layout(write: Callable[[Path], None], name: str, reverse: bool, tmp_path: Path) -> None:
    write(tmp_path / "data")
    chosen = prompt_set(name)
    found = read_image_set(tmp_path / "data", len(chosen.names))
    places = chosen.places(found.names)
    seen = {}
    for index, label in enumerate(found.labels):
        image = found.open(index).convert("RGB")
        if (colour := image.getpixel((0, image.height - 1))) != (0, 0, 0):
            seen[colour] = places[label]
            assert image.getpixel((image.width - 1, 0)) == (0, 0, 0)  # neither turned nor mirrored
    labels = [len(chosen.names) - 1 - label for label in LABELS] if reverse else LABELS
    assert seen == dict(zip(COLOURS, labels, strict=True))


def test_eurosats_folders_lie_one_level_down(tmp_path: Path) -> None:
    for label in prompt_set("eurosat").labels:
        (tmp_path / "2750" / label[1]).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "2750" / label[1] / "a.jpg")
    assert len(read_image_set(tmp_path, 10).ids) == 10


def test_a_pickle_that_holds_code_is_not_opened(tmp_path: Path) -> None:
    _cifar_pickle(tmp_path)
    meta = next(tmp_path.rglob("batches.meta"))
    meta.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataFormatError, match=r"asks for os\.system"):
        read_image_set(tmp_path, 10)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "test_X.bin").write_bytes(bytes(100)), "100 bytes, no multiple of 27648"),
        (lambda folder: (folder / "test_y.bin").write_bytes(bytes([1, 2])), "3 images, 2 labels"),
        (lambda folder: (folder / "test_y.bin").write_bytes(bytes([0, 1, 2])), "3 images, 3 labels"),  # -1 is none
    ],
)
def test_damaged_files_are_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    _stl10(tmp_path)
    spoil(tmp_path / "stl10_binary")
    with pytest.raises(DataFormatError, match=message):
        read_image_set(tmp_path, 10)


def test_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="no images in a layout that is known"):
        read_image_set(tmp_path, 10)
    with pytest.raises(DataFormatError, match="is not a folder"):
        read_image_set(tmp_path / "nowhere", 10)


def test_reads_coco_instances(tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path) -> None:
    record = {
        "images": [{"id": 1, "file_name": "000.png"}, {"id": 2, "file_name": "001.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7}, {"id": 2, "image_id": 1, "category_id": 7}],
        "categories": [{"id": 7, "name": "cup"}, {"id": 8, "name": "umbrella"}],
    }
    file, processor = tmp_path / "instances.json", tower.load_processor(tiny_encoder_dir)
    file.write_text(json.dumps(record))
    found = read_set("world", file, ohd[1], processor)
    assert (found.objects, found.classes) == ([ImageObjects("000.png", ("cup",))], ["cup", "umbrella"])
    assert [prompts[1] for prompts in found.prompts] == ["a photo of a cup", "a photo of an umbrella"]
    file.write_text(json.dumps(record | {"annotations": []}))
    with pytest.raises(DataFormatError, match="no image with an object"):
        read_set("world", file, ohd[1], processor)


# --- the command


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["zero_shot.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "eval/zero_shot.py"), run_name="__main__")


def test_the_command_on_a_data_set(
    tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _folders(tmp_path / "data")
    given = ("--encoder", tiny_encoder_dir, "--set", "cifar10", "--data", tmp_path / "data", "--out", tmp_path / "out")
    _run(monkeypatch, *given)
    assert capsys.readouterr().out.startswith(f"zero-shot recognition, {tiny_encoder_dir}, ")  # as given, as pope.py
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert (record["n"], len(rows), record["settings"]) == (13, 13, {"kinds": 10, "prompts": 18})
    assert record["metrics"]["accuracy"]["value"] == pytest.approx(sum(row["correct"] for row in rows) / 13)


def test_an_unknown_encoder_is_said_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        _run(monkeypatch, "--encoder", "/wrong/path", "--set", "cifar10", "--data", tmp_path)
    assert "error: EncoderNotFound: there is no folder /wrong/path" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_split_without_labels_is_passed_over_or_refused(tmp_path: Path, form: str) -> None:
    """ImageNet's test split on the Hub has the label -1 everywhere, which would index the last class."""
    datasets = pytest.importorskip("datasets")
    labelled = _dataset(_cifar10_names())
    withheld = labelled.map(lambda row: {"label": -1})  # type: ignore[attr-defined]

    def save(folder: Path, splits: dict[str, Any]) -> Path:
        if form == "saved":
            datasets.DatasetDict(splits).save_to_disk(str(folder))
            return folder
        for split, data in splits.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
        return folder

    both = save(tmp_path / "both", {"test": withheld, "validation": labelled})
    assert read_image_set(both, 10).labels == LABELS
    with pytest.raises(DataFormatError, match="3 of 3 images have no label in 'label'"):
        read_image_set(save(tmp_path / "one", {"test": withheld}), 10)
