"""A name leads to the encoder that was registered under it, or to an error that says what to do."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound, ModelNotFound
from llava_ohd.home import home
from llava_ohd.tower import names
from llava_ohd.tower.__main__ import main


@pytest.fixture
def encoder(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_encoder_dir, tmp_path / "encoder"))


def retrain(folder: Path) -> None:
    model = tower.load(folder)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.add_(1)
    tower.write(model, folder, files_from=folder, name="again", parents=[], config={})


def test_unknown_name_lists_every_choice(encoder: Path) -> None:
    tower.register("mine", encoder)
    with pytest.raises(EncoderNotFound) as error:
        tower.resolve("theirs")
    for word in ("'theirs'", "mine", str(encoder), "ours", "openai", "world-openai", "mini_clip"):
        assert word in str(error.value)


def test_order_of_lookup(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    assert tower.resolve("./ours") == tmp_path / "ours"
    assert tower.resolve(encoder) == encoder
    tower.register("ours", encoder)  # before the built-in row, and before the folder in the working directory
    assert tower.resolve("ours") == encoder


def test_built_in_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("ours", "openai"):
        with pytest.raises(EncoderNotFound, match=f"make quickstart.*register {name} PATH"):
            tower.resolve(name)
    monkeypatch.setitem(names.BUILT_IN, "world-openai", names.BuiltIn("world/assets/nothing", hub=False))
    with pytest.raises(EncoderNotFound, match="not shipped"):
        tower.resolve("world-openai")


def test_built_in_from_the_local_cache(encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Laid out as huggingface_hub does; the network is not asked where the commit is there."""
    row = names.BUILT_IN["openai"]
    snapshot = tmp_path / "cache" / "models--openai--clip-vit-large-patch14-336" / "snapshots" / str(row.revision)
    shutil.copytree(encoder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert tower.resolve("openai") == snapshot


def test_a_part_in_the_cache_is_downloaded_again(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What an interrupted download leaves is there for huggingface_hub, and not for us."""
    snapshot = tmp_path / str(names.BUILT_IN["openai"].revision)
    snapshot.mkdir()
    shutil.copy(encoder / "config.json", snapshot)
    asked = []

    def download(repository: str, **settings: Any) -> str:
        asked.append(settings.get("local_files_only", False))
        if not asked[-1]:
            shutil.copytree(encoder, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert tower.check(tower.resolve("openai")).name == "tiny"
    assert tower.resolve("openai") == snapshot
    assert asked == [True, False, True]


def test_a_repository_without_a_known_commit_stays_at_its_first(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, newest = [], ["a1"]

    def download(repository: str, revision: str | None = None, **_: Any) -> str:
        asked.append(revision)
        shutil.copytree(encoder, tmp_path / "hub" / newest[0] / "clip", dirs_exist_ok=True)
        return str(tmp_path / "hub" / newest[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert tower.resolve("ours") == tmp_path / "hub" / "a1" / "clip"
    assert tower.resolve("ours") == tmp_path / "hub" / "a1" / "clip"
    assert asked == [None, "a1"]
    newest[0] = "b2"
    with pytest.raises(
        EncoderFormatError, match=r"was at commit a1 when it was first used here, and is b2 now.*hub\.json"
    ):
        tower.resolve("ours")


def test_registered_folder_that_vanished(encoder: Path) -> None:
    tower.register("ours", encoder)
    shutil.rmtree(encoder)
    with pytest.raises(EncoderNotFound, match=r"registered at .* which is gone.*register ours PATH"):
        tower.resolve("ours")


def test_registered_folder_that_changed(encoder: Path) -> None:
    tower.register("ours", encoder)
    retrain(encoder)
    with pytest.raises(EncoderFormatError, match=r"registered with digest .* now holds .*register ours PATH"):
        tower.resolve("ours")
    tower.register("ours", encoder)
    assert tower.resolve("ours") == encoder


@pytest.mark.parametrize("recorded", [True, False], ids=["ours", "stock"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "merges.txt"])
def test_registered_folder_of_which_another_file_changed(encoder: Path, name: str, recorded: bool) -> None:
    """The digest is that of the weights; the row knows the other files too, also where there is no ohd.json."""
    if not recorded:
        (encoder / "ohd.json").unlink()
    tower.register("mine", encoder)
    (encoder / name).write_text((encoder / name).read_text() + "\n")
    with pytest.raises(EncoderFormatError, match=rf"{name} was altered.* the register \(.*register mine PATH"):
        tower.resolve("mine")


def test_row_of_an_older_version(encoder: Path) -> None:
    tower.register("mine", encoder)
    rows = tower.registered()
    del rows["mine"]["files"]
    (home() / "encoders.json").write_text(json.dumps(rows))
    assert tower.resolve("mine") == encoder


def test_register_checks(encoder: Path, tmp_path: Path) -> None:
    for name in ("list", "a/b", "-x", ".hidden", ""):
        with pytest.raises(EncoderFormatError, match="cannot be the name"):
            tower.register(name, encoder)
    with pytest.raises(ModelNotFound, match="nowhere"):
        tower.register("ours", encoder, model=tmp_path / "nowhere")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(EncoderFormatError):
        tower.register("ours", encoder)
    assert tower.registered() == {}


def test_register_many_at_once(encoder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tower.register(f"e{number}", encoder), range(16)))
    assert tower.registered().keys() == {f"e{number}" for number in range(16)}


def test_model_of_an_encoder(encoder: Path, tmp_path: Path) -> None:
    model = tmp_path / "llava-v1.5-tiny-lora"
    model.mkdir()
    with pytest.raises(ModelNotFound, match="make quickstart"):
        tower.model_for("ours")
    tower.register("ours", encoder, model=model)
    assert tower.model_for("ours") == tower.model_for(str(encoder)) == model
    tower.register("ours", encoder)  # the same tower again: its model stays
    assert tower.model_for("ours") == model
    model.rmdir()
    with pytest.raises(ModelNotFound, match="gone"):
        tower.model_for("ours")
    model.mkdir()
    retrain(encoder)
    tower.register("ours", encoder)  # another tower: the model does not belong to it
    with pytest.raises(ModelNotFound):
        tower.model_for("ours")


@pytest.mark.parametrize("content", ["[]", '{"ours": {}}', '{"ours"'])
def test_damaged_register(content: str) -> None:
    home().mkdir(parents=True)
    (home() / "encoders.json").write_text(content)
    with pytest.raises(DataFormatError, match=r"encoders\.json"):
        tower.resolve("ours")


# --- the command


def test_command(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["register", "ours", str(encoder)])
    main(["list"])
    assert f"ours           {encoder}\n" in capsys.readouterr().out
    main(["check", "ours"])
    found = capsys.readouterr().out
    assert json.loads((encoder / "ohd.json").read_text())["digest"] in found
    assert "image 32 px, patch 8 px" in found


def test_command_prints_the_path_alone(encoder: Path) -> None:
    command = [sys.executable, "-m", "llava_ohd.tower", str(encoder)]
    result = subprocess.run(command, text=True, capture_output=True, check=True)
    assert result.stdout == f"{encoder}\n"


def test_command_stops_at_a_spoilt_encoder(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((encoder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (encoder / "model.safetensors").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main([str(encoder)])
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out) == (2, "")
    assert shown.err.startswith("error: EncoderFormatError: ")
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("argument", ["--help", "nosuch", "list"])
def test_unknown_name_and_help_need_no_torch(argument: str) -> None:
    code = "import sys; from llava_ohd.tower.__main__ import main\ntry: main([sys.argv[1]])\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, argument], check=True, capture_output=True)


def test_help_begins_with_what_most_people_want(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert '--vision_tower "$(python -m llava_ohd.tower ours)"' in shown
    assert "\nexamples:\n" in shown
    assert "\nexit codes:\n  0  " in shown
    assert max(map(len, shown.splitlines())) <= 120
