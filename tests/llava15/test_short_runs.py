"""Whole runs of a stage in one process: the feature cache and accumulated batches change no loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ModelFormatError
from llava_ohd.llava15 import feature_cache
from llava_ohd.llava15.train import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for number in range(6):
        Image.new("RGB", (32 + 9 * number, 40), (40 * number, 80, 200)).save(tmp_path / f"{number}.png")
        said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a red ball and {number} keys"}]
        rows.append({"id": number, "image": f"{number}.png", "conversations": said})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    asked = [{"from": "human", "value": "A key?"}, {"from": "gpt", "value": "No"}]
    (tmp_path / "mixed.json").write_text(json.dumps([*rows, {"id": "text", "conversations": asked}]))
    return tmp_path


def run(data: Path, out: str, language: Path, encoder: Path, *more: str) -> list[float]:
    stage = ["--tune_mm_mlp_adapter", "True", "--version", "plain", "--data_path", f"{data}/captions.json"]
    if "--lora_enable" in more:
        stage = ["--data_path", f"{data}/mixed.json", "--group_by_modality_length", "True", "--lora_r", "4"]
        stage += ["--pretrain_mm_mlp_adapter", "random"]
    flags = {"model_name_or_path": language, "vision_tower": encoder, "image_folder": data, "image_aspect_ratio": "pad"}
    flags |= {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": "1e-3", "save_strategy": "no"}
    flags |= {"output_dir": data / out, "model_max_length": 200}
    train([*stage, *(part for name, value in flags.items() for part in (f"--{name}", str(value))), *more])
    return [row["loss"] for row in json.loads((data / out / "curve.json").read_text())]


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_losses_are_those_without_cache(
    stage: str, data: Path, tiny_llama_dir: Path, tiny_encoder_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (tiny_llama_dir, tiny_encoder_dir)
    more = ("--lora_enable", "True") if stage == "lora" else ()
    cache = ("--feature_cache", str(data / "cache"))
    plain = run(data, "plain", *models, *more)
    assert run(data, "first", *models, *more, *cache) == pytest.approx(plain, rel=1e-6)
    assert "0 of 6 images are there; 6 of 16 x 32 float32" in capsys.readouterr().out
    if stage == "lora":
        return
    assert run(data, "again", *models, *more, *cache) == pytest.approx(plain, rel=1e-6)
    assert "6 of 6 images are there; 0 of 16" in capsys.readouterr().out


def test_accumulated_batches_give_the_losses_of_a_whole_one(
    data: Path, tiny_llama_dir: Path, tiny_encoder_dir: Path
) -> None:
    models = (tiny_llama_dir, tiny_encoder_dir)
    whole = run(data, "whole", *models)
    parts = run(data, "parts", *models, "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2")
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_cache_of_another_tower_is_refused(data: Path, tiny_llama_dir: Path, tiny_encoder_dir: Path) -> None:
    cache = ("--feature_cache", str(data / "cache"))
    run(data, "first", tiny_llama_dir, tiny_encoder_dir, *cache)
    clip = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    tower.write(clip, data / "other", files_from=tiny_encoder_dir, name="other", parents=[], config={})
    with pytest.raises(ModelFormatError, match=r"another tower or preprocessing: .*encoder"):
        run(data, "second", tiny_llama_dir, data / "other", *cache)


def test_a_cache_of_features_that_change_is_refused(tiny_llama_dir: Path, tiny_encoder_dir: Path) -> None:
    from llava_ohd.llava15.model import build

    encoder: Any = tower.check(tiny_encoder_dir)
    model: Any = build(tiny_llama_dir, encoder)
    with pytest.raises(DataFormatError, match="the tower trains"):
        feature_cache.cached(None, None, [], model, "pad", None, encoder)
