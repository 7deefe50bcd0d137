"""A LoRA merged here gives the features of peft's own merge; other kinds of adapters are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # in peft 0.21

Same = Callable[[Path, Any], None]
PLAIN = {"target_modules": ["q_proj", "v_proj", "fc1"], "r": 4, "lora_alpha": 12}


def adapt(model: Any, folder: Path, **config: Any) -> Any:
    """Puts a random adapter on the model, saves it, and returns what peft merges."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(PLAIN | config)))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def edit(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 3, r"layers\.0\..*q_proj": 7}},
        {"target_modules": ["patch_embedding", "visual_projection"]},
        {"modules_to_save": ["visual_projection", "post_layernorm"]},
        {"target_modules": r"vision_model\.encoder\.layers\.1\..*(q_proj|fc2)", "init_lora_weights": "gaussian"},
    ],
)
def test_merge_equals_peft(lively: Any, lively_dir: Path, tmp_path: Path, assert_same: Same, config: Any) -> None:
    merged = adapt(lively, tmp_path / "lora", **config)
    encoder = tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
    assert_same(tmp_path / "out", merged)
    assert encoder.digest != tower.check(lively_dir).digest
    record = json.loads((tmp_path / "out" / "ohd.json").read_text())
    assert record["parents"] == [{"path": str(lively_dir), "digest": tower.check(lively_dir).digest}]
    assert record["config"]["imported"] == "LoRA"
    assert "adapter_model.safetensors" in record["config"]["sha256"]


@pytest.mark.parametrize(
    "patterns",
    [
        {"alpha_pattern": {r"vision_model\.encoder\.layers\.0\..*q_proj": 7}},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {r"layers\.0\.mlp\.fc1": 3}},
    ],
)
def test_patterns_that_versions_of_peft_read_differently(
    lively: Any, lively_dir: Path, tmp_path: Path, assert_same: Same, patterns: dict[str, Any]
) -> None:
    merged = adapt(lively, tmp_path / "lora", **patterns)
    if "peft_version" in json.loads((tmp_path / "lora" / "adapter_config.json").read_text()):
        tower.import_encoder(tmp_path / "lora", tmp_path / "known", base=lively_dir)
        assert_same(tmp_path / "known", merged)
        edit(tmp_path / "lora", peft_version=None)
    with pytest.raises(EncoderFormatError, match=r"alpha of .*(q_proj|fc1) is 12 as older .* and (7|3) as newer"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "unknown", base=lively_dir)


def test_base_named_by_the_adapter(lively: Any, lively_dir: Path, tmp_path: Path, assert_same: Same) -> None:
    merged = adapt(lively, tmp_path / "lora")
    edit(tmp_path / "lora", base_model_name_or_path=str(lively_dir))
    tower.import_encoder(tmp_path / "lora", tmp_path / "out")
    assert_same(tmp_path / "out", merged)
    edit(tmp_path / "lora", base_model_name_or_path=None)
    with pytest.raises(EncoderFormatError, match=r"is an adapter; .* --base NAME_OR_PATH"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out")
    edit(tmp_path / "lora", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(EncoderNotFound, match="gone"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out")


def test_another_base_than_the_adapter_names(
    lively: Any, lively_dir: Path, tiny_encoder_dir: Path, tmp_path: Path
) -> None:
    adapt(lively, tmp_path / "lora")
    edit(tmp_path / "lora", base_model_name_or_path=str(tiny_encoder_dir))
    with pytest.raises(EncoderFormatError, match=rf"trained on {tiny_encoder_dir}, whose weights differ .*--base"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
    copy = shutil.copytree(lively_dir, tmp_path / "copy")
    for named in (str(copy), str(tmp_path / "gone"), "someone/clip"):
        edit(tmp_path / "lora", base_model_name_or_path=named)
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
        record = json.loads((tmp_path / "out" / "ohd.json").read_text())["config"]
        assert record["base_named_by_adapter"] == named


def test_adapter_on_the_vision_tower_alone(lively: Any, lively_dir: Path, tmp_path: Path, assert_same: Same) -> None:
    from transformers import CLIPVisionModel

    merged = adapt(CLIPVisionModel.from_pretrained(lively_dir), tmp_path / "lora")
    own = merged.vision_model if hasattr(merged, "vision_model") else merged
    lively.vision_model.load_state_dict(own.state_dict())
    tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
    assert_same(tmp_path / "out", lively)
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    if not any("vision_model" in name for name in names):
        edit(tmp_path / "lora", auto_mapping=None)
        with pytest.raises(EncoderFormatError, match="names layers without their tower"):
            tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)


def test_merged_weights_stay_float32_on_a_half_base(lively: Any, lively_dir: Path, tmp_path: Path) -> None:
    """Rounding to half would lose most of a small change."""
    half = tmp_path / "half"
    tower.write(lively.half(), half, files_from=lively_dir, name="half", parents=[], config={})
    merged = adapt(tower.load(half), tmp_path / "lora")
    tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=half)
    for name, weight in tower.load(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(weight, merged.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"invented_next_year": 3}, "invented_next_year = 3"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ],
)
def test_other_kinds_are_refused(lively: Any, lively_dir: Path, tmp_path: Path, config: Any, message: str) -> None:
    adapt(lively, tmp_path / "lora")
    edit(tmp_path / "lora", **config)
    with pytest.raises(EncoderFormatError, match=rf"{message}.*merge_and_unload"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(min(w)), "only one of lora_A and lora_B"),
        (lambda w: w.update({min(w): torch.zeros(4, 31)}), "the base's weight is"),
        (
            lambda w: w.update({"base_model.model.model.layers.0.q_proj.lora_A.weight": torch.zeros(4, 4)}),
            "another model",
        ),
        (lambda w: w.update({"base_model.model.logit_scale": torch.zeros(())}), "which a plain LoRA does not have"),
        (lambda w: w[min(w)].fill_(float("nan")), "NaN"),
        (lambda w: [w.update({n.replace("layers.1.", "layers.9."): w.pop(n)}) for n in list(w)], "does not have"),
        (lambda w: [w.pop(n) for n in list(w)], "holds no lora_A"),
    ],
)
def test_faulty_adapters(lively: Any, lively_dir: Path, tmp_path: Path, change: Any, message: str) -> None:
    adapt(lively, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    change(weights)
    save_file(weights, file)
    with pytest.raises(EncoderFormatError, match=message):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
    assert not (tmp_path / "out").exists()


def test_adapter_without_weights(lively: Any, lively_dir: Path, tmp_path: Path) -> None:
    adapt(lively, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(EncoderFormatError, match=r"has no adapter_model\.safetensors"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
    (tmp_path / "lora" / "adapter_config.json").write_text("{")
    with pytest.raises(EncoderFormatError, match="damaged adapter"):
        tower.import_encoder(tmp_path / "lora", tmp_path / "out", base=lively_dir)
