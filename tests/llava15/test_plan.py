"""What scripts/plan.py says: memory against measured steps, FLOPs against formulas, splits against their definition."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd.errors import LlavaOhdError, ModelFormatError
from llava_ohd.llava15 import plan_trace
from llava_ohd.llava15.mixture import draw
from llava_ohd.llava15.plan import CARDS, Choice, PlanConfig, Planner, cheapest, geometry, table
from llava_ohd.llava15.plan_check import Case, compare
from llava_ohd.llava15.plan_memory import RESERVE, Memory, Weights, Zero, memory, quantized_bytes
from llava_ohd.llava15.plan_time import GPUS, LLAVA_HOURS, MFU, hours
from llava_ohd.llava15.plan_trace import Step, Traced, traced
from llava_ohd.llava15.speed import needed_flops
from llava_ohd.llava15.ways import GEOMETRIES

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROOT = Path(__file__).parents[2]
ZERO = ROOT / "zero_configs"
TINY = GEOMETRIES["tiny"]
GIB = 2**30


def step(stage: str, layers: int = 3, **how: Any) -> Step:
    config = TINY.config()
    config.text_config.num_hidden_layers = layers
    return Step(config, stage, torch.float32, **{"checkpointing": False, "lora_r": TINY.lora_r} | how)


# --- memory against reality


def test_planned_memory_is_that_of_real_steps() -> None:
    """Activations and gradients alone, of 200 to 700 MB; benchmarks/results/plan has all stages and another size."""
    cases = [Case("eighth", "projector", 2, False), Case("eighth", "lora", 2, True), Case("eighth", "full", 2, False)]
    found = list(compare(cases))
    assert {one.case: one.error for one in found if abs(one.error) > 0.2} == {}
    assert {one.case: one.total_error for one in found if abs(one.total_error) > 0.1} == {}


def test_the_documented_errors_are_the_measured_ones() -> None:
    for name in ("eighth", "quarter"):
        measured = (ROOT / f"benchmarks/results/plan/{name}.md").read_text().strip()
        assert measured in (ROOT / "docs/training_plan.md").read_text()


# --- the trace


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_flops_are_those_counted_by_hand(stage: str) -> None:
    rows = draw(stage, 4, TINY.image_tokens)
    assert traced(step(stage), rows).flops == pytest.approx(needed_flops(TINY, stage, rows), rel=1e-9)


def test_flops_are_two_a_weight_and_token_and_pass() -> None:
    """Forward, and backward to inputs and to weights: 6 N T where every token trains and attention is small."""
    length = 40
    rows = [([5] * length, [5] * length)] * 3
    config = dataclasses.replace(TINY, width=512, heads=8, mlp=1376).config()
    traces = traced(Step(config, "full", torch.float32, checkpointing=False), rows)
    model = Step(config, "full").model()
    used = sum(w.numel() for name, w in model.named_parameters() if "layers." in name and "language_model" in name)
    used += model.lm_head.weight.numel()
    assert traces.flops == pytest.approx(6 * used * 3 * length, rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_layers_that_are_not_run_are_added(stage: str, checkpointing: bool) -> None:
    rows, asked = draw(stage, 3, TINY.image_tokens), step(stage, 7, checkpointing=checkpointing)
    whole, added = plan_trace._trace(asked, rows, 7), traced(asked, rows)
    assert added.flops == pytest.approx(whole.flops, rel=1e-9)
    assert added.peak == pytest.approx(whole.peak, rel=0.02)


def test_recomputation_takes_flops_and_gives_memory() -> None:
    rows = draw("lora", 4, TINY.image_tokens)
    kept, again = (traced(step("lora", 12, checkpointing=flag), rows) for flag in (False, True))
    assert again.peak < kept.peak / 2
    assert 1.2 * kept.flops < again.flops < 1.4 * kept.flops


def test_gradients_stay_only_where_nothing_takes_them() -> None:
    rows, trained = draw("full", 1, TINY.image_tokens), 0
    kept, gone = (traced(step("full", 40, keep_gradients=flag, checkpointing=True), rows) for flag in (True, False))
    trained = sum(w.nbytes for w in step("full", 40).model().parameters() if w.requires_grad)
    assert kept.late >= trained
    assert kept.peak > gone.peak


def test_a_split_head_keeps_its_logits() -> None:
    rows, words = [([5] * 2000, [5] * 2000)], 32_000
    asked = [step("lora", split=flag, checkpointing=True) for flag in (False, True)]
    for one in asked:
        one.config.text_config.vocab_size = words
    whole, split = (traced(one, rows) for one in asked)
    assert split.peak - whole.peak > 4 * words * 2000


def test_batches_of_text_only() -> None:
    rows = [([1, *range(3, 60)], [-100] * 30 + [7] * 28)] * 2
    assert traced(step("lora"), rows).peak > 0


def test_an_unfrozen_tower_costs_memory() -> None:
    rows = draw("lora", 2, TINY.image_tokens)
    assert traced(step("lora", tower=True), rows).early > traced(step("lora"), rows).early


# --- weights and splits


def test_weights_of_the_7b() -> None:
    config = geometry("7b", "openai/clip-vit-large-patch14-336")
    counts = {stage: Weights.of(Step(config, stage).model()).trained for stage in ("projector", "lora", "full")}
    assert counts == {"projector": 20_979_712, "lora": 340_795_392, "full": 6_759_395_328}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_layers_are_as_large_as_bitsandbytes_makes_them(bits: int) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    rows, columns = 512, 1024
    if bits == 4:
        layer = bnb.nn.Linear4bit(columns, rows, bias=False, compress_statistics=True, quant_type="nf4")
        layer = layer.to("cpu")
        state = layer.weight.quant_state
        stored = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    else:
        layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu")
        stored = layer.weight.nbytes + layer.weight.SCB.nbytes
    assert layer.weight.dtype in (torch.uint8, torch.int8)
    assert quantized_bytes(rows, columns, bits) == pytest.approx(stored, rel=1e-3)


STEP = Traced(early=5 * GIB, late=1 * GIB, flops=1.0)
WEIGHTS = Weights(7_000_000_000, 14e9, 7_000_000_000, 14e9)


def test_zero_files_are_read() -> None:
    zeros = [Zero.of(ZERO / f"{name}.json") for name in ("zero2", "zero2_offload", "zero3", "zero3_offload")]
    assert [zero.stage for zero in zeros] == [2, 2, 3, 3]
    assert [zero.offload_optimizer for zero in zeros] == [False, True, False, True]
    assert [zero.offload_weights for zero in zeros] == [False, False, False, True]


def of(name: str, ranks: int) -> Memory:
    return memory(WEIGHTS, Zero.of(ZERO / f"{name}.json"), ranks, STEP, 4096)


def test_what_each_split_splits() -> None:
    for name in ("zero2", "zero3"):
        assert of(name, 4).optimizer == 12 * 7e9 / 4 == 2 * of(name, 8).optimizer
    assert of("zero2", 8).weights == 14e9
    assert of("zero3", 8).weights == 14e9 / 8
    assert of("zero3", 8).gathered == 2e9  # stage3_max_live_parameters
    assert of("zero2_offload", 8).host == 16 * 7e9 / 8
    assert of("zero2_offload", 8).optimizer == 0
    assert of("zero3_offload", 8).weights == 0
    assert of("zero3_offload", 8).host == 16 * 7e9 / 8 + 14e9 / 8


def test_the_larger_moment_counts() -> None:
    one, many = of("zero2", 1), of("zero2", 64)
    assert one.update > one.gradients + one.activations
    assert one.total == one.weights + one.optimizer + one.update + RESERVE
    assert many.total == many.weights + many.optimizer + many.gradients + many.activations + RESERVE


def test_without_deepspeed_states_have_the_type_of_the_weight() -> None:
    traces = Traced(early=20 * GIB, late=16 * GIB, flops=1.0)
    single, many = (memory(WEIGHTS, Zero(), ranks, traces, 4096) for ranks in (1, 2))
    assert single.optimizer == 2 * 14e9
    assert single.gradients + single.activations == 20 * GIB  # the trace has the gradients already
    assert many.gradients == 2 * single.gradients


# --- time


def test_hours() -> None:
    assert hours(312e12 * 3600 * 8, 8, "A100", 0.5) == pytest.approx(2)
    assert all(gpu.peak > 50 and gpu.source for gpu in GPUS.values())
    with pytest.raises(LlavaOhdError, match="--gpu V100 is not known"):
        hours(1.0, 8, "V100", 0.5)


@pytest.mark.slow
def test_the_share_of_the_peak_is_what_llavas_hours_say() -> None:
    """From the 7B's hours; those of the 13B then follow within a quarter."""
    for published in LLAVA_HOURS:
        for size, named in published.hours.items():
            planner = Planner(PlanConfig(model=size, batch=[1]), ZERO)
            needed = planner._flops(published.stage) * published.rows
            if size == "7b":
                assert hours(needed, 8, "A100", 1.0) / named == pytest.approx(MFU[published.stage], abs=0.005)
            assert hours(needed, 8, "A100", MFU[published.stage]) == pytest.approx(named, rel=0.25)


# --- the table


def choice(stage: str, name: str, batch: int, gib: float) -> Choice:
    zero = Zero() if name == "none" else Zero.of(ZERO / f"{name}.json")
    return Choice(stage, zero, batch, Memory(gib * GIB - RESERVE, 0, 0, 0, 0, 0, 0), 1e12, 2.0)


def test_the_cheapest_that_fits() -> None:
    lines = [
        choice("lora", "zero2", 4, 30),
        choice("lora", "zero2", 16, 60),
        choice("lora", "none", 16, 20),
        choice("lora", "zero3", 16, 35),
        choice("full", "zero3_offload", 4, 22),
        choice("full", "zero3", 4, 50),
    ]
    chosen = cheapest(lines, 80, 8)
    assert (chosen["lora"].zero.name, chosen["lora"].batch) == ("zero2", 16)
    assert chosen["full"].zero.name == "zero3"
    assert cheapest(lines, 24, 8)["full"].zero.name == "zero3_offload"
    assert cheapest(lines, 40, 8)["lora"].batch == 4
    assert cheapest(lines, 10, 8) == {}
    shown = table(lines).splitlines()
    assert [line.split(" | ")[-3] for line in shown[2:]] == ["40 GB", "80 GB", "24 GB", "40 GB", "24 GB", "80 GB"]
    assert max(CARDS) == 80


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": ["all"]}, "--stages all"),
        ({"bits": 2}, "--bits 2"),
        ({"gpus": 0}, "--gpus 0"),
        ({"zero": ["zero4"]}, "zero4.json is not there"),
        ({"model": "70b"}, "--model 70b is neither"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LlavaOhdError, match=message):
        Planner(PlanConfig(**given), ZERO)


def test_a_model_too_flat_to_be_traced(tmp_path: Path) -> None:
    TINY.config().text_config.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 2')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelFormatError, match="2 layers; 3 are needed"):
        geometry(str(tmp_path), "openai/clip-vit-large-patch14-336")


def test_the_command(tmp_path: Path, tiny_encoder_dir: Path) -> None:
    TINY.config().text_config.save_pretrained(tmp_path)
    command = [sys.executable, str(ROOT / "scripts/plan.py"), "--model", str(tmp_path)]
    command += ["--vision_tower", str(tiny_encoder_dir), "--stages", "lora", "qlora", "--zero", "zero2", "zero3"]
    shown = subprocess.run([*command, "--batch", "2"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| lora", "zero2"],
        ["| lora", "zero3"],
        ["| qlora", "zero2"],
    ]
    assert (
        "lora: --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --deepspeed zero_configs/zero2.json"
        in shown
    )
