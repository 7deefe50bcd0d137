"""Another encoder in a trained model: the fold of the re-fit is exact, nothing else changes, every record says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.answering.engine import load
from llava_ohd.answering.session import Session, ask
from llava_ohd.errors import DataFormatError, EncoderFormatError, ModelFormatError, StorageError
from llava_ohd.llava15 import model_dir, refit
from llava_ohd.llava15.convert import ConvertConfig, convert
from llava_ohd.llava15.model import build
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.llava15.stages import trainable
from llava_ohd.llava15.swapping import SwapConfig, swap
from llava_ohd.llava15.train import train
from llava_ohd.records import Question

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FLAGS: dict[str, Any] = {
    "image_aspect_ratio": "pad",
    "mm_vision_select_layer": -2,
    "model_max_length": 256,
    "tune_mm_mlp_adapter": False,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 noise images and a training file about them; a row of text beside."""
    folder = tmp_path_factory.mktemp("images")
    rows: list[dict[str, Any]] = []
    for number in range(40):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        said = [{"from": "human", "value": "<image>\nA ball?"}, {"from": "gpt", "value": "No"}]
        rows += [{"id": f"{number}-{again}", "image": f"{number}.png", "conversations": said} for again in range(2)]
    text = [{"from": "human", "value": "A key?"}, {"from": "gpt", "value": "No"}]
    rows.append({"id": "text", "conversations": text})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def other(tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, moved: what fine-tuning makes of it."""
    clip = tower.load(tiny_encoder_dir)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clip.vision_model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random), alpha=0.1)
    folder = tmp_path_factory.mktemp("encoders") / "other"
    tower.write(clip, folder, files_from=tiny_encoder_dir, name="other", parents=[], config={})
    return folder


def stored(stage: str, folder: Path, encoder: tower.Encoder, language: Path, images: Path) -> model_dir.ModelDir:
    """A model folder with a random projector and adapter, whose answers differ from image to image."""
    model = trainable(build(language, encoder), stage, {"r": 4, "lora_alpha": 8}, seed=3)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=random) * (3 if "projector" in name else 0.3))
    record = {
        "stage": stage,
        "encoder": {"path": str(encoder.path), "digest": encoder.digest, "name": encoder.name},
        "base": {"path": str(language), "sha256": model_dir.base_sha256(language)},
        "config": FLAGS | {"data_path": str(images / "rows.json"), "image_folder": str(images)},
    }
    model_dir.write(folder, model_dir.trained_weights(model), record, llava_config(language, encoder, FLAGS))
    return model_dir.read(folder)


@pytest.fixture(scope="module")
def stock(
    tiny_encoder_dir: Path, tiny_llama_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> model_dir.ModelDir:
    folder = tmp_path_factory.mktemp("models") / "llava-stock-lora"
    return stored("lora", folder, tower.check(tiny_encoder_dir), tiny_llama_dir, images)


def answers(model: model_dir.ModelDir, images: Path) -> dict[str, str]:
    questions = [Question(f"{n}-{p}", f"{n}.png", p) for n in range(8) for p in ("Describe the image.", "A ball?")]
    answerer, _ = load(model, images)
    return {answer.question_id: answer.text for answer in answerer.answer(questions, 12)}


def projected(encoder: Path, projector: dict[str, torch.Tensor], images: Path) -> torch.Tensor:
    """What the language model gets of eight images, by LLaVA's formula."""
    eyes = tower.OHDVisionTower.of(str(encoder))
    with torch.no_grad():
        x = torch.cat([eyes.encode(tower.open_image(images / f"{n}.png")) for n in range(8)])
        hidden = torch.nn.functional.linear(x, projector["mm_projector.0.weight"], projector["mm_projector.0.bias"])
        hidden = torch.nn.functional.gelu(hidden)
        return torch.nn.functional.linear(hidden, projector["mm_projector.2.weight"], projector["mm_projector.2.bias"])


def projector_of(model: model_dir.ModelDir) -> dict[str, torch.Tensor]:
    found = model_dir.stored_weights(model, "mm_projector.")
    return {name[name.index("mm_projector") :]: weight for name, weight in found.items()}


def features(tokens: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens // 15, 15, 6, generator=random, dtype=torch.float64)
    weight = torch.randn(5, 6, generator=random, dtype=torch.float64)
    return x, weight, torch.randn(5, generator=random, dtype=torch.float64), torch.randn(40, 15, 5, generator=random)


def test_the_fold_gives_what_map_and_projector_give_one_after_the_other() -> None:
    x, weight, bias, _ = features()
    random = torch.Generator().manual_seed(2)
    shapes = {"0.weight": (8, 5), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
    projector = {f"mm_projector.{n}": torch.randn(s, generator=random, dtype=torch.float64) for n, s in shapes.items()}
    affine = refit.Affine(weight, bias, 0, 1.0, 1.0, None)

    def run(p: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        first = features @ p["mm_projector.0.weight"].T + p["mm_projector.0.bias"]
        return torch.nn.functional.gelu(first) @ p["mm_projector.2.weight"].T + p["mm_projector.2.bias"]

    expected = run(projector, x @ weight.T + bias)
    assert torch.allclose(run(refit.fold(projector, affine), x), expected, rtol=0, atol=1e-10)
    single = {name: weight.float() for name, weight in projector.items()}
    folded = refit.fold(single, affine)
    assert folded["mm_projector.0.weight"].dtype == torch.float32
    error = (run(folded, x.float()) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-6


def test_the_fit_is_least_squares_over_the_tokens_that_are_not_held_out() -> None:
    x, weight, bias, noise = features()
    y = x @ weight.T + bias + 0.5 * noise
    affine = refit.fit((x[i : i + 2], y[i : i + 2]) for i in range(0, 40, 2))
    kept = torch.tensor([i for i in range(40) if i // 2 % 10 != 1])
    design = torch.cat([x[kept].flatten(0, 1), torch.ones(len(kept) * 15, 1)], 1)
    expected = torch.linalg.lstsq(design, y[kept].flatten(0, 1)).solution
    assert torch.allclose(affine.weight, expected[:-1].T, atol=1e-9)
    assert torch.allclose(affine.bias, expected[-1], atol=1e-9)
    left = y - (x @ affine.weight.T + affine.bias)
    out = torch.tensor([i for i in range(40) if i // 2 % 10 == 1])
    for rows, value in ((kept, affine.explained), (out, affine.explained_held_out)):
        tokens = y[rows].flatten(0, 1)
        assert value == pytest.approx(float(1 - left[rows].square().sum() / (tokens - tokens.mean(0)).square().sum()))
    assert (affine.tokens, affine.explained_before) == (540, None)
    assert 0.9 < affine.explained_held_out < 1


def test_features_that_lie_in_a_plane_are_mapped_too() -> None:
    x, _, _, _ = features()
    flat = torch.cat([x[..., :3], x[..., :3]], -1)
    affine = refit.fit((flat[i : i + 2], x[i : i + 2]) for i in range(0, 40, 2))
    mapped = flat @ affine.weight.T + affine.bias
    assert torch.allclose(mapped[..., :3], x[..., :3], atol=1e-9)
    assert affine.explained_before is not None
    assert affine.explained_before < affine.explained_held_out


def test_too_few_images_are_refused() -> None:
    x, _, _, y = features()
    with pytest.raises(DataFormatError, match="give more --images"):
        refit.fit([(x[:1, :5], y[:1, :5])])


def test_the_same_encoder_gives_the_same_answers(
    stock: model_dir.ModelDir, tiny_encoder_dir: Path, images: Path, tmp_path: Path
) -> None:
    expected = answers(stock, images)
    assert len(set(expected.values())) > 4  # else the test could not tell images apart
    made = swap(SwapConfig(stock.path, str(tiny_encoder_dir), tmp_path / "llava-same-lora"))
    for name, weight in model_dir.stored_weights(stock).items():
        assert torch.equal(model_dir.stored_weights(made)[name], weight)
    assert answers(made, images) == expected
    again = swap(SwapConfig(stock.path, str(tiny_encoder_dir), tmp_path / "llava-again-lora", "refit"))
    ours, theirs = (projected(tiny_encoder_dir, projector_of(model), images) for model in (again, stock))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    assert answers(again, images) == expected


def test_the_refit_brings_the_new_encoder_nearer_to_the_old(
    stock: model_dir.ModelDir, tiny_encoder_dir: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    kept = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-kept-lora"))
    fitted = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-fitted-lora", "refit"))
    target = projected(tiny_encoder_dir, projector_of(stock), images)
    near, far = ((projected(other, projector_of(model), images) - target).square().mean() for model in (fitted, kept))
    assert float(near) < 0.5 * float(far)
    measured = json.loads((fitted.path / "refit.json").read_text())
    assert (measured["images"], measured["tokens"]) == (40, 16 * 32)  # one batch of five is held out
    assert measured["fitted_numbers"] == 32 * 32 + 32
    assert 1 >= measured["explained_held_out"] > measured["explained_before"]
    assert answers(kept, images) != answers(stock, images)
    assert not (kept.path / "refit.json").exists()


def test_the_record_says_what_runs_and_what_it_was_trained_on(
    stock: model_dir.ModelDir, tiny_encoder_dir: Path, other: Path, images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-swap-lora"))
    record = json.loads((made.path / "ohd.json").read_text())
    assert record["kind"] == "llava-swapped"
    assert record["encoder"]["digest"] == tower.check(other).digest
    assert made.swapped["trained_on"] == {"name": "tiny", "digest": stock.encoder["digest"]}
    assert made.swapped["source"]["digest"] == stock.digest
    assert json.loads((made.path / "config.json").read_text())["mm_vision_tower"] == str(other)
    question = [Question("1", "1.png", "A ball?")]
    source = ask(Session(str(other), made.path, images, 4), question, tmp_path / "answers.jsonl")
    assert source["model"]["swapped"] == {"trained_on": made.swapped["trained_on"], "projector": "kept"}
    said = capsys.readouterr().out
    assert f"was trained on tiny ({stock.encoder['digest'][:12]}) and answers with" in said
    assert "swapped" not in ask(Session(str(tiny_encoder_dir), stock.path, images, 4), question, tmp_path / "b.jsonl")
    with pytest.raises(ModelFormatError, match="give the encoder that belongs to it"):
        ask(Session(str(tiny_encoder_dir), made.path, images, 4), question, tmp_path / "c.jsonl")
    for altered in (record | {"kind": "llava"}, {k: v for k, v in record.items() if k != "swapped"}):
        (made.path / "ohd.json").write_text(json.dumps(altered))
        with pytest.raises(ModelFormatError, match="kind"):
            model_dir.read(made.path)


def test_what_was_not_trained_for_this_is_refused(
    stock: model_dir.ModelDir, other: Path, tiny_encoder_dir: Path, tiny_llama_dir: Path, images: Path, tmp_path: Path
) -> None:
    made = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-swap-lora"))
    with pytest.raises(ModelFormatError, match="swapped already"):
        swap(SwapConfig(made.path, str(tiny_encoder_dir), tmp_path / "twice"))
    first = stored("projector", tmp_path / "first", tower.check(tiny_encoder_dir), tiny_llama_dir, images)
    with pytest.raises(ModelFormatError, match="run stage projector for this encoder"):
        swap(SwapConfig(stock.path, str(other), tmp_path / "wrong", str(first.path)))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/mm_projector.bin").write_bytes((first.path / "mm_projector.bin").read_bytes())
    with pytest.raises(ModelFormatError, match=r"no ohd\.json beside it"):
        swap(SwapConfig(stock.path, str(other), tmp_path / "wrong", str(tmp_path / "bare/mm_projector.bin")))
    swapped = swap(SwapConfig(first.path, str(other), tmp_path / "first-swapped"))
    flags = f"--model_name_or_path {tiny_llama_dir} --vision_tower {other} --data_path {images}/rows.json"
    flags += f" --image_folder {images} --pretrain_mm_mlp_adapter {swapped.path} --output_dir {tmp_path}/run"
    with pytest.raises(ModelFormatError, match="exchanged after training"):
        train(flags.split())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/work.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds something else"):
        swap(SwapConfig(stock.path, str(other), tmp_path / "full"))
    assert not (tmp_path / "wrong").exists()


def test_a_projector_of_stage_projector_takes_the_place_of_the_old(
    stock: model_dir.ModelDir, other: Path, tiny_llama_dir: Path, images: Path, tmp_path: Path
) -> None:
    first = stored("projector", tmp_path / "first", tower.check(other), tiny_llama_dir, images)
    made = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-stage1-lora", str(first.path)))
    own = projector_of(first)
    assert all(torch.equal(weight, own[name]) for name, weight in projector_of(made).items())
    adapter = {n: w for n, w in model_dir.stored_weights(stock).items() if ".lora_" in n}
    assert len(adapter) == 2 * 7 * 2
    assert all(torch.equal(model_dir.stored_weights(made)[name], weight) for name, weight in adapter.items())
    assert made.swapped["projector"] == "of stage projector"


def test_another_geometry_is_refused(stock: model_dir.ModelDir, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(tiny_encoder_dir)
    config.vision_config.num_hidden_layers = 4
    folder = tmp_path / "deep"
    tower.write(CLIPModel(config), folder, files_from=tiny_encoder_dir, name="deep", parents=[], config={})
    with pytest.raises(EncoderFormatError, match="layers 3"):
        swap(SwapConfig(stock.path, str(folder), tmp_path / "out"))


def test_a_whole_model_is_swapped_too(
    tiny_encoder_dir: Path, other: Path, tiny_llama_dir: Path, images: Path, tmp_path: Path
) -> None:
    whole = stored("full", tmp_path / "llava-full", tower.check(tiny_encoder_dir), tiny_llama_dir, images)
    made = swap(SwapConfig(whole.path, str(tiny_encoder_dir), tmp_path / "llava-same"))
    assert answers(made, images) == answers(whole, images)
    fitted = swap(SwapConfig(whole.path, str(other), tmp_path / "llava-fitted", "refit"))
    assert fitted.base["path"] == str(whole.path)
    assert (fitted.path / "tokenizer.model").read_bytes() == (tiny_llama_dir / "tokenizer.model").read_bytes()
    changed = [n for n, w in model_dir.stored_weights(whole).items() if not torch.equal(w, weight_of(fitted, n))]
    assert changed == ["model.mm_projector.0.bias", "model.mm_projector.0.weight"]


def weight_of(model: model_dir.ModelDir, name: str) -> torch.Tensor:
    return model_dir.stored_weights(model, name)[name]


def test_a_conversion_still_says_what_it_was_trained_on(
    stock: model_dir.ModelDir, other: Path, images: Path, tmp_path: Path
) -> None:
    made = swap(SwapConfig(stock.path, str(other), tmp_path / "llava-swap-lora"))
    convert(ConvertConfig(source=made.path, out=tmp_path / "llava-whole", to="llava"))
    again = model_dir.read(tmp_path / "llava-whole")
    assert (again.stage, again.encoder["digest"]) == ("full", tower.check(other).digest)
    assert again.swapped["trained_on"]["digest"] == stock.encoder["digest"]
    source = ask(Session(str(other), again.path, images, 4), [Question("1", "1.png", "A ball?")], tmp_path / "a.jsonl")
    assert source["model"]["swapped"]["trained_on"] == {"digest": stock.encoder["digest"]}
    convert(ConvertConfig(source=stock.path, out=tmp_path / "llava-stock", to="llava"))
    assert model_dir.read(tmp_path / "llava-stock").swapped == {}
