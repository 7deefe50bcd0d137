"""Settings from the command line: all kinds of flags are read, and values that no training can have are refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from llava_ohd import tower
from llava_ohd.clip import ablation
from llava_ohd.clip.ablation import AblationConfig
from llava_ohd.clip.config import FREEZABLE, FinetuneConfig, check, loss_config
from llava_ohd.clip.model_card import write_card
from llava_ohd.clip.parameters import add_lora, freeze
from llava_ohd.clip.train import finetune
from llava_ohd.errors import DataFormatError, OptionError
from llava_ohd.ohd_caps.planning import BuildConfig


def parsed(kind: type, line: str) -> Any:
    [config] = HfArgumentParser([kind]).parse_args_into_dataclasses(line.split())  # type: ignore[list-item]
    return config


def test_every_kind_of_flag_goes_through_the_parser() -> None:
    line = "--freeze vision visual_projection --l2_sign below --axis images --mask zero --hardest no --lambda1 0.5"
    config = parsed(FinetuneConfig, line + " --loss released --train_layers 2 --no_register --dev dev.jsonl")
    check(config)
    assert config.freeze == ["vision", "visual_projection"]
    assert (config.hardest, config.train_layers, config.register, config.dev) == (False, 2, False, Path("dev.jsonl"))
    chosen = loss_config(config).chosen
    expected = {"mode": "released", "l2_sign": "below", "axis": "images", "mask": "zero", "lambda1": 0.5, "tau1": 5.0}
    assert expected.items() <= chosen.items()
    plan = parsed(AblationConfig, "--seeds 3 4 --taus 1 2.5 --negatives -1")
    assert (plan.seeds, plan.taus, plan.negatives) == ([3, 4], [1.0, 2.5], -1)


def test_every_part_that_can_be_frozen_has_weights(tiny_encoder_dir: Path) -> None:
    check(replace(FinetuneConfig(), freeze=list(FREEZABLE)))
    for part in FREEZABLE:
        model = tower.load(tiny_encoder_dir)
        freeze(model, [part])
        assert not all(weight.requires_grad for weight in model.parameters()), part


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--freeze vison", "--freeze vison: some of vision, text"),
        ("--max_steps 0", "--max_steps 0: at least 1, or -1"),
        ("--max_steps -2", "--max_steps -2: at least 1, or -1"),
        ("--epochs 0", "--epochs 0.0: a number above 0"),
        ("--lambda1 -0.1", "--lambda1 -0.1: a number of at least 0"),
        ("--lambda2 nan", "--lambda2 nan: a number of at least 0"),
        ("--tau1 inf", "--tau1 inf: a finite number"),
        ("--lora_alpha 0", "--lora_alpha 0: a number of at least 1"),
        ("--lora_rank -3", "--lora_rank -3: a number of at least 0"),
        ("--layer_decay 0", "--layer_decay 0.0: a factor above 0 and at most 1"),
        ("--layer_decay 1.5", "--layer_decay 1.5: a factor above 0 and at most 1"),
        ("--train_layers -1", "--train_layers -1: a number of at least 0"),
        ("--batch_size 0", "--batch_size 0: a number of at least 1"),
        ("--negatives -1", "--negatives -1: a number of at least 0"),
        ("--learning_rate nan", "--learning_rate nan: a number above 0"),
        ("--seed -1", "--seed -1: a number from 0 to"),
    ],
)
def test_a_setting_that_no_training_can_have_is_refused_at_once(line: str, message: str) -> None:
    """Before anything is read: the data do not exist."""
    with pytest.raises(OptionError, match=f"^{message}.* is expected; give that, or "):
        finetune(replace(parsed(FinetuneConfig, line), data=Path("nowhere.jsonl")))


@pytest.mark.parametrize(
    "line", ["--max_steps 0", "--batch_size 0", "--negatives -2", "--lambdas -1", "--learning_rate 0", "--seeds -4"]
)
def test_a_plan_that_no_ablation_can_have_is_refused_at_once(line: str) -> None:
    name, value = line.split()
    with pytest.raises(OptionError, match=rf"^{name} {value}(\.0)?: .* is expected"):
        ablation.run(replace(parsed(AblationConfig, line), plan="grid", encoder="nowhere"), lambda rows: None)


def test_all_negatives_of_an_ablation_are_all_of_a_training() -> None:
    [variant, *_] = ablation.variants(AblationConfig())
    for given, expected in ((-1, None), (0, 0), (7, 7)):
        assert ablation._training(AblationConfig(negatives=given), variant, 0, Path("out")).negatives == expected


def test_what_only_data_and_encoder_know(tiny_encoder_dir: Path, ohd: tuple[Path, Path], tmp_path: Path) -> None:
    """5 negatives a row, 3 and 2 layers a tower."""
    config = FinetuneConfig(str(tiny_encoder_dir), *ohd, tmp_path / "out", max_steps=1)
    with pytest.raises(OptionError, match="--negatives 6: a number from 0 to 5 is expected"):
        finetune(replace(config, negatives=6))
    with pytest.raises(OptionError, match="--train_layers 99: a number from 0 to 3 is expected"):
        finetune(replace(config, train_layers=99))
    with pytest.raises(OptionError, match="--freeze vision text projections logit_scale: a part that trains"):
        finetune(replace(config, freeze=["vision", "text", "projections", "logit_scale"]))
    model = tower.load(tiny_encoder_dir)
    freeze(model, ["vision", "text", "projections"])
    with pytest.raises(OptionError, match="--lora_rank 2: a part with a linear map that trains"):
        add_lora(model, 2, 4, 0)
    with pytest.raises(DataFormatError, match="is a folder; a file of OHD-Caps rows is expected"):
        finetune(replace(config, data=tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"altered": 7.0}, "--altered 7.0: a number from 0 to 1"),
        ({"altered": -0.1}, "--altered -0.1: a number from 0 to 1"),
        ({"limit": 0}, "--limit 0: a number of at least 1"),
        ({"workers": 0}, "--workers 0: a number of at least 1"),
    ],
)
def test_a_file_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message} is expected"):
        BuildConfig(**changes)


def test_a_card_of_results_that_are_not_there_is_refused(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder_dir, tmp_path / "encoder")
    with pytest.raises(DataFormatError, match=r"--results .*nope is no folder"):
        write_card(tmp_path / "encoder", [tmp_path, tmp_path / "nope"])
    assert not (tmp_path / "encoder" / "README.md").exists()
