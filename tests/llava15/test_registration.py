"""Which model an encoder answers with after a training, and after another one."""

import shutil
from pathlib import Path

import pytest

from llava_ohd import tower
from llava_ohd.llava15.registration import register_model
from llava_ohd.llava15.run_record import name_note


@pytest.fixture
def encoder(tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tower.Encoder:
    monkeypatch.setenv("LLAVA_OHD_HOME", str(tmp_path / "home"))
    tower.register("ours", tiny_encoder_dir)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tower.check(tiny_encoder_dir)


def test_a_second_model_takes_the_place_of_the_first_only_where_that_is_asked(
    encoder: tower.Encoder, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert register_model(first, "ours", encoder) == "registered as the model of encoder 'ours'"
    said = register_model(second, "ours", encoder)
    assert f"not registered: the model of encoder 'ours' is {first}; evaluate it with --model {second}" in said
    assert tower.model_for("ours") == first
    assert register_model(first, "ours", encoder) == "registered as the model of encoder 'ours'"  # the same again
    assert register_model(second, "ours", encoder, "replace").endswith(f"in place of {first}")
    assert tower.model_for("ours") == second


def test_a_model_that_is_gone_is_replaced(encoder: tower.Encoder, tmp_path: Path) -> None:
    register_model(tmp_path / "first", "ours", encoder)
    shutil.rmtree(tmp_path / "first")
    assert register_model(tmp_path / "second", "ours", encoder) == "registered as the model of encoder 'ours'"
    assert tower.model_for("ours") == tmp_path / "second"


def test_nothing_is_registered_where_that_is_asked(encoder: tower.Encoder, tmp_path: Path) -> None:
    assert "not registered, as asked" in register_model(tmp_path / "first", "ours", encoder, "no")
    assert tower.registered()["ours"]["model"] is None


@pytest.mark.parametrize(
    ("name", "stage", "noted"),
    [
        ("llava-7b-projector", "projector", False),
        ("out", "projector", True),
        ("LLaVA-7b-LoRA", "qlora", False),
        ("llava-7b", "lora", True),
        ("llava-7b-lora-full", "full", True),
        ("llava-7b-full", "full", False),
    ],
)
def test_names_that_the_original_would_misread_are_noted(name: str, stage: str, noted: bool) -> None:
    assert bool(name_note(Path("x") / name, stage)) == noted
