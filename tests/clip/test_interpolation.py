"""Interpolated encoders: exact ends, linear between, provenance, refusals; the sweep and its command."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from llava_ohd import tower
from llava_ohd.clip.interpolation import Between, InterpolationConfig, sweep
from llava_ohd.clip.measuring import measuring
from llava_ohd.errors import EncoderFormatError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tuned(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """The tiny encoder with every weight moved, logit_scale by 1."""
    model = tower.load(tiny_encoder_dir)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
        model.logit_scale.fill_(tower.load(tiny_encoder_dir).logit_scale + 1)
    tower.write(model, tmp_path / "tuned", files_from=tiny_encoder_dir, name="tuned", parents=[], config={})
    return tmp_path / "tuned"


def test_the_ends_are_the_two_encoders(tiny_encoder_dir: Path, tuned: Path, tmp_path: Path) -> None:
    between = Between(tiny_encoder_dir, tuned)
    for alpha, end in ((1.0, tuned), (0.0, tiny_encoder_dir)):  # backwards: nothing may stay of the call before
        between.write(alpha, tmp_path / f"at{alpha}", "end")
        assert tower.check(tmp_path / f"at{alpha}").digest == tower.check(end).digest
        for name, weight in tower.load(end).state_dict().items():
            assert torch.equal(tower.load(tmp_path / f"at{alpha}").state_dict()[name], weight)


def test_every_weight_is_linear_in_alpha(tiny_encoder_dir: Path, tuned: Path) -> None:
    one, two = tower.load(tiny_encoder_dir).state_dict(), tower.load(tuned).state_dict()
    found = Between(tiny_encoder_dir, tuned).at(0.3).state_dict()
    assert found.keys() == one.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, 0.7 * one[name] + 0.3 * two[name])
        assert weight.dtype == torch.float32
    assert float(found["logit_scale"]) == pytest.approx(float(one["logit_scale"]) + 0.3, abs=1e-5)


def test_says_where_it_comes_from(tiny_encoder_dir: Path, tuned: Path, tmp_path: Path) -> None:
    Between(tiny_encoder_dir, tuned).write(0.25, tmp_path / "mixed", "mixed")
    record = json.loads((tmp_path / "mixed" / "ohd.json").read_text())
    assert [parent["digest"] for parent in record["parents"]] == [
        tower.check(path).digest for path in (tiny_encoder_dir, tuned)
    ]
    assert (record["name"], record["config"]["alpha"]) == ("mixed", 0.25)
    assert tower.load_tokenizer(tmp_path / "mixed")("a red ball")["input_ids"]


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_no_alpha_outside_of_the_two(tiny_encoder_dir: Path, tuned: Path, alpha: float) -> None:
    with pytest.raises(EncoderFormatError, match="from 0 to 1"):
        Between(tiny_encoder_dir, tuned).at(alpha)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_config", "num_hidden_layers", 1, r"text_model.encoder.layers.1.*not there"),
        ("vision_config", "intermediate_size", 48, r"mlp.fc1.bias is \[64\] and \[48\]"),
        ("vision_config", "hidden_act", "gelu", "vision_config.hidden_act is 'quick_gelu' and 'gelu'"),
        ("text_config", "num_attention_heads", 2, "text_config.num_attention_heads is 4 and 2"),
    ],
)
def test_another_architecture_is_refused(
    tiny_encoder_dir: Path, tmp_path: Path, part: str, key: str, value: object, message: str
) -> None:
    config = tower.load(tiny_encoder_dir).config
    setattr(getattr(config, part), key, value)
    tower.write(CLIPModel(config), tmp_path / "o", files_from=tiny_encoder_dir, name="o", parents=[], config={})
    with pytest.raises(EncoderFormatError, match=message):
        Between(tiny_encoder_dir, tmp_path / "o")


def test_the_command_sweeps_goes_on_and_registers(
    tiny_encoder_dir: Path,
    tuned: Path,
    ohd: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, images = ohd
    instances = tmp_path / "instances.json"
    record = {
        "images": [{"id": i, "file_name": f"{i:03}.png"} for i in range(6)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 3} for i in range(6)],
        "categories": [{"id": i, "name": kind} for i, kind in enumerate(("ball", "cup", "key"))],
    }
    instances.write_text(json.dumps(record))
    out, data = tmp_path / "out", ["--test", str(rows), "--images", str(images), "--set_data", str(instances)]
    ends = ["--stock", str(tiny_encoder_dir), "--tuned", str(tuned), "--out", str(out)]
    argv = ["interpolate.py", *ends, *data, "--alphas", "0", "0.5", "--alpha", "0.5", "--name", "wise"]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "scripts/interpolate.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 2
    found = json.loads((out / "curve.json").read_text())["rows"]
    assert [row["alpha"] for row in found] == [0, 0.5]
    assert (out / "curve.svg").read_text().count("<svg") == 1
    measured = measuring(tiny_encoder_dir, rows, images, "world", instances)(tower.load(tower.resolve("wise")))
    assert {"alpha": 0.5, **measured.record()} == found[1]  # what was registered is what was measured
    config = InterpolationConfig(str(tiny_encoder_dir), str(tuned), [0.5, 1.0], rows, images, "world", instances, out)
    old = json.loads((out / "curve.json").read_text())
    old["rows"][1]["shuffled"] = 0.123  # a row that is there is not measured again
    (out / "curve.json").write_text(json.dumps(old))
    assert [row["shuffled"] for row in sweep(config)["rows"]][1] == 0.123
    again = InterpolationConfig(
        str(tiny_encoder_dir), str(tiny_encoder_dir), [0.5], rows, images, "world", instances, out
    )
    assert [row["alpha"] for row in sweep(again)["rows"]] == [0.5]  # other encoders: nothing is taken up
    sweep(config)
    record["categories"] = record["categories"][::-1]  # a file of the same name
    instances.write_text(json.dumps(record))
    assert sweep(config)["rows"][0]["shuffled"] != 0.123
