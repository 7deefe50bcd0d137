"""The table of the ladder, from drawn answers: differences from the stock model, corrected p-values, costs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_ohd.report import benchmarks, figures, ladder
from llava_ohd.report.comparison import compare, read_pairs
from tests.report.conftest import Demo, write_data, write_evaluations

TITLES = {"stock": "stock model", "swap": "swap only", "refit": "re-fit", "both": "both stages"}
NOTHING = {"seconds": 0.0, "ranks": 1, "trained": 0, "fitted": 0}
COSTS = {
    "stock": NOTHING,
    "swap": NOTHING,
    "refit": NOTHING | {"seconds": 12.4, "fitted": 1056},
    "both": NOTHING | {"seconds": None, "trained": 12_345},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Two ladders: `swap` answers as the stock model, `both` better; `refit` was not measured."""
    root = tmp_path_factory.mktemp("ladder")
    write_data(root / "data")
    for seed in (0, 1):
        for rung, side in (("stock", "stock"), ("both", "ours")):
            write_evaluations(root / "data", root / f"run{seed}/eval" / rung, side, seed)
        shutil.copytree(root / f"run{seed}/eval/stock", root / f"run{seed}/eval/swap")
    return Demo(root / "data", root)


def test_every_rung_is_compared_with_the_stock_model(measured: Demo) -> None:
    truth = benchmarks.read_truth(measured.data, "test")
    folders = [measured.evals / f"run{seed}" for seed in (0, 1)]
    record = ladder.summarise(folders, truth, TITLES, COSTS, 500)
    assert [row["rung"] for row in record["rungs"]] == ["stock", "swap", "both"]
    stock, swap, both = record["rungs"]
    assert stock["metrics"]["pope/f1_macro"]["difference"] is None
    assert all(metric["difference"]["value"] == 0 for metric in swap["metrics"].values())
    assert all(metric["p"] == 1 for metric in swap["metrics"].values())
    pairs = read_pairs([f / "eval/both" for f in folders], [f / "eval/stock" for f in folders], truth)
    expected = compare(pairs, resamples=500)["benchmarks"]
    for key, metric in both["metrics"].items():
        name = key.split("/", 1)
        assert metric["difference"] == expected[name[0]]["metrics"][name[1]]["difference"]
        assert len(metric["by_seed"]) == 2
    tested = [key for key in both["metrics"] if key != "chair/recall"]
    p_values = sorted(row["metrics"][key]["p"] for row in (swap, both) for key in tested)
    assert min(both["metrics"][key]["p_holm"] for key in tested) == pytest.approx(8 * p_values[0])
    assert both["metrics"]["chair/recall"]["p_holm"] is None
    assert record["statistics"]["p_holm"] == "Holm over 8 differences"


def test_table_and_figure_show_values_differences_and_costs(measured: Demo, tmp_path: Path) -> None:
    truth = benchmarks.read_truth(measured.data, "test")
    record = ladder.summarise([measured.evals / "run0"], truth, TITLES, COSTS, 500)
    text = ladder.markdown(record)
    both = record["rungs"][-1]["metrics"]["pope/f1_macro"]
    [line] = [row for row in text.splitlines() if row.startswith("| both stages") and "?" in row]
    assert line.endswith("| ? | 12,345 |")
    assert f"{100 * both['value']['value']:.1f} [" in line
    [line] = [row for row in text.splitlines() if row.startswith("| both stages") and "?" not in row]
    assert f"+{100 * both['difference']['value']:.1f} [" in line
    assert "| swap only | 0" not in text
    assert "+0.0 [+0.0, +0.0], p 1.000" in text
    assert "were not trained alike" not in text
    fitted = {"explained_held_out": 0.9123, "explained_before": -0.5, "images": 40}
    said = ladder.markdown(record | {"refit": fitted})
    assert "explains 91.2 % of the variance" in said
    assert "held out of 40 images; the new features as they are, −50.0 %." in said
    assert "were not trained alike: seed was 0, is 1." in ladder.markdown(record | {"differing": ["seed was 0, is 1"]})
    figures.estimates(ladder.drawn(record), ladder.PANELS, tmp_path / "ladder.svg")
    drawn = (tmp_path / "ladder.svg").read_text()
    assert all(title in drawn for title in (*ladder.PANELS.values(), "swap only"))


def _stage(folder: Path, shapes: tuple[tuple[int, ...], ...], runtime: float | None) -> Path:
    folder.mkdir()
    save_file({f"w{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}, folder / "w.safetensors")
    (folder / "ohd.json").write_text(json.dumps({"weights": {"w.safetensors": ""}, "config": {"world_size": 2}}))
    if runtime is not None:
        history = [{"loss": 1.0, "step": 1}, {"train_runtime": runtime, "step": 1}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def test_costs_are_those_of_the_folders(tmp_path: Path) -> None:
    refit = tmp_path / "refit"
    refit.mkdir()
    (refit / "refit.json").write_text(json.dumps({"seconds": 3.0, "fitted_numbers": 20}))
    first, second = _stage(tmp_path / "1", ((3, 4), (5,)), 10.0), _stage(tmp_path / "2", ((7,),), 30.0)
    found = ladder.costs(first / "w.safetensors", second, refit)
    assert found["swap"] == found["stock"] == NOTHING
    assert found["refit"] == NOTHING | {"seconds": 3.0, "fitted": 20}
    assert found["stage1"] == {"seconds": 10.0, "ranks": 2, "trained": 17, "fitted": 0}
    assert found["both"] == {"seconds": 40.0, "ranks": 2, "trained": 7, "fitted": 0}
    assert ladder.costs(_stage(tmp_path / "3", ((1,),), None), second, refit)["both"]["seconds"] is None
    assert set(ladder.costs(None, None, refit)) == {"stock", "swap", "refit"}
