"""What trains and how fast: frozen weights stay, LoRA is merged and resumes, rates are what they should be, chunks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip import trainer as trainer_module
from llava_ohd.clip.batching import OhdData, image_names
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.loss import LossConfig
from llava_ohd.clip.parameters import freeze, group_rates, what_trains
from llava_ohd.clip.train import FinetuneConfig, finetune
from llava_ohd.clip.trainer import OhdObjective
from llava_ohd.ohd_caps.readers import read_rows


@pytest.fixture
def config(tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path) -> FinetuneConfig:
    steps: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 4, "batch_size": 8, "warmup_steps": 0, "save_steps": 2}
    file, folder = ohd
    return FinetuneConfig(encoder=str(tiny_encoder_dir), data=file, images=folder, out=tmp_path / "out", **steps)


def changed(before: Path, after: Path) -> set[str]:
    old, new = tower.load(before).state_dict(), tower.load(after).state_dict()
    assert old.keys() == new.keys()
    return {name for name, weight in new.items() if not torch.equal(weight, old[name])}


def test_locked_image_tuning_moves_the_text_tower_only(
    config: FinetuneConfig, tiny_encoder_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finetune(replace(config, freeze=["vision", "visual_projection"]))
    assert tower.check(folder).digest == tower.check(tiny_encoder_dir).digest
    parts = {name.split(".")[0] for name in changed(tiny_encoder_dir, folder)}
    assert parts == {"text_model", "text_projection", "logit_scale"}
    printed = capsys.readouterr().out
    assert "vision: 32,480 are frozen\n" in printed
    assert "visual_projection: 1,024 are frozen\n" in printed
    assert "logit_scale: 1 weights train\n" in printed


def test_last_layers_and_what_follows_them_train(config: FinetuneConfig, tiny_encoder_dir: Path) -> None:
    folder = finetune(replace(config, train_layers=1, freeze=["projections", "logit_scale"]))
    moved = changed(tiny_encoder_dir, folder)
    beginnings = {".".join(name.split(".")[: 4 if ".layers." in name else 2]) for name in moved}
    assert beginnings == {
        "vision_model.encoder.layers.2",
        "vision_model.post_layernorm",
        "text_model.encoder.layers.1",
        "text_model.final_layer_norm",
    }


def test_lora_is_merged_into_a_plain_encoder_and_resumes(
    config: FinetuneConfig, tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, lora_rank=2, freeze=["text"])
    whole = finetune(replace(config, out=tmp_path / "whole"))
    linear = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection"}
    for name in changed(tiny_encoder_dir, whole) - {"logit_scale"}:
        assert name.split(".")[-2] in linear
        assert name.endswith(".weight")
        assert not name.startswith("text_model.")
    old, new = tower.load(tiny_encoder_dir), tower.load(whole)
    moved = new.visual_projection.weight - old.visual_projection.weight
    assert torch.linalg.matrix_rank(moved.double(), rtol=1e-3) == 2

    class Killed(BaseException):
        pass

    step = trainer_module._Watch.on_step_end

    def die(self: Any, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step == 3:
            raise Killed
        step(self, args, state, control, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module._Watch, "on_step_end", die)
        with pytest.raises(Killed):
            finetune(config)
    resumed = finetune(config)
    assert changed(whole, resumed) == set()
    curves = [json.loads((folder.parent / "curve.json").read_text()) for folder in (whole, resumed)]
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]


def test_rates_by_tower_and_layer(tiny_encoder_dir: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    freeze(model, ["text_projection"])
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {"vision": 1.0, "text": 10.0, "other": 100.0}
    groups = group_rates(model, {"visual_projection.weight"}, 0.1, rates, 0.5)
    found = {names[id(weight)]: group for group in groups for weight in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(names) - 1
    for name, rate in {
        "logit_scale": 100,
        "visual_projection.weight": 1,
        "vision_model.post_layernorm.weight": 1,
        "vision_model.encoder.layers.2.mlp.fc1.weight": 0.5,
        "vision_model.encoder.layers.0.mlp.fc1.weight": 0.125,
        "vision_model.embeddings.class_embedding": 0.0625,
        "vision_model.pre_layrnorm.bias": 0.0625,
        "text_model.final_layer_norm.weight": 10,
        "text_model.encoder.layers.0.mlp.fc1.weight": 2.5,
        "text_model.embeddings.token_embedding.weight": 1.25,
    }.items():
        assert found[name]["lr"] == rate, name
        assert found[name]["weight_decay"] == (0.1 if name == "visual_projection.weight" else 0.0)
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)
    assert "text_projection: 1,024 are frozen" in what_trains(model)


@pytest.mark.parametrize("chunk_size", [3, 8, 100])
@pytest.mark.parametrize("neg_scope", ["own", "all"])
def test_chunks_have_the_gradients_of_the_whole_batch(
    tiny_encoder_dir: Path, ohd: tuple[Path, Path], chunk_size: int, neg_scope: Any
) -> None:
    rows = read_rows(ohd[0])
    tokenizer, processor = tower.load_tokenizer(tiny_encoder_dir), tower.load_processor(tiny_encoder_dir)
    images = Images(ohd[1], image_names(rows), processor)
    found = []
    for chunk in (None, chunk_size):
        model = tower.load(tiny_encoder_dir).train()
        objective = OhdObjective(model, LossConfig(neg_scope=neg_scope), chunk)
        batch = OhdData(rows, images, tokenizer, chunk_size=chunk).collate(range(8))
        if chunk:
            assert len(batch["captions"]) == -(-8 // chunk)
        parts = objective(**batch)
        parts["loss"].backward()
        found.append([parts["loss"].detach(), *(weight.grad for weight in model.parameters())])
    largest = max(float(gradient.abs().max()) for gradient in found[0][1:])
    for whole, cut in zip(*found, strict=True):  # a bias of the keys has a gradient of rounding errors only
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6 * largest)


def test_a_chunked_run_has_the_curve_of_a_whole_one(config: FinetuneConfig, tmp_path: Path) -> None:
    curves = []
    for out, chunk in (("whole", None), ("chunks", 3)):
        folder = finetune(replace(config, out=tmp_path / out, chunk_size=chunk, max_steps=2))
        curves.append([row["loss"] for row in json.loads((folder.parent / "curve.json").read_text())])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
