"""What cannot be converted right is refused, and nothing half is left."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import (
    EncoderFormatError,
    EncoderNotFound,
    LlavaOhdError,
    ModelFormatError,
    ModelNotFound,
    StorageError,
)
from llava_ohd.llava15.convert import ConvertConfig, compare, convert, open_source, shards
from llava_ohd.llava15.convert.live import Observed
from llava_ohd.llava15.convert.shards import parse_size

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def copied(source: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Path]:
    """Gives a copy of a source that may be damaged."""

    def get(kind: str) -> Path:
        folder = tmp_path / f"copy-llava-{kind.split('-')[1]}"
        shutil.copytree(source(kind).folder, folder)
        return folder

    return get


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_encoder(encoder: Path, folder: Path) -> Path:
    clip = tower.load(encoder)
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    tower.write(clip, folder, files_from=encoder, name="other", parents=[], config={})
    return folder


def test_another_encoder(source: Callable[[str], Any], tmp_path: Path) -> None:
    other = other_encoder(source("ours-lora").encoder, tmp_path / "other")
    for kind in ("ours-lora", "llava-full"):
        with pytest.raises(EncoderFormatError, match="--swap_encoder"):
            open_source(source(kind).folder, encoder=other)
    convert(ConvertConfig(source("llava-full").folder, tmp_path / "hf"))
    with pytest.raises(EncoderFormatError, match="is not --encoder"):
        open_source(tmp_path / "hf", encoder=other)


def test_an_encoder_that_is_gone(copied: Callable[[str], Path], source: Callable[[str], Any], tmp_path: Path) -> None:
    folder = copied("llava-full")
    edit(folder / "config.json", mm_vision_tower=str(tmp_path / "none"))
    with pytest.raises(EncoderNotFound):
        open_source(folder)
    assert open_source(folder, encoder=source("llava-full").encoder).encoder is not None


def test_a_tower_that_llava_would_ignore(copied: Callable[[str], Path]) -> None:
    folder = copied("llava-unfrozen")
    edit(folder / "config.json", unfreeze_mm_vision_tower=False)
    with pytest.raises(ModelFormatError, match="LLaVA would ignore them"):
        open_source(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_use_im_start_end", True),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_other_models_than_llava_1_5(key: str, value: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("llava-full")
    edit(folder / "config.json", **{key: value})
    with pytest.raises(ModelFormatError, match=f"{key} is"):
        open_source(folder)


def test_folders_that_are_no_models(tmp_path: Path, source: Callable[[str], Any]) -> None:
    with pytest.raises(ModelNotFound, match="not a folder"):
        open_source(tmp_path / "none")
    with pytest.raises(ModelFormatError, match="no mm_vision_tower"):
        open_source(source("llava-full").base)
    with pytest.raises(ModelNotFound, match="--base"):
        open_source(source("llava-projector").folder)


def test_damaged_weights(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llava-full")
    file = folder / "model-00002-of-00002.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if "layers" in name)
    for weights, message in (
        ({n: w for n, w in whole.items() if n != name}, "which its index promises"),
        (whole | {name: whole[name].to(torch.int8)}, "without quantisation"),
        (whole | {"model.image_newline": torch.zeros(2)}, "unexpected: model.image_newline"),
        (whole | {name: torch.zeros(3)}, "has shape \\[3\\]"),
        (whole | dict.fromkeys(load_file(folder / "model-00001-of-00002.safetensors"), torch.zeros(1)), "second time"),
    ):
        save_file({n: w.clone() for n, w in weights.items()}, file, metadata={"format": "pt"})
        with pytest.raises(ModelFormatError, match=message):
            open_source(folder)
    file.write_bytes(b"nothing")
    with pytest.raises(ModelFormatError, match="truncated or damaged"):
        open_source(folder)
    file.unlink()
    with pytest.raises(ModelFormatError, match="not beside it"):
        open_source(folder)


def test_adapters_that_cannot_be_merged(copied: Callable[[str], Path]) -> None:
    folder = copied("ours-lora")
    settings = (folder / "adapter_config.json").read_text()
    for changes, message in (({"use_dora": True}, "use_dora is True"), ({"r": 8}, "rank 8")):
        edit(folder / "adapter_config.json", **changes)
        with pytest.raises(ModelFormatError, match=message):
            open_source(folder)
        (folder / "adapter_config.json").write_text(settings)
    (folder / "ohd.json").unlink()
    save_file({"base_model.model.model.layers.0.x.lora_C.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelFormatError, match="no part of a LoRA"):
        open_source(folder, base=json.loads((copied("ours-projector") / "ohd.json").read_text())["base"]["path"])


def test_an_altered_export(source: Callable[[str], Any], tmp_path: Path) -> None:
    convert(ConvertConfig(source("llava-full").folder, tmp_path / "hf"))
    weights = load_file(tmp_path / "hf/model.safetensors")
    weights["multi_modal_projector.linear_1.bias"][0] += 1
    save_file(weights, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="was altered"):
        open_source(tmp_path / "hf")


def test_hf_folders_that_do_not_pad(source: Callable[[str], Any], tmp_path: Path) -> None:
    convert(ConvertConfig(source("llava-full").folder, tmp_path / "hf"))
    (tmp_path / "hf/ohd.json").unlink()
    edit(tmp_path / "hf/preprocessor_config.json", image_processor_type="CLIPImageProcessor", do_pad=None)
    with pytest.raises(ModelFormatError, match="--image_aspect_ratio pad"):
        open_source(tmp_path / "hf")
    config = ConvertConfig(tmp_path / "hf", tmp_path / "llava-back", "llava", image_aspect_ratio="pad", verify=True)
    assert all(row.good for row in convert(config))
    assert json.loads((tmp_path / "llava-back/config.json").read_text())["image_aspect_ratio"] == "pad"


def test_names_that_llava_would_mistake(source: Callable[[str], Any], tmp_path: Path) -> None:
    for name in ("vicuna", "llava-lora-merged", "llava-mistral"):
        with pytest.raises(ModelFormatError, match="decides by its name"):
            convert(ConvertConfig(source("ours-lora").folder, tmp_path / name, "llava"))
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder, out = copied("llava-full"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        convert(ConvertConfig(folder, out))
    (out / "thesis.txt").unlink()
    convert(ConvertConfig(folder, out))
    with pytest.raises(StorageError, match="already"):
        convert(ConvertConfig(folder, out))
    convert(ConvertConfig(folder, out, overwrite=True, max_shard_size="1MB"))
    with pytest.raises(StorageError, match="is read and lies in"):
        convert(ConvertConfig(out, out, overwrite=True))


def test_a_full_disk_leaves_nothing(
    source: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def put(file: Any, digest: Any, content: Any) -> None:
        written.append(len(content))
        if sum(written) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "_put", put)
    with pytest.raises(StorageError, match="the disk is full"):
        convert(ConvertConfig(source("llava-full").folder, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
    assert sum(written) > 100_000


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("linear_1.bias", "projector output, logits"),
        ("layers.1.mlp.down_proj", "in logits"),
        ("layers.0.mlp.fc1.bias", "tower features, projector output, logits"),
    ],
)
def test_verify_finds_a_wrong_weight_and_leaves_nothing(
    part: str, steps: str, source: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shards._content

    def wrong(name: str, stored: Any) -> Any:
        if part not in name:
            return right(name, stored)
        tensor = stored.read().clone()
        tensor.view(-1)[0] += 0.1
        return tensor.reshape(-1).view(torch.uint8).numpy().data

    monkeypatch.setattr(shards, "_content", wrong)
    with pytest.raises(ModelFormatError, match=steps):
        convert(ConvertConfig(source("llava-full").folder, tmp_path / "out", verify=True))
    assert list(tmp_path.iterdir()) == []


def observed(**changes: Any) -> Observed:
    scores = torch.tensor([[0.0, 1.0, 0.95]])
    rest = {"pixels": torch.ones(3), "features": torch.ones(3), "projected": torch.ones(3), "logits": torch.ones(3)}
    return Observed(**({"ids": [1], "scores": scores, "tokens": [1]} | rest | changes))


def test_comparing() -> None:
    def wrong(precision: float, **changes: Any) -> list[str]:
        rows = compare([observed()], [observed(**changes)], (0.0, 0.0, precision))
        return [row.what for row in rows if not row.good]

    assert wrong(0.0) == []
    assert wrong(0.0, ids=[2]) == ["prompt ids"]
    assert wrong(0.0, pixels=torch.tensor([1.0, 1.0, 1 + 1e-6])) == ["pixels"]
    assert wrong(0.01, features=torch.tensor([1.0, 1.0, 1.01])) == ["tower features"]
    assert wrong(0.0, logits=torch.tensor([1.0, float("nan"), 1.0])) == ["logits"]
    assert wrong(0.01, logits=torch.tensor([1.0, 1.03, 1.0])) == []
    assert wrong(0.001, logits=torch.tensor([1.0, 1.03, 1.0])) == ["logits"]
    assert wrong(0.0, tokens=[2]) == ["greedy texts"]
    assert wrong(0.01, tokens=[2]) == []  # 0.05 apart, within twice 0.04
    assert wrong(0.005, tokens=[2]) == ["greedy texts"]
    assert wrong(0.01, tokens=[0]) == ["greedy texts"]
    assert wrong(0.01, tokens=[3]) == ["greedy texts"]  # a token that only HF has
    assert wrong(0.01, tokens=[1, 1]) == ["greedy texts"]


def test_flags(source: Callable[[str], Any], tmp_path: Path) -> None:
    assert (parse_size("5GB"), parse_size("1.5 KiB"), parse_size("500mb")) == (5 * 10**9, 1536, 5 * 10**8)
    folder = source("llava-full").folder
    for options in ({"to": "gguf"}, {"dtype": "int8"}, {"max_shard_size": "5"}, {"image_aspect_ratio": "anyres"}):
        with pytest.raises(LlavaOhdError, match=f"{next(iter(options.values()))}"):
            convert(ConvertConfig(folder, tmp_path / "out", **options))
    with pytest.raises(LlavaOhdError, match="cannot answer"):
        convert(ConvertConfig(folder, tmp_path / "out", "projector", verify=True))


def test_the_command(source: Callable[[str], Any], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/convert_llava.py"), "--source", str(source("llava-full").folder)]
    done = subprocess.run([*command, "--out", str(tmp_path / "hf")], capture_output=True, text=True, check=True)
    assert done.stdout == f"model: {tmp_path / 'hf'}\n"
    again = subprocess.run([*command, "--out", str(tmp_path / "hf")], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: StorageError: ")


def test_a_tied_head_that_is_not(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """LLaVA would take the embedding for it."""
    folder = copied("llava-full")
    edit(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(ModelFormatError, match="is not the embedding"):
        open_source(folder)
