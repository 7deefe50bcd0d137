"""The ablation: which losses a plan holds, that finished runs are kept, and the numbers of its table."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ohd import tower
from llava_ohd.clip import ablation
from llava_ohd.clip.ablation import AblationConfig, run, variants
from llava_ohd.clip.config import FinetuneConfig, loss_config
from llava_ohd.report.ablation import markdown, summarise

ROOT = Path(__file__).parents[2]


def _loss(name: str, plan: str = "all") -> dict[str, object]:
    [variant] = [found for found in variants(AblationConfig(plan=plan)) if found.name == name]  # type: ignore[arg-type]
    return loss_config(replace(FinetuneConfig(), **variant.changes)).chosen


def test_terms_and_signs_are_those_that_their_names_say() -> None:
    found = variants(AblationConfig())
    assert len(found) == len({variant.name for variant in found}) == 12
    for mode, weight, margin in (("paper", 0.1, 2.0), ("released", 0.2, 5.0)):
        assert _loss(f"{mode}: L0")["lambda1"] == _loss(f"{mode}: L0")["lambda2"] == 0
        assert (_loss(f"{mode}: L0 + L1")["lambda1"], _loss(f"{mode}: L0 + L1")["lambda2"]) == (weight, 0)
        for sign in ("above", "below"):
            one, both = _loss(f"{mode}: L0 + L2 {sign}"), _loss(f"{mode}: L0 + L1 + L2 {sign}")
            assert (one["lambda1"], one["lambda2"], both["lambda1"], both["lambda2"]) == (0, weight, weight, weight)
            assert {one["l2_sign"], both["l2_sign"]} == {sign}
            assert (one["mode"], one["tau2"]) == (mode, margin)


def test_the_grid_has_both_signs_of_every_margin_and_weight() -> None:
    config = AblationConfig(plan="grid", taus=[1.0, 2.0], lambdas=[0.1, 0.5, 1.0])
    found = variants(config)
    assert len(found) == 1 + 2 * 2 * 3  # and the reference
    losses = {
        tuple(_loss_of(variant)[key] for key in ("l2_sign", "tau1", "tau2", "lambda1", "lambda2"))
        for variant in found[1:]
    }
    assert losses == {(s, t, t, w, w) for s in ("above", "below") for t in (1.0, 2.0) for w in (0.1, 0.5, 1.0)}


def _loss_of(variant: ablation.Variant) -> dict[str, object]:
    return loss_config(replace(FinetuneConfig(), **variant.changes)).chosen


@pytest.fixture
def config(tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path) -> AblationConfig:
    rows, images = ohd
    instances = tmp_path / "instances.json"
    record = {
        "images": [{"id": i, "file_name": f"{i:03}.png"} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(4)],
        "categories": [{"id": i, "name": kind} for i, kind in enumerate(("ball", "cup"))],
    }
    instances.write_text(json.dumps(record))
    return AblationConfig(
        str(tiny_encoder_dir), rows, rows, instances, images, tmp_path / "out", "grid", [0, 1], [2.0], [0.1],
        max_steps=1, batch_size=4, negatives=2, warmup_steps=0,
    )  # fmt: skip


def test_finished_runs_are_kept(config: AblationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "variants", lambda c, real=variants: real(c)[:2])
    reports: list[int] = []
    first = run(replace(config, seeds=[0]), lambda rows: reports.append(len(rows)))
    assert reports == [2, 3]
    trained: list[int] = []
    monkeypatch.setattr(ablation, "finetune", lambda c, real=ablation.finetune: trained.append(c.seed) or real(c))
    both = run(config, lambda rows: None)
    assert (trained, both[:3]) == ([1, 1], first)
    assert [row["seed"] for row in both] == [None, 0, 0, 1, 1]
    assert both[1]["first"]["loss"] == pytest.approx(both[1]["first"]["contrastive"])  # L_0 alone
    total = both[2]["first"]
    weighted = total["contrastive"] + 0.1 * (total["margin1"] + total["margin2"])
    assert total["loss"] == pytest.approx(weighted, rel=1e-5)
    assert run(replace(config, seeds=[0], max_steps=2), lambda rows: None)[0] == first[0]
    assert trained[2:] == [0, 0]  # another training is none of these


def test_the_command_writes_table_plot_and_numbers(
    config: AblationConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ablate.py", "--plan", "grid", "--seeds", "0", "--taus", "2", "--lambdas", "0.1"]
    for name in (
        "encoder",
        "data",
        "test",
        "instances",
        "images",
        "out",
        "max_steps",
        "batch_size",
        "negatives",
        "warmup_steps",
    ):
        argv += [f"--{name}", str(getattr(config, name))]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "scripts/ablate.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert (config.out / "table.md").read_text() in shown
    record = json.loads((config.out / "ablation.json").read_text())
    assert [row["name"] for row in record["summary"]][:2] == ["stock", "paper: L0"]
    assert len(record["runs"]) == 4
    assert "<svg" in (config.out / "ablation.svg").read_text()
    assert tower.check(next((config.out / "runs").glob("*/encoder"))).digest


def _runs(name: str, values: list[float]) -> list[dict[str, object]]:
    parts = {"contrastive": 1.0, "margin1": 0.2, "margin2": 0.9}
    rest = {"changes": {}, "n": 10, "shuffled": 0.0, "zero_shot": 0.9, "first": parts, "last": parts}
    return [{"variant": name, "seed": seed, "accuracy": value, **rest} for seed, value in enumerate(values)]


def test_differences_are_paired_over_seeds() -> None:
    stock = {
        "variant": "stock",
        "seed": None,
        "changes": {},
        "n": 10,
        "accuracy": 0.1,
        "shuffled": 0.0,
        "zero_shot": 1.0,
    }
    rows = [stock, *_runs("a", [0.40, 0.60, 0.50]), *_runs("b", [0.43, 0.62, 0.52])]
    summary = summarise(rows)
    assert summary[0]["accuracy"] == {"value": 0.1, "low": None, "high": None, "values": [0.1]}
    accuracy, difference = summary[2]["accuracy"], summary[2]["difference"]
    assert difference["value"] == pytest.approx(0.07 / 3)
    half = 4.302653 * (0.0001 / 3) ** 0.5 / 3**0.5  # t(2) at 0.975; variance of 0.03, 0.02, 0.02
    assert (difference["low"], difference["high"]) == pytest.approx((0.07 / 3 - half, 0.07 / 3 + half), rel=1e-5)
    assert accuracy["high"] - accuracy["low"] > 10 * (difference["high"] - difference["low"])
    tied = summarise([stock, *_runs("a", [0.4, 0.6]), *_runs("b", [0.4, 0.6])])
    assert "| a | 50.0 [−77.1, 177.1] |  |" in markdown(tied)
    assert "| b | 50.0 [−77.1, 177.1] | +0.0 [+0.0, +0.0] |" in markdown(tied)
    assert "| b | 52.3 [28.7, 75.9] | +2.3 [+0.9, +3.8] | 90.0 [90.0, 90.0] | 0.0 | 1.00, 0.20, 0.90 |" in markdown(
        summary
    )
