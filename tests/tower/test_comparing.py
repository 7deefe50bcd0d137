"""The report on two encoders: distances are right, equal encoders are exactly equal, and the verdict follows."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from llava_ohd import tower
from llava_ohd.errors import EncoderNotFound, ImageError
from llava_ohd.tower import verdicts
from llava_ohd.tower.__main__ import main
from llava_ohd.tower.drift import measure


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twenty pictures of one size and one that is not square."""
    generator = numpy.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    files = [tmp_path / "photos" / f"{n:02}.png" for n in range(20)] + [tmp_path / "photos" / "more" / "wide.JPG"]
    for file in files:
        shape = (30, 60, 3) if file.stem == "wide" else (40, 40, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=numpy.uint8)).save(file)
    return files


def changed(source: Path, destination: Path, change: Callable[[Any], Any]) -> Path:
    model = tower.load(source)
    with torch.no_grad():
        change(model)
    tower.write(model, destination, files_from=source, name=destination.name, parents=[], config={})
    return destination


# --- drift, against the formulas written out


def features(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, 7, width, generator=torch.Generator().manual_seed(seed)) + 3


def slow_cka(a: Tensor, b: Tensor) -> float:
    """Kornblith et al. 2019, eq. 3 with K = XX' and L = YY' centred by H."""
    a, b = a.flatten(0, 1).double(), b.flatten(0, 1).double()
    center = torch.eye(len(a), dtype=torch.float64) - 1 / len(a)
    k, m = center @ (a @ a.T) @ center, center @ (b @ b.T) @ center
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


@pytest.mark.parametrize("sizes", [[12], [1, 11], [5, 4, 3]])
def test_drift_is_that_of_the_formulas(sizes: list[int]) -> None:
    a = features(12, 6, 0)
    b = a + 0.5 * features(12, 6, 1)
    found = measure(zip(a.split(sizes), b.split(sizes), strict=True))
    flat_a, flat_b = a.flatten(0, 1).double(), b.flatten(0, 1).double()
    cosines = torch.nn.functional.cosine_similarity(flat_a, flat_b)
    assert (found.images, found.tokens) == (12, 84)
    assert found.cosine == pytest.approx(float(cosines.mean()), abs=1e-12)
    assert found.cka == pytest.approx(slow_cka(a, b), abs=1e-12)
    assert found.distance == pytest.approx(float((flat_b - flat_a).norm() / flat_a.norm()), abs=1e-12)
    assert list(found.percentiles) == [1, 5, 50, 95]
    expected = numpy.percentile(cosines.numpy(), list(found.percentiles), method="nearest")
    assert list(found.percentiles.values()) == pytest.approx(expected.tolist(), abs=1e-12)


def test_equal_features_are_exactly_equal() -> None:
    a = features(9, 6, 0)
    found = measure(zip(a.split(4), a.clone().split(4), strict=True))
    assert (found.cosine, found.distance, found.cka) == (1, 0, 1)
    assert set(found.percentiles.values()) == {1}


def test_what_each_number_sees() -> None:
    a = features(40, 6, 0)
    turned = a @ torch.linalg.qr(features(1, 6, 5)[0, :6])[0]
    longer, shifted, other = a * 2, a + 10, features(40, 6, 7)
    found = {name: measure([(a, b)]) for name, b in locals().items() if isinstance(b, Tensor)}
    assert found["turned"].cka == pytest.approx(1, abs=1e-6)
    assert found["turned"].cosine < 0.9
    assert found["longer"].cosine == pytest.approx(1, abs=1e-12)
    assert found["longer"].distance == pytest.approx(1, abs=1e-12)
    assert found["shifted"].cka == pytest.approx(1, abs=1e-6)
    assert found["other"].cka < 0.2


def test_a_large_common_part_does_not_spoil_the_cka() -> None:
    a, b = features(30, 4, 0), features(30, 4, 1)
    expected = measure([(a, b)]).cka
    far = measure(zip((a.double() + 1e6).split(7), (b.double() + 1e6).split(7), strict=True)).cka
    assert far == pytest.approx(expected, abs=1e-8)


def test_no_features() -> None:
    with pytest.raises(ValueError, match="no features"):
        measure([])


def test_thresholds_lie_between_rounding_and_training(photos: list[Path]) -> None:
    """What LLaVA itself does to the features, by computing in bfloat16, is a tenth of what `fits` allows."""
    folder = tower.resolve("world-openai")
    model = tower.load(folder).vision_model
    pixels = tower.process_images([tower.open_image(file) for file in photos], tower.load_processor(folder))
    with torch.no_grad():
        exact = model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        rounded = model.bfloat16()(pixels.bfloat16(), output_hidden_states=True).hidden_states[-2][:, 1:]
    found = measure([(exact, rounded)])
    assert 0 < found.distance < verdicts.DISTANCE / 5
    assert 1 - found.cosine < (1 - verdicts.MEAN_COSINE) / 25


# --- two encoders


def test_an_encoder_and_itself(tiny_encoder_dir: Path, photos: list[Path]) -> None:
    found = tower.compare(tiny_encoder_dir, tiny_encoder_dir, photos)
    assert found.drift is not None
    assert (found.drift.images, found.drift.tokens) == (21, 21 * 16)
    assert (found.drift.cosine, found.drift.distance, found.drift.cka) == (1, 0, 1)
    assert set(found.weights.values()) == {0}
    assert all(a == b for a, b in (found.geometry | found.preprocessing).values())
    assert found.verdict == "keep"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.verdict = "must"  # type: ignore[misc]


def test_weights_part_by_part(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    b = changed(tiny_encoder_dir, tmp_path / "b", lambda m: m.get_parameter("visual_projection.weight").mul_(1.5))
    found = tower.compare(tiny_encoder_dir, b)
    assert list(found.weights) == ["embeddings", "layer 1", "layer 2", "layer 3", *verdicts.parts()[1:]]
    assert {part for part, distance in found.weights.items() if distance} == {"visual_projection", "total"}
    assert found.weights["visual_projection"] == pytest.approx(0.5)
    state = tower.load(tiny_encoder_dir).state_dict()
    whole = [w.flatten() for name, w in state.items() if verdicts.part_of(name)]
    expected = 0.5 * state["visual_projection.weight"].norm() / torch.cat(whole).norm()
    assert found.weights["total"] == pytest.approx(float(expected), rel=1e-5)


def scale_layer(number: int, factor: float) -> Callable[[Any], Any]:
    return lambda model: model.get_parameter(f"vision_model.encoder.layers.{number}.mlp.fc2.weight").mul_(factor)


def spoil_text(model: Any) -> None:
    model.text_projection.weight.mul_(2)


@pytest.mark.parametrize(
    ("change", "layer", "without", "with_images"),
    [
        (spoil_text, -2, "keep", "keep"),
        (scale_layer(2, 3), -2, "keep", "keep"),  # the last layer, which LLaVA does not read
        (scale_layer(2, 3), -1, "unknown", "retrain"),
        (scale_layer(1, 1.001), -2, "unknown", "fits"),
        (scale_layer(1, 300), -2, "unknown", "retrain"),
        (scale_layer(0, 300), 0, "keep", "keep"),
    ],
)
def test_verdict(
    tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path], change: Any, layer: int, without: str, with_images: str
) -> None:
    b = changed(tiny_encoder_dir, tmp_path / "b", change)
    blind = tower.compare(tiny_encoder_dir, b, layer=layer)
    assert (blind.verdict, blind.drift) == (without, None)
    assert "no images" in blind.no_drift
    seeing = tower.compare(tiny_encoder_dir, b, photos, layer)
    assert seeing.verdict == with_images
    assert seeing.drift is not None
    assert (seeing.drift.distance == 0) == (with_images == "keep")


def test_drift_is_that_of_the_features_llava_reads(tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path]) -> None:
    b = changed(tiny_encoder_dir, tmp_path / "b", scale_layer(0, 50))
    processor = tower.load_processor(tiny_encoder_dir)
    pixels = tower.process_images([tower.open_image(file) for file in photos], processor)
    with torch.no_grad():
        tokens = [
            tower.load(folder).vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            for folder in (tiny_encoder_dir, b)
        ]
    expected, found = measure([(tokens[0], tokens[1])]), tower.compare(tiny_encoder_dir, b, photos).drift
    assert found is not None
    for name in ("images", "tokens", "cosine", "distance", "cka", "percentiles"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-6)


def test_other_preprocessing_alone_moves_the_features(
    tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path]
) -> None:
    b = Path(shutil.copytree(tiny_encoder_dir, tmp_path / "b"))
    (b / "ohd.json").unlink()
    record = json.loads((b / "preprocessor_config.json").read_text())
    (b / "preprocessor_config.json").write_text(json.dumps(record | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    found = tower.compare(tiny_encoder_dir, b, photos)
    assert {name for name, (left, right) in found.preprocessing.items() if left != right} == {"image_mean", "image_std"}
    assert found.drift is not None
    assert found.drift.distance > 0
    assert found.verdict in ("fits", "retrain")
    assert tower.compare(tiny_encoder_dir, b).verdict == "unknown"


def other_geometry(source: Path, destination: Path, **values: int) -> Path:
    """A random encoder whose vision tower differs; the preprocessing follows the image size."""
    from transformers import CLIPConfig, CLIPModel

    record = json.loads((source / "config.json").read_text())
    record["vision_config"] |= values
    files = Path(shutil.copytree(source, destination.with_name("files")))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    if side := values.get("image_size"):
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    preprocessor = json.loads((files / "preprocessor_config.json").read_text())
    (files / "preprocessor_config.json").write_text(json.dumps(preprocessor | sizes))
    model = CLIPModel(CLIPConfig.from_dict(record))
    tower.write(model, destination, files_from=files, name=destination.name, parents=[], config={})
    return destination


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patch_size": 16}, "patch_tokens 16 and 4"),
        ({"image_size": 64}, "patch_tokens 16 and 64"),
        ({"hidden_size": 64}, "hidden_size 32 and 64"),
    ],
)
def test_another_geometry(
    tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path], values: dict[str, int], words: str
) -> None:
    b = other_geometry(tiny_encoder_dir, tmp_path / "b", **values)
    found = tower.compare(tiny_encoder_dir, b, photos)
    assert (found.verdict, found.drift) == ("must", None)
    assert words in found.reason
    assert "token by token" in found.no_drift
    assert found.weights["embeddings"] is None
    json.dumps(found.record(), allow_nan=False)


def test_fewer_layers(tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path]) -> None:
    b = other_geometry(tiny_encoder_dir, tmp_path / "b", num_hidden_layers=2)
    found = tower.compare(tiny_encoder_dir, b, photos)
    assert (found.verdict, found.weights["layer 3"]) == ("retrain", None)


def test_wrong_arguments(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFound):
        tower.compare(tiny_encoder_dir, "nothing")
    for layer in (4, -5):
        with pytest.raises(ValueError, match=f"layer is {layer}; between -4 and 3"):
            tower.compare(tiny_encoder_dir, tiny_encoder_dir, layer=layer)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"x\.png"):
        tower.compare(tiny_encoder_dir, tiny_encoder_dir, [tmp_path / "x.png"])


# --- the command


def test_command(
    tiny_encoder_dir: Path, tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    b = changed(tiny_encoder_dir, tmp_path / "b", scale_layer(1, 300))
    tower.register("mine", b)
    main(["diff", str(tiny_encoder_dir), "mine", "--images", str(photos[0].parent), "--limit", "5"])
    shown = capsys.readouterr().out
    for words in (
        "verdict: retrain",
        "linear CKA",
        "images, tokens       5, 80",
        "patch_tokens",
        "image_mean",
        "layer 2",
    ):
        assert words in shown
    assert "layer_norm_eps" in shown
    main(["diff", str(tiny_encoder_dir), "mine", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert (record["verdict"], record["drift"], record["b"]["path"]) == ("unknown", None, str(b))


def test_images_are_spread_evenly(photos: list[Path], tmp_path: Path) -> None:
    from llava_ohd.tower.images import find_images

    (tmp_path / "photos" / "readme.txt").write_text("no image")
    folder = tmp_path / "photos"
    assert find_images([folder], 100) == sorted(photos)
    assert find_images([folder], 3) == [sorted(photos)[n] for n in (0, 7, 14)]
    assert find_images([photos[3], photos[1]], 9) == [photos[3], photos[1]]
    for places, limit in (([tmp_path / "none"], 5), ([tmp_path / "photos"], 0)):
        with pytest.raises(ImageError):
            find_images(places, limit)


@pytest.mark.parametrize("arguments", [["nosuch", "nosuch"], ["A", "B", "--images", "nowhere"]])
def test_command_says_what_is_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["diff", *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: EncoderNotFound: ")
