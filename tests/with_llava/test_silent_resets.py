"""The unmodified code's silent resets: each is shown to happen, to be found by our checks, and to be mended."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError

Trained = dict[str, tuple[Path, dict[str, Any]]]
KEY = "model.vision_tower.vision_tower."


@pytest.fixture
def _registered() -> Iterator[None]:
    tower.register_with_llava()
    tower.register_with_llava()
    yield
    tower.unregister_from_llava()


def copy(folder: Path, destination: Path, **config: Any) -> Path:
    """The full checkpoint with other values in its config.json; None removes one."""
    shutil.copytree(folder, destination)
    record = json.loads((destination / "config.json").read_text()) | config
    kept = {key: value for key, value in record.items() if value is not None}
    (destination / "config.json").write_text(json.dumps(kept))
    return destination


def put_inside(folder: Path, encoder: Path | None) -> Path:
    """Replaces the tower weights inside a full checkpoint, or takes them out."""
    weights = {name: w for name, w in load_file(folder / "model.safetensors").items() if not name.startswith(KEY)}
    if encoder:
        stored = load_file(encoder / "model.safetensors")
        weights |= {KEY + name: w.half() for name, w in stored.items() if name.startswith("vision_model.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def start_training(base: Path, encoder: Path | str) -> Any:
    """What train.py does with `--model_name_or_path BASE --vision_tower ENCODER`."""
    from llava.model import LlavaLlamaForCausalLM

    model = LlavaLlamaForCausalLM.from_pretrained(base)
    settings = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"}
    settings |= {"mm_projector_type": "mlp2x_gelu", "pretrain_mm_mlp_adapter": None, "vision_tower": str(encoder)}
    model.get_model().initialize_vision_modules(SimpleNamespace(**settings), fsdp="")
    return model


# --- tower weights inside a checkpoint, without the flag


def test_weights_inside_are_ignored(
    trained: Trained, load: Any, tiny_encoder_dir: Path, other_encoder_dir: Path, tmp_path: Path
) -> None:
    folder = put_inside(copy(trained["full"][0], tmp_path / "llava-other-inside"), other_encoder_dir)
    _, model, _ = load(folder)
    tower.verify(model, tiny_encoder_dir)  # the reset
    with pytest.raises(EncoderFormatError, match="is not other"):
        tower.verify(model, other_encoder_dir)
    with pytest.raises(ModelFormatError, match="would ignore them"):
        tower.check_llava_checkpoint(folder)


@pytest.mark.parametrize("ours", [False, True])
def test_weights_inside_with_the_flag(
    trained: Trained, load: Any, other_encoder_dir: Path, tmp_path: Path, ours: bool, request: pytest.FixtureRequest
) -> None:
    if ours:
        request.getfixturevalue("_registered")
    folder = copy(trained["full"][0], tmp_path / "llava-flag", unfreeze_mm_vision_tower=True)
    _, model, _ = load(put_inside(folder, other_encoder_dir))
    assert isinstance(model.get_vision_tower(), tower.OHDVisionTower) is ours
    tower.verify(model, other_encoder_dir)
    assert tower.check_llava_checkpoint(folder) is None


def test_the_flag_without_weights(trained: Trained, load: Any, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    folder = put_inside(copy(trained["full"][0], tmp_path / "llava-flag", unfreeze_mm_vision_tower=True), None)
    with pytest.raises(ModelFormatError, match="holds no tower weights"):
        tower.check_llava_checkpoint(folder)
    _, model, _ = load(folder)
    with pytest.raises(EncoderFormatError, match=r"is not tiny|holds Inf or NaN"):  # whatever was in memory
        tower.verify(model, tiny_encoder_dir)


@pytest.mark.usefixtures("_registered")
def test_registered_code_refuses_both(trained: Trained, load: Any, other_encoder_dir: Path, tmp_path: Path) -> None:
    folder = put_inside(copy(trained["full"][0], tmp_path / "llava-other-inside"), other_encoder_dir)
    with pytest.raises(ModelFormatError, match="would ignore them"):
        load(folder)
    flag = put_inside(copy(trained["full"][0], tmp_path / "llava-flag", unfreeze_mm_vision_tower=True), None)
    with pytest.raises(ModelFormatError, match="holds no tower weights"):
        load(flag)


# --- a LoRA or projector on a base


def put_beside(folder: Path, encoder: Path) -> Path:
    """Puts tower weights where a LoRA has what was trained beside it."""
    stored = load_file(encoder / "model.safetensors")
    inside = {f"base_model.model.{KEY}{name}": w for name, w in stored.items() if name.startswith("vision_model.")}
    beside = torch.load(folder / "non_lora_trainables.bin")
    torch.save(beside | inside, folder / "non_lora_trainables.bin")
    return folder


@pytest.mark.parametrize("stage", ["lora", "projector"])
def test_the_tower_of_the_base_overwrites(
    trained: Trained,
    load: Any,
    tiny_encoder_dir: Path,
    other_encoder_dir: Path,
    tmp_path: Path,
    stage: str,
    request: pytest.FixtureRequest,
) -> None:
    """The flag is set, the checkpoint holds no tower, the base holds another than the checkpoint names."""
    folder = copy(trained[stage][0], tmp_path / f"llava-{stage}", unfreeze_mm_vision_tower=True)
    base = put_inside(copy(trained["full"][0], tmp_path / "llava-base"), other_encoder_dir)
    _, model, _ = load(folder, base)
    tower.verify(model, other_encoder_dir)  # the reset
    with pytest.raises(ModelFormatError, match="use those inside the base"):
        tower.check_llava_checkpoint(folder, base)
    request.getfixturevalue("_registered")
    with pytest.raises(ModelFormatError, match="use those inside the base"):
        load(folder, base)
    put_inside(base, tiny_encoder_dir)
    _, model, _ = load(folder, base)
    tower.verify(model, tiny_encoder_dir)


def test_a_tower_beside_a_lora(
    trained: Trained,
    load: Any,
    tiny_llama_dir: Path,
    tiny_encoder_dir: Path,
    other_encoder_dir: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Ignored without the flag, used with it."""
    folder = put_beside(copy(trained["lora"][0], tmp_path / "llava-lora"), other_encoder_dir)
    flag = copy(folder, tmp_path / "llava-lora-flag", unfreeze_mm_vision_tower=True)
    _, model, _ = load(folder, tiny_llama_dir)
    tower.verify(model, tiny_encoder_dir)  # the reset
    request.getfixturevalue("_registered")
    with pytest.raises(ModelFormatError, match="would ignore them"):
        load(folder, tiny_llama_dir)
    _, model, _ = load(flag, tiny_llama_dir)
    tower.verify(model, other_encoder_dir)


@pytest.mark.parametrize("stage", ["lora", "projector"])
def test_an_encoder_beside_a_lora(
    trained: Trained,
    load: Any,
    tiny_llama_dir: Path,
    tiny_encoder_dir: Path,
    tmp_path: Path,
    stage: str,
    request: pytest.FixtureRequest,
) -> None:
    """As in yfliu/llava_clip_ohd_caps_lora: the config names a folder relative to the checkpoint, not to the base."""
    folder = copy(trained[stage][0], tmp_path / f"llava-{stage}", mm_vision_tower="./clip")
    shutil.copytree(tiny_encoder_dir, folder / "clip")
    with pytest.raises(ValueError, match="Unknown vision tower"):
        load(folder, tiny_llama_dir)
    request.getfixturevalue("_registered")
    _, model, _ = load(folder, tiny_llama_dir)
    tower.verify(model, folder / "clip")
    assert model.get_vision_tower().vision_tower_name == str(folder / "clip")


def test_a_loader_that_was_imported_before(trained: Trained, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """It cannot be replaced where it is a local name, but what it loads is noticed."""
    from llava.model.builder import load_pretrained_model

    folder = copy(trained["lora"][0], tmp_path / "llava-lora")
    tower.register_with_llava()
    try:
        with pytest.raises(ModelFormatError, match="imported before register_with_llava"):
            load_pretrained_model(str(folder), str(tiny_llama_dir), "llava-lora", device="cpu")
    finally:
        tower.unregister_from_llava()


# --- a base that names a tower already


def test_base_with_tower_a_trains_with_a_and_says_b(
    trained: Trained, train: Any, tiny_encoder_dir: Path, other_encoder_dir: Path, tmp_path: Path
) -> None:
    base = trained["full"][0]
    with pytest.raises(ModelFormatError, match=r"would train with .*tiny and write .*other into the result"):
        tower.check_llava_base(base, other_encoder_dir)
    config = train(base, other_encoder_dir, tmp_path / "llava-trap", "--version", "v1")
    assert config["mm_vision_tower"] == str(other_encoder_dir)
    inside = load_file(tmp_path / "llava-trap" / "model.safetensors")
    a = load_file(tiny_encoder_dir / "model.safetensors")["vision_model.embeddings.class_embedding"]
    assert torch.equal(inside[KEY + "vision_model.embeddings.class_embedding"], a.half())  # the reset
    with pytest.raises(ModelFormatError, match=r"another tower than .*other"):
        tower.check_llava_checkpoint(tmp_path / "llava-trap")


def test_the_remedy_that_the_message_gives(trained: Trained, other_encoder_dir: Path, tmp_path: Path) -> None:
    base = copy(
        trained["full"][0], tmp_path / "base", mm_vision_tower=str(other_encoder_dir), unfreeze_mm_vision_tower=False
    )
    tower.check_llava_base(base, other_encoder_dir)
    tower.verify(start_training(base, other_encoder_dir), other_encoder_dir)


def test_registered_code_takes_the_tower_that_was_asked_for(
    trained: Trained, tiny_encoder_dir: Path, other_encoder_dir: Path, request: pytest.FixtureRequest
) -> None:
    model = start_training(trained["full"][0], other_encoder_dir)
    assert model.config.mm_vision_tower == str(other_encoder_dir)
    tower.verify(model, tiny_encoder_dir)  # the reset
    with pytest.raises(EncoderFormatError, match="is not other"):
        tower.verify(model, other_encoder_dir)
    request.getfixturevalue("_registered")
    for wanted in (other_encoder_dir, tiny_encoder_dir):
        model = start_training(trained["full"][0], wanted)
        assert model.config.mm_vision_tower == str(wanted)
        tower.verify(model, wanted)


@pytest.mark.usefixtures("_registered")
def test_base_of_another_geometry(trained: Trained, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    config = tower.load(tiny_encoder_dir).config
    config.vision_config.hidden_size = 64
    tower.write(CLIPModel(config), tmp_path / "wide", files_from=tiny_encoder_dir, name="wide", parents=[], config={})
    with pytest.raises(EncoderFormatError, match=r"hidden size 32 .* and 64"):
        start_training(trained["full"][0], tmp_path / "wide")


# --- names


def test_names_need_registration(trained: Trained, load: Any, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    tower.register("mine", tiny_encoder_dir)
    folder = copy(trained["full"][0], tmp_path / "llava-named", mm_vision_tower="mine")
    with pytest.raises(ValueError, match="Unknown vision tower: mine"):
        load(folder)


@pytest.mark.usefixtures("_registered")
def test_names_in_registered_code(
    trained: Trained,
    load: Any,
    tiny_llama_dir: Path,
    tiny_encoder_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    tower.register("mine", tiny_encoder_dir)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tiny_encoder_dir))
    folder = copy(trained["full"][0], tmp_path / "llava-named", mm_vision_tower="mine")
    shutil.copytree(tiny_encoder_dir, folder / "clip")
    for name in ("mine", "someone/clip_ohd", "clip", "./clip"):
        (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()) | {"mm_vision_tower": name})
        )
        _, model, _ = load(folder)
        assert isinstance(model.get_vision_tower(), tower.OHDVisionTower)
        tower.verify(model, tiny_encoder_dir)
    model = start_training(tiny_llama_dir, "mine")
    assert model.config.mm_vision_tower == str(tiny_encoder_dir)  # which the unmodified code loads, too
    with pytest.raises(EncoderNotFound, match="unknown encoder 'nobody'"):
        start_training(tiny_llama_dir, "nobody")


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("kind", ["lora", "projector"])
def test_a_tower_beside_an_adapter(
    trained: Trained, load: Any, tiny_llama_dir: Path, other_encoder_dir: Path, tmp_path: Path, kind: str
) -> None:
    """As yfliu/llava_clip_ohd_caps_lora is laid out: the config that reaches the tower names the base."""
    folder = copy(trained[kind][0], tmp_path / f"llava-{kind}", mm_vision_tower="./clip")
    shutil.copytree(other_encoder_dir, folder / "clip")
    _, model, _ = load(folder, tiny_llama_dir)
    tower.verify(model, other_encoder_dir)


@pytest.mark.usefixtures("_registered")
def test_an_adapter_whose_tower_would_come_from_its_base(
    trained: Trained, load: Any, other_encoder_dir: Path, tmp_path: Path
) -> None:
    base = put_inside(copy(trained["full"][0], tmp_path / "llava-base"), other_encoder_dir)
    folder = copy(trained["lora"][0], tmp_path / "llava-lora", unfreeze_mm_vision_tower=True)
    with pytest.raises(ModelFormatError, match="which are another tower"):
        load(folder, base)


def test_unregistering_leaves_nothing_behind() -> None:
    from llava.model import builder as models
    from llava.model import llava_arch
    from llava.model.multimodal_encoder import builder

    def state() -> tuple[Any, ...]:
        meta = llava_arch.LlavaMetaModel.initialize_vision_modules
        return llava_arch.build_vision_tower, builder.build_vision_tower, models.load_pretrained_model, meta

    before = state()
    tower.register_with_llava()
    assert all(now is not then for now, then in zip(state(), before, strict=True))
    tower.register_with_llava()
    tower.unregister_from_llava()
    assert state() == before
