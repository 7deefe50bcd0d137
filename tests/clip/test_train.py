"""Fine-tuning from folder to folder: it learns, it resumes with the same losses, it refuses what is broken."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip import accuracy as accuracy_module
from llava_ohd.clip import trainer as trainer_module
from llava_ohd.clip.accuracy import accuracy, score
from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.loss import LossConfig, clip_loss
from llava_ohd.clip.model_card import write_card
from llava_ohd.clip.train import FinetuneConfig, finetune
from llava_ohd.errors import (
    DataFormatError,
    EncoderFormatError,
    EncoderNotFound,
    ImageError,
    MissingDependency,
    OptionError,
    StageFailed,
    StorageError,
)
from llava_ohd.ohd_caps.readers import read_rows


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.fixture
def config(tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path) -> FinetuneConfig:
    file, folder = ohd
    return FinetuneConfig(
        encoder=str(tiny_encoder_dir),
        data=file,
        images=folder,
        out=tmp_path / "out",
        learning_rate=1e-3,
        max_steps=12,
        batch_size=8,
        warmup_steps=2,
        save_steps=4,
    )


def read_curve(out: Path) -> list[dict[str, float]]:
    rows = json.loads((out / "curve.json").read_text())
    assert isinstance(rows, list)
    return rows


def test_writes_an_encoder_that_has_learnt(config: FinetuneConfig, tiny_encoder_dir: Path) -> None:
    folder = finetune(replace(config, max_steps=60, save_steps=60))
    encoder = tower.check(folder)
    assert tower.resolve("ours") == folder
    record = json.loads((folder / "ohd.json").read_text())
    assert record["parents"] == [{"path": str(tiny_encoder_dir), "digest": tower.check(tiny_encoder_dir).digest}]
    assert record["config"]["learning_rate"] == 1e-3
    assert encoder.digest != tower.check(tiny_encoder_dir).digest
    curve = read_curve(config.out)
    assert [row["step"] for row in curve] == list(range(1, 61))
    assert {"loss", "contrastive", "margin1", "margin2", "learning_rate", "scale"} <= curve[0].keys()
    assert all(row["scale"] <= 100.001 for row in curve)
    assert sum(row["loss"] for row in curve[-5:]) < 0.8 * sum(row["loss"] for row in curve[:5])
    assert not list(config.out.glob("checkpoint-*"))

    rows = read_rows(config.data)
    images = Images(config.images, image_names(rows), tower.load_processor(folder))
    tokenizer = tower.load_tokenizer(folder)
    before, after = (
        accuracy(score(tower.load(path), tokenizer, images, rows).cosines) for path in (tiny_encoder_dir, folder)
    )
    assert after > before + 0.3


def test_first_loss_is_that_of_the_formula(config: FinetuneConfig, tiny_encoder_dir: Path) -> None:
    """One batch of all rows, so that the order does not matter: plain transformers calls give the same loss."""
    finetune(replace(config, batch_size=24, max_steps=1, loss="released"))
    rows = read_rows(config.data)
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    processor = tower.load_processor(tiny_encoder_dir)
    pixels = processor([tower.open_image(config.images / row.image) for row in rows], return_tensors="pt")
    texts = tokenizer([text for row in rows for text in row.captions], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        out = model(**texts, **pixels)
    texts_BKD = out.text_embeds.view(len(rows), 6, -1)
    valid = torch.ones(len(rows), 5, dtype=torch.bool)
    parts = clip_loss(
        out.image_embeds, texts_BKD[:, 0], texts_BKD[:, 1:], valid, model.logit_scale, LossConfig("released")
    )
    [row] = read_curve(config.out)
    assert row["loss"] == pytest.approx(parts.total.item(), rel=1e-4)
    assert row["margin2"] == pytest.approx(parts.margin2.item(), rel=1e-4)


@pytest.mark.parametrize("moment", ["training", "saving", "last save", "writing the encoder", "registering"])
def test_a_killed_run_goes_on_with_the_same_losses(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole = finetune(replace(config, out=tmp_path / "whole", register=False))

    with monkeypatch.context() as patch:
        _kill_at(moment, patch)
        with pytest.raises(Killed):
            finetune(config)
    steps: list[int] = []
    forward = trainer_module.OhdObjective.forward
    monkeypatch.setattr(
        trainer_module.OhdObjective, "forward", lambda *args, **kw: steps.append(1) or forward(*args, **kw)
    )
    resumed = finetune(config)
    assert (
        len(steps) == {"training": 8, "saving": 8, "last save": 4, "writing the encoder": 0, "registering": 0}[moment]
    )
    first, second = (read_curve(folder.parent) for folder in (whole, resumed))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert tower.check(whole).digest == tower.check(resumed).digest
    assert tower.resolve("ours") == resumed
    assert sorted(path.name for path in config.out.iterdir()) == ["curve.json", "encoder"]


def _kill_at(moment: str, patch: pytest.MonkeyPatch) -> None:
    def die(*args: Any, **kwargs: Any) -> None:
        raise Killed

    if moment == "writing the encoder":
        patch.setattr(tower, "write", die)
    elif moment == "registering":
        patch.setattr(tower, "register", die)
    elif moment == "training":
        step = trainer_module._Watch.on_step_end
        patch.setattr(
            trainer_module._Watch,
            "on_step_end",
            lambda self, args, state, control, **kw: (
                die() if state.global_step == 7 else step(self, args, state, control, **kw)
            ),
        )
    else:  # weights are there, the optimiser is half-written
        save = trainer_module.FineTuner._save_optimizer_and_scheduler

        def half(self: Any, folder: str) -> None:
            save(self, folder)
            if self.state.global_step == (8 if moment == "saving" else 12):
                file = Path(folder) / "optimizer.pt"
                file.write_bytes(file.read_bytes()[:1000])
                die()

        patch.setattr(trainer_module.FineTuner, "_save_optimizer_and_scheduler", half)


def test_a_truncated_or_foreign_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
        trainer_module.mark_complete(folder, "a")
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(bytes(60))
    assert trainer_module.last_checkpoint(tmp_path, "a") == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()
    assert trainer_module.last_checkpoint(tmp_path, "b") is None
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_not_repeated_unless_something_changed(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(config)
    calls: list[int] = []
    real = trainer_module.FineTuner.train
    monkeypatch.setattr(
        trainer_module.FineTuner, "train", lambda self, **kw: calls.append(self.args.seed) or real(self, **kw)
    )
    finetune(replace(config, name="other"))
    assert calls == []
    assert tower.resolve("other") == tower.resolve("ours")
    finetune(replace(config, seed=5, out=config.out / "fifth"))
    shutil.rmtree(config.out / "encoder")
    finetune(replace(config, seed=6))
    assert calls == [5, 6]


def test_an_encoder_made_with_other_settings_is_not_overwritten(config: FinetuneConfig) -> None:
    digest = tower.check(finetune(config)).digest
    with pytest.raises(EncoderFormatError, match=r"other settings: seed was 0, is 5\. Give another --out"):
        finetune(replace(config, seed=5))
    rows = config.data.read_text().splitlines(keepends=True)
    config.data.write_text("".join(rows[::-1]))
    with pytest.raises(EncoderFormatError, match="data_sha256 was"):
        finetune(config)
    assert tower.check(config.out / "encoder").digest == digest


def test_the_best_checkpoint_on_dev_is_taken(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev accuracies are made up: 0.1, 0.9, 0.5 at steps 4, 8 and 12; the weights of step 8 must come out."""
    kept: list[torch.Tensor] = []
    values = iter([0.1, 0.9, 0.5])

    def keep(model: Any, *args: Any) -> Any:
        kept.append(model.visual_projection.weight.detach().clone())
        return SimpleNamespace(cosines=[])

    monkeypatch.setattr(accuracy_module, "score", keep)
    monkeypatch.setattr(accuracy_module, "accuracy", lambda cosines: next(values))
    folder = finetune(replace(config, dev=config.data))
    assert torch.equal(tower.load(folder).visual_projection.weight, kept[1])
    assert [row.get("eval_accuracy") for row in read_curve(config.out)[3::4]] == [0.1, 0.9, 0.5]


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_last_step_takes_part_in_the_choice_and_a_kill_does_not_change_it(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """10 steps, a checkpoint every 4: dev is measured at 4, 8 and 10; killed when the encoder is to be written."""
    kept: list[torch.Tensor] = []

    def score_of(model: Any, *args: Any) -> Any:
        weight = model.visual_projection.weight.detach().clone()
        if not any(torch.equal(weight, other) for other in kept):
            kept.append(weight)
        return SimpleNamespace(cosines=[len(kept) > best and torch.equal(weight, kept[best])])

    monkeypatch.setattr(accuracy_module, "score", score_of)
    monkeypatch.setattr(accuracy_module, "accuracy", lambda cosines: 0.9 if cosines[0] else 0.1)
    chosen = replace(config, dev=config.data, max_steps=10)
    with monkeypatch.context() as patch:
        _kill_at("writing the encoder", patch)
        with pytest.raises(Killed):
            finetune(chosen)
    folder = finetune(chosen)
    assert len(kept) == 3
    assert torch.equal(tower.load(folder).visual_projection.weight, kept[best])
    assert [row["step"] for row in read_curve(config.out)] == list(range(1, 11))
    assert [row["step"] for row in read_curve(config.out) if "eval_accuracy" in row] == [4, 8, 10]


def test_parts_of_the_loss_are_those_of_all_accumulated_batches(config: FinetuneConfig) -> None:
    finetune(replace(config, batch_size=4, gradient_accumulation_steps=3, max_steps=4))
    for row in read_curve(config.out):
        assert row["loss"] == pytest.approx(row["contrastive"] + 0.1 * row["margin1"] + 0.1 * row["margin2"], rel=1e-5)


def test_record_and_card_have_the_loss_that_was_computed(config: FinetuneConfig) -> None:
    """And an encoder made when the record had None for it is not made again; its card says no less."""
    folder = finetune(replace(config, max_steps=1, loss="released", lambda1=0.7, register=False))
    expected = {"lambda1": 0.7, "lambda2": 0.2, "tau1": 5.0, "tau2": 5.0, "hardest": True}
    expected |= {"l2_sign": "below", "axis": "images", "mask": "zero"}
    record = json.loads((folder / "ohd.json").read_text())
    assert {key: record["config"][key] for key in expected} == expected
    assert record["name"] == config.out.name
    card = write_card(folder).read_text()
    assert card.startswith(f"# {config.out.name}\n")
    assert {f"| {key} | `{value}` |" for key, value in expected.items()} <= set(card.splitlines())

    record["config"] |= dict.fromkeys(expected.keys() - {"lambda1"})
    (folder / "ohd.json").write_text(json.dumps(record))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    same = replace(config, max_steps=1, loss="released", lambda1=0.7, lambda2=0.2, register=False)
    assert finetune(same) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert "| tau2 | `5.0` |" in write_card(folder).read_text()
    with pytest.raises(EncoderFormatError, match=r"other settings: lambda2 was 0\.2, is 0\.3"):
        finetune(replace(same, lambda2=0.3))


def test_another_number_of_processes_is_another_run(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EncoderFormatError, match="processes was None, is 2"):
        finetune(config)


def test_tensorboard_gets_the_curve(config: FinetuneConfig) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    finetune(replace(config, max_steps=4, dev=config.data, report_to="tensorboard"))
    [file] = config.out.glob("runs/*/events.out.*")
    found = {
        (event.step, value.tag): value.tensor.float_val
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    for row in read_curve(config.out):
        for name in ("loss", "contrastive", "margin1", "margin2", "scale"):
            assert list(found[int(row["step"]), f"train/{name}"]) == pytest.approx([row[name]])
    assert list(found[4, "eval/accuracy"]) == pytest.approx([read_curve(config.out)[-1]["eval_accuracy"]])


def test_a_tracker_that_is_unknown_or_not_installed_is_named(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match=r"--report_to tensorbord: one of none, all, .*tensorboard.* is expected"):
        finetune(replace(config, report_to="tensorbord"))
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["trackio"])
    with pytest.raises(MissingDependency, match="--report_to wandb: this tracker is not installed; here are none, all"):
        finetune(replace(config, report_to="wandb"))


def test_dev_accuracy_is_the_caption_accuracy(config: FinetuneConfig) -> None:
    folder = finetune(replace(config, dev=config.data, save_steps=12))
    rows = read_rows(config.data)
    images = Images(config.images, image_names(rows), tower.load_processor(folder))
    expected = accuracy(score(tower.load(folder), tower.load_tokenizer(folder), images, rows).cosines)
    assert read_curve(config.out)[-1]["eval_accuracy"] == pytest.approx(expected)


def test_the_scale_is_clamped(config: FinetuneConfig, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100) + 1)
    tower.write(model, tmp_path / "hot", files_from=tiny_encoder_dir, name="hot", parents=[], config={})
    folder = finetune(replace(config, encoder=str(tmp_path / "hot"), max_steps=1))
    assert tower.load(folder).logit_scale.item() == pytest.approx(math.log(100))


def test_a_diverging_run_is_stopped(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.clip.logit_scale * torch.nan}

    monkeypatch.setattr(trainer_module.OhdObjective, "forward", broken)
    with pytest.raises(StageFailed, match="the loss is nan at step 1"):
        finetune(config)


def test_the_stock_encoder_keeps_its_name(config: FinetuneConfig) -> None:
    with pytest.raises(EncoderFormatError, match="--name openai is the stock encoder"):
        finetune(replace(config, name="openai", register=True))


def test_broken_input_is_named(config: FinetuneConfig) -> None:
    with pytest.raises(DataFormatError, match=r"nothing\.jsonl does not exist"):
        finetune(replace(config, data=config.data.with_name("nothing.jsonl")))
    with pytest.raises(EncoderNotFound, match="unknown encoder 'typo'"):
        finetune(replace(config, encoder="typo"))
    empty = config.data.with_name("empty.jsonl")
    empty.write_text("")
    with pytest.raises(DataFormatError, match="is empty"):
        finetune(replace(config, data=empty))
    (config.images / "004.png").write_bytes((config.images / "004.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"004\.png"):
        finetune(config)


def test_a_full_disk_is_one_clear_error(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.FineTuner, "_save_optimizer_and_scheduler", full)
        with pytest.raises(StorageError, match="the disk is full"):
            finetune(config)
    assert not list(config.out.iterdir())
    finetune(config)
