"""What each stage trains, in one process: the flags, the weights, the checkpoints, and what stops a run."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from llava_ohd import tower
from llava_ohd.answering.engine import load
from llava_ohd.errors import LlavaOhdError, MissingDependency, ModelFormatError, OptionError, StageFailed
from llava_ohd.llava15 import model_dir, trainer
from llava_ohd.llava15.arguments import flags, parse
from llava_ohd.llava15.model import build, language_model_folder
from llava_ohd.llava15.quantization import Quantization
from llava_ohd.llava15.stages import trainable, what_trains
from llava_ohd.llava15.train import train
from llava_ohd.records import Question
from tests.llava15.conftest import CHECKOUT, STAGES, losses
from tests.llava15.test_ranks import poisoned

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"}
BASE = "--model_name_or_path lm --vision_tower ours --data_path rows.json --image_folder images --output_dir out"


@pytest.fixture(scope="module")
def encoder(tiny_encoder_dir: Path) -> tower.Encoder:
    return tower.check(tiny_encoder_dir)


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: w for file in sorted(folder.glob("*.safetensors")) for name, w in load_file(file).items()}


@pytest.mark.parametrize(
    ("given", "stage"),
    [
        ("--tune_mm_mlp_adapter True", "projector"),
        ("--tune_mm_mlp_adapter True --bits 8", "projector"),
        ("--lora_enable True", "lora"),
        ("--lora_enable True --bits 4", "qlora"),
        ("", "full"),
        ("--unfreeze_mm_vision_tower True --mm_vision_tower_lr 2e-6", "full"),
    ],
)
def test_flags_name_the_stage(given: str, stage: str) -> None:
    parsed = parse(shlex.split(f"{BASE} --use_cpu True {given}"), "")
    assert parsed[2].stage == stage
    assert flags(*parsed)["bits"] == parsed[2].bits


ZERO3 = f"--deepspeed {CHECKOUT}/zero_configs/zero3.json"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--tune_mm_mlp_adapter True --lora_enable True", "exclude each other.*neither for full"),
        ("--bits 4", "quantised weights cannot train; give --lora_enable True"),
        (f"--lora_enable True --bits 4 {ZERO3}", "ZeRO-3 exclude each other.*zero2.json"),
        ("--lora_enable True --bits 3", "--bits 3: only 16 or 4 or 8"),
        ("--lora_enable True --bits 4 --quant_type int4", "only nf4 or fp4"),
        ("--freeze_backbone True", "give --tune_mm_mlp_adapter True"),
        ("--tune_mm_mlp_adapter True --freeze_mm_mlp_adapter True", "nothing to train"),
        ("--lora_enable True --freeze_mm_mlp_adapter True", "random projector; give --pretrain_mm_mlp_adapter"),
        ("--lora_enable True --mm_vision_tower_lr 1e-5", "no effect on a frozen tower; add --unfreeze"),
    ],
)
def test_flags_that_contradict_each_other(given: str, message: str) -> None:
    with pytest.raises(LlavaOhdError, match=message):
        parse(shlex.split(f"{BASE} --use_cpu True {given}"), "")


def test_what_full_training_trains(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = trainable(build(tiny_llama_dir, encoder), "full")
    lines = "\n".join(what_trains(model))
    assert "tower: 32,480 weights, frozen" in lines
    assert "projector: 2,112 weights train" in lines
    assert "language model: " in lines
    frozen = trainable(build(tiny_llama_dir, encoder), "full", projector=False)
    assert "projector: 2,112 weights, frozen" in what_trains(frozen)


def test_the_tower_trains_as_far_as_it_is_read(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    """With everything free, exactly what `trainable` freezes gets no gradient."""
    model = build(tiny_llama_dir, encoder).requires_grad_(True)
    ids = torch.tensor([[1, *[-200] * 16, 5, 6]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids.clamp(min=-100), pixel_values=pixels).loss.backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    trainable(model, "full", tower=True)
    free = {name for name, weight in model.named_parameters() if weight.requires_grad}
    biases = {name for name in free if name.endswith("k_proj.bias")}  # softmax takes them away; rounding remains
    assert free - reached <= biases
    assert reached <= free
    assert any("vision_tower" in name for name in free)
    assert not any("layers.2." in name or "post_layernorm" in name for name in free if "vision_tower" in name)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_is_the_language_model_alone(bits: int, encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = build(tiny_llama_dir, encoder, quantization=Quantization(bits))
    adapted = trainable(model, "qlora", LORA)
    packed = {name for name, weight in adapted.named_parameters() if not weight.is_floating_point()}
    assert len(packed) == 14  # two layers, seven modules
    assert all("language_model.layers" in name for name in packed)
    assert f"(layers in {bits} bits)" in "\n".join(what_trains(adapted))
    ids = torch.tensor([[1, *[-200] * 16, 5, 6]])
    adapted(input_ids=ids, labels=ids.clamp(min=-100), pixel_values=torch.zeros(1, 3, 32, 32)).loss.backward()
    grads = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert grads == {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(grads) == 28 + 4


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"pip install 'llava_ohd\[quant\]'"):
        Quantization(4).config(torch.float32)


@pytest.mark.parametrize("stage", STAGES)
def test_every_checkpoint_answers(stage: str, trained: dict[str, Path], training_data: Path) -> None:
    for folder in (trained[stage], *sorted(trained[stage].glob("checkpoint-*"))):
        answerer, encoder = load(model_dir.read(folder), training_data)
        assert [a.question_id for a in answerer.answer([Question("q", "05.png", "Is there a box?")], 3)] == ["q"]
        assert encoder.digest == model_dir.read(folder).encoder["digest"]
    assert len(losses(trained[stage])) == 12
    assert losses(trained[stage])[-1] < losses(trained[stage])[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_equal(
    stage: str, trained: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copytree(trained[stage] / "checkpoint-8", tmp_path / stage / "checkpoint-8")
    train(command(stage, tmp_path / stage))
    assert losses(tmp_path / stage) == losses(trained[stage])
    ours, theirs = all_weights(tmp_path / stage), all_weights(trained[stage])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@pytest.mark.parametrize("stage", ["lora", "qlora"])
def test_merged_is_adapter(stage: str, trained: dict[str, Path], encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    folder = model_dir.read(trained[stage])
    merged = build(tiny_llama_dir, encoder)
    model_dir.load_trained(merged, folder)
    beside = build(tiny_llama_dir, encoder)
    model_dir.load_projector(beside, projector_of(folder.path), folder.path)
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_llama_dir), folder.path)
    beside.model.language_model.layers = adapted.base_model.model.model.layers
    ids = torch.tensor([[1, *[-200] * 16, 5, 6]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (m.eval()(input_ids=ids, pixel_values=pixels).logits for m in (merged, beside))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def projector_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("base_model.model.model."): weight
        for name, weight in load_file(folder / "non_lora_trainables.safetensors").items()
    }


def test_full_has_llavas_names_and_the_language_models_files(trained: dict[str, Path], tiny_llama_dir: Path) -> None:
    weights = load_file(trained["full"] / "model.safetensors")
    base = load_file(tiny_llama_dir / "model.safetensors")
    projector = {f"model.mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert weights.keys() == base.keys() | projector
    moved = [name for name in base if not torch.equal(base[name], weights[name])]
    assert len(moved) == len(base)
    assert (trained["full"] / "tokenizer.model").read_bytes() == (tiny_llama_dir / "tokenizer.model").read_bytes()
    config = json.loads((trained["full"] / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("llava_llama", "float32")
    with pytest.raises(ModelFormatError, match="is a LLaVA model already"):
        language_model_folder(str(trained["full"]))


def test_a_large_model_is_written_in_shards(
    trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llava_ohd.llava15.model_dir import writing

    monkeypatch.setattr(writing, "_SHARD", 50_000)
    weights = load_file(trained["full"] / "model.safetensors")
    record = json.loads((trained["full"] / "ohd.json").read_text())
    model_dir.write(tmp_path, weights, record, json.loads((trained["full"] / "config.json").read_text()))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == weights.keys()
    assert len(set(index.values())) > 2
    ours, theirs = (
        build(model_dir.base_of(f), model_dir.encoder_of(f)) for f in map(model_dir.read, (tmp_path, trained["full"]))
    )
    for model, folder in ((ours, tmp_path), (theirs, trained["full"])):
        model_dir.load_trained(model, model_dir.read(folder))
    assert all(torch.equal(w, theirs.get_parameter(name)) for name, w in ours.named_parameters())


def test_a_trained_tower_is_an_encoder_inside(
    trained: dict[str, Path], encoder: tower.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_dir.read(trained["unfrozen"])
    own = model_dir.encoder_of(folder)
    assert own.path == trained["unfrozen"] / "encoder"
    assert own.digest == folder.encoder["digest"] != encoder.digest
    before, after = tower.load(encoder.path).vision_model, tower.load(own.path).vision_model
    same = {name for name, weight in before.named_parameters() if torch.equal(weight, after.get_parameter(name))}
    assert same
    assert all("layers.2." in name or "post_layernorm" in name for name in same)
    config = json.loads((folder.path / "config.json").read_text())
    assert (config["mm_vision_tower"], config["unfreeze_mm_vision_tower"]) == (str(own.path), True)
    assert tower.check_llava_checkpoint(folder.path) is None  # the original code will use the weights inside
    monkeypatch.setenv("LLAVA_OHD_HOME", str(trained["unfrozen"].parent / "home"))
    assert tower.resolve("unfrozen") == own.path
    assert tower.model_for("unfrozen") == folder.path
    shutil.copytree(folder.path, tmp_path / "elsewhere")
    assert model_dir.encoder_of(model_dir.read(tmp_path / "elsewhere")).path == tmp_path / "elsewhere/encoder"


def test_lora_with_a_tower_and_a_given_projector(
    trained: dict[str, Path], command: Callable[..., list[str]], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    start = ["--pretrain_mm_mlp_adapter", str(trained["projector"]), "--freeze_mm_mlp_adapter", "True"]
    more = ["--unfreeze_mm_vision_tower", "True", "--max_steps", "2", "--warmup_steps", "0"]
    train(command("lora", tmp_path / "llava-lora", *start, *more))
    stored = projector_of(tmp_path / "llava-lora")
    for name, weight in load_file(trained["projector"] / "mm_projector.safetensors").items():
        assert torch.equal(stored[name.removeprefix("model.")], weight)
    assert len([name for name in stored if name.startswith("vision_tower.vision_tower.vision_model.")]) == 55
    assert tower.check_llava_checkpoint(tmp_path / "llava-lora", tiny_llama_dir) is None
    load(model_dir.read(tmp_path / "llava-lora"), tmp_path)


def test_a_projector_of_another_layer_is_refused(
    trained: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    start = ["--pretrain_mm_mlp_adapter", str(trained["projector"]), "--mm_vision_select_layer", "-1"]
    with pytest.raises(ModelFormatError, match=r"was trained on layer -2 .*, --mm_vision_select_layer is -1"):
        train(command("lora", tmp_path / "other", *start))


def test_another_attention_or_type_of_features_is_another_run(
    trained: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    for more, name in (
        (["--attn_implementation", "flash_attention_2"], "attn_implementation"),
        (["--feature_cache", str(tmp_path / "cache"), "--feature_cache_dtype", "bfloat16"], "feature_cache_dtype"),
        (["--dataloader_drop_last", "True"], "dataloader_drop_last"),
    ):
        with pytest.raises(ModelFormatError, match=f"made by another run: {name} was"):
            train(command("projector", trained["projector"], *more))


def test_what_is_wrong_with_data_and_trackers_is_said_before_a_model_is_built(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_ohd.llava15.model.build", lambda *_, **__: pytest.fail("a model was built"))
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball"}]
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"id": 1, "image": "01.png", "conversations": said}]))
    with pytest.raises(StageFailed, match="template plain drops the question"):
        train(command("lora", tmp_path / "audited", "--version", "plain", "--data_path", str(rows)))
    with pytest.raises(OptionError, match="--report_to nothing: one of none, all, "):
        train(command("lora", tmp_path / "tracked", "--report_to", "nothing"))


def test_each_part_has_its_own_rate(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Adam's first step moves a weight by its rate."""
    rates = {"--learning_rate": "1e-3", "--mm_projector_lr": "1e-4", "--mm_vision_tower_lr": "1e-5"}
    more = [part for pair in rates.items() for part in pair]
    folders = [tmp_path / "one", tmp_path / "two"]
    for steps, folder in enumerate(folders, 1):
        schedule = ["--max_steps", str(steps), "--warmup_steps", "0", "--lr_scheduler_type", "constant"]
        train(command("unfrozen", folder, *more, *schedule))
    first, second = (all_weights(folder) for folder in folders)
    for part, rate in (("embed_tokens", 1e-3), ("mm_projector", 1e-4), ("patch_embedding", 1e-5)):
        names = [name for name in first if part in name]
        moved = max((second[name] - first[name]).abs().max().item() for name in names)
        assert 0.5 * rate < moved < 1.5 * rate, part


def test_without_deepspeed_what_trains_is_not_rounded_to_bfloat16(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A step of 1e-5 is less than half of what bfloat16 tells apart, for most weights of a projector."""
    schedule = ["--warmup_steps", "0", "--lr_scheduler_type", "constant", "--max_steps"]
    for stage, part in (("projector", "mm_projector.2.weight"), ("unfrozen", "patch_embedding.weight")):
        stored = []
        for steps in ("1", "2"):
            folder = tmp_path / f"{stage}{steps}"
            train(command(stage, folder, "--bf16", "True", "--learning_rate", "1e-5", *schedule, steps))
            stored += [weight for name, weight in all_weights(folder).items() if name.endswith(part)]
        first, second = stored
        assert (first != second).float().mean() > 0.9, stage


def test_gradient_checkpointing_changes_no_loss(
    trained: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    train(command("unfrozen", tmp_path / "less", "--gradient_checkpointing", "True"))
    assert losses(tmp_path / "less") == pytest.approx(losses(trained["unfrozen"]), abs=1e-6)


def test_a_kill_while_saving_loses_that_checkpoint_alone(
    trained: dict[str, Path],
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Killed(BaseException):
        """Nothing in the code catches it, as nothing catches SIGKILL."""

    def mark(folder: Path, fingerprint: str) -> None:
        if folder.name == "checkpoint-8":
            raise Killed
        real(folder, fingerprint)

    real = trainer.mark_complete
    run = command("full", tmp_path / "full", "--save_total_limit", "1")
    monkeypatch.setattr(trainer, "mark_complete", mark)
    with pytest.raises(Killed):
        train(run)
    monkeypatch.setattr(trainer, "mark_complete", real)
    capsys.readouterr()
    train(run)
    said = capsys.readouterr().out
    assert "checkpoint-8 is half-written: passed over" in said
    assert f"going on from {tmp_path / 'full/checkpoint-4'}" in said
    assert losses(tmp_path / "full") == losses(trained["full"])


def test_a_run_stopped_behind_its_last_step_makes_none_more(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command("projector", tmp_path / "run", "--max_steps", "8")  # an epoch has 6
    train(run)
    before = losses(tmp_path / "run")
    (tmp_path / "run/ohd.json").unlink()
    capsys.readouterr()
    train(run)
    assert f"going on from {tmp_path / 'run/checkpoint-8'}" in capsys.readouterr().out
    assert losses(tmp_path / "run") == before
    assert len(before) == 8


def test_full_training_of_a_model_whose_head_is_its_embedding(
    command: Callable[..., list[str]], encoder: tower.Encoder, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(tiny_llama_dir, tied)
    weights = load_file(tied / "model.safetensors")
    weights.pop("lm_head.weight", None)
    save_file(weights, tied / "model.safetensors", {"format": "pt"})
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    train(command("full", tmp_path / "run", "--max_steps", "2", "--model_name_or_path", str(tied)))
    folder = model_dir.read(tmp_path / "run")
    model: Any = build(model_dir.base_of(folder), encoder)
    model_dir.load_trained(model, folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not torch.equal(model.lm_head.weight.float(), weights["model.embed_tokens.weight"].float())


def test_nan_stops_and_names_the_rows(
    command: Callable[..., list[str]], training_data: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    rows = json.loads((training_data / "questions.json").read_text())
    rows[10]["conversations"][0]["value"] += " ☃"
    more = ["--gradient_accumulation_steps", "3", *poisoned(tmp_path, tiny_llama_dir, rows)]
    with pytest.raises(StageFailed, match=r"the loss is nan at step \d, rank 0, rows .*\b11\b"):
        train(command("projector", tmp_path / "out", "--version", "v1", *more))
    found = json.loads((tmp_path / "out/nonfinite_loss_rank0.json").read_text())
    assert {"row": 11, "id": "row-10"} in found["rows"]
    assert len(found["rows"]) == 4


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    weights = torch.nn.ParameterDict({"good": torch.zeros(2), "bad": torch.tensor([float("nan")])})
    written: list[Path] = []
    args = SimpleNamespace(should_save=True, output_dir=tmp_path)
    state = SimpleNamespace(global_step=3)
    fake: Any = SimpleNamespace(model=weights, args=args, state=state, _write=lambda *given: written.append(given))
    with pytest.raises(StageFailed, match="bad and 0 other weights hold NaN or Inf after step 3"):
        trainer.LlavaTrainer.save_model(fake)
    assert not written
