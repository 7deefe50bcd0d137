"""A checkpoint of the original LLaVA that would be loaded with another tower than it should is refused beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.tower.llava_checkpoints import find_encoder

KEY = "vision_model.post_layernorm.bias"


@pytest.fixture
def another(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    model: Any = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.add_(1)
    tower.write(model, tmp_path / "another", files_from=tiny_encoder_dir, name="another", parents=[], config={})
    return tmp_path / "another"


def checkpoint(
    folder: Path, named: Path | str | None, inside: Path | None, prefix: str = "model.vision_tower.", **more: Any
) -> Path:
    """A full checkpoint: what it names as tower, and whose tower weights it holds."""
    folder.mkdir()
    config = {"model_type": "llava_llama", **({"mm_vision_tower": str(named)} if named else {}), **more}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"model.embed_tokens.weight": torch.zeros(4, 4)}
    if inside:
        stored = load_file(inside / "model.safetensors")
        weights |= {prefix + "vision_tower." + n: w.half() for n, w in stored.items() if n.startswith("vision_model.")}
    save_file(weights, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_are_used_anyway(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    """What train.py writes: the tower's weights, rounded, and the folder that they came from."""
    encoder = tower.check(tiny_encoder_dir)
    assert tower.check_llava_checkpoint(checkpoint(tmp_path / "a", tiny_encoder_dir, tiny_encoder_dir)) == encoder
    assert tower.check_llava_checkpoint(checkpoint(tmp_path / "b", tiny_encoder_dir, None)) == encoder
    assert tower.check_llava_checkpoint(checkpoint(tmp_path / "c", None, None)) is None
    own = checkpoint(tmp_path / "d", tiny_encoder_dir, another, unfreeze_mm_vision_tower=True)
    assert tower.check_llava_checkpoint(own) is None


def test_weights_that_would_be_ignored(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", tiny_encoder_dir, another)
    with pytest.raises(ModelFormatError, match=rf"first difference in {KEY}.*set unfreeze_mm_vision_tower to true"):
        tower.check_llava_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "non_lora_trainables.bin"])
def test_weights_in_pickles(tiny_encoder_dir: Path, another: Path, tmp_path: Path, name: str) -> None:
    """A tower that was trained beside a LoRA lies in non_lora_trainables.bin, under peft's prefix."""
    folder = checkpoint(tmp_path / "a", tiny_encoder_dir, None)
    weight = load_file(another / "model.safetensors")[KEY]
    torch.save({f"base_model.model.model.vision_tower.vision_tower.{KEY}": weight}, folder / name)
    with pytest.raises(ModelFormatError, match=KEY):
        tower.check_llava_checkpoint(folder)


def test_a_flag_without_weights(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", tiny_encoder_dir, None, unfreeze_mm_vision_tower=True)
    with pytest.raises(ModelFormatError, match="holds no tower weights"):
        tower.check_llava_checkpoint(folder)


def test_no_such_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="is not a folder"):
        tower.check_llava_checkpoint(tmp_path / "nothing")
    with pytest.raises(EncoderNotFound, match="there is no folder /gone/clip"):
        tower.check_llava_checkpoint(checkpoint(tmp_path / "a", "/gone/clip", None))


def test_base_that_names_another_tower(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "a", tiny_encoder_dir, tiny_encoder_dir)
    assert tower.check_llava_base(base, tiny_encoder_dir) == tower.check(tiny_encoder_dir)
    with pytest.raises(ModelFormatError, match=rf"would train with {tiny_encoder_dir} and write {another}") as error:
        tower.check_llava_base(base, tower.check(another))
    assert f'"mm_vision_tower": "{another}"' in str(error.value)
    gone = checkpoint(tmp_path / "b", "/gone/clip", None)
    with pytest.raises(ModelFormatError, match="would train with /gone/clip"):
        tower.check_llava_base(gone, another)


def test_base_without_a_tower(another: Path, tmp_path: Path) -> None:
    assert tower.check_llava_base(checkpoint(tmp_path / "a", None, None), another) == tower.check(another)


def test_base_that_uses_its_own_weights(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "a", another, tiny_encoder_dir, unfreeze_mm_vision_tower=True)
    tower.check_llava_base(base, tiny_encoder_dir)
    with pytest.raises(ModelFormatError, match="its own tower weights"):
        tower.check_llava_base(base, another)


# --- what a config may name


def test_find_encoder(tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower.register("mine", tiny_encoder_dir)
    (tmp_path / "beside").symlink_to(tiny_encoder_dir)
    monkeypatch.chdir(tiny_encoder_dir.parent)
    for name in (str(tiny_encoder_dir), tiny_encoder_dir.name, f"./{tiny_encoder_dir.name}", "mine"):
        assert find_encoder(name).resolve() == tiny_encoder_dir.resolve()
    assert find_encoder("beside", tmp_path) == tiny_encoder_dir.resolve()
    with pytest.raises(EncoderNotFound, match="unknown encoder 'beside'"):
        find_encoder("beside")


def test_find_encoder_on_the_hub(tiny_encoder_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(repository: str, **named: Any) -> str:
        if repository == "someone/clip_ohd" and not named.get("local_files_only"):
            return str(tiny_encoder_dir)
        raise FileNotFoundError(repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_encoder("someone/clip_ohd") == tiny_encoder_dir
    for name in ("someone/else", "openai/clip-vit-large-patch14-336"):
        with pytest.raises(EncoderNotFound, match=name if name.startswith("someone") else "encoder 'openai'"):
            find_encoder(name)
