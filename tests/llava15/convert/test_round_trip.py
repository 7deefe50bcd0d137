"""There and back again, bit for bit; and the other targets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.convert import ConvertConfig, convert, open_source

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder, whole or in shards."""
    files = sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")])
    parts = [load_file(f) if f.suffix == ".safetensors" else torch.load(f, weights_only=True) for f in files]
    return {name: weight for part in parts for name, weight in part.items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("kind", ["llava-full", "old-full", "world-full"])
def test_llava_to_hf_and_back(kind: str, source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source(kind)
    convert(ConvertConfig(made.folder, tmp_path / "hf", max_shard_size="40KB"))
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    convert(ConvertConfig(tmp_path / "hf", tmp_path / "llava-back", "llava", max_shard_size="1MB"))
    same(tensors(tmp_path / "llava-back"), tensors(made.folder))
    before, after = (json.loads((f / "config.json").read_text()) for f in (made.folder, tmp_path / "llava-back"))
    kept = {"mm_vision_tower", "mm_hidden_size", "image_aspect_ratio", "mm_vision_select_layer", "vocab_size"}
    kept |= {"hidden_size", "tie_word_embeddings", "rms_norm_eps", "max_position_embeddings", "torch_dtype"}
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert after["mm_use_im_patch_token"] is False
    assert (tmp_path / "llava-back/tokenizer.model").read_bytes() == (made.base / "tokenizer.model").read_bytes()


def test_a_tower_of_its_own_lies_beside(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("llava-unfrozen")
    convert(ConvertConfig(made.folder, tmp_path / "hf"))
    rows = convert(ConvertConfig(tmp_path / "hf", tmp_path / "llava-own", "llava", verify=True))
    assert all(row.good for row in rows)
    whole = tensors(made.folder)
    start = "model.vision_tower.vision_tower."
    inside = {name.removeprefix(start): weight for name, weight in whole.items() if name.startswith(start)}
    same(tensors(tmp_path / "llava-own/encoder"), inside)
    same(tensors(tmp_path / "llava-own"), {name: w for name, w in whole.items() if not name.startswith(start)})
    config = json.loads((tmp_path / "llava-own/config.json").read_text())
    assert config["mm_vision_tower"] == str(tmp_path / "llava-own/encoder")
    loaded: Any = CLIPVisionModel.from_pretrained(config["mm_vision_tower"], output_loading_info=True)
    assert not loaded[1]["missing_keys"]
    convert(ConvertConfig(tmp_path / "llava-own", tmp_path / "again"))
    same(tensors(tmp_path / "again"), tensors(tmp_path / "hf"))
    imported = tower.import_encoder(tmp_path / "llava-own/encoder", tmp_path / "encoder", base=made.encoder)
    assert imported.digest == model_dir.read(tmp_path / "llava-own").encoder["digest"]


def test_what_transformers_5_saves_is_read(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("llava-full")
    convert(ConvertConfig(made.folder, tmp_path / "hf"))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "five", ignore=shutil.ignore_patterns("*.safetensors", "ohd.json"))
    model.save_pretrained(tmp_path / "five", save_original_format=False)
    assert any(name.startswith("model.vision_tower.encoder.") for name in tensors(tmp_path / "five"))
    config = ConvertConfig(tmp_path / "five", tmp_path / "llava-back", "llava", encoder=str(made.encoder))
    convert(config)
    same(tensors(tmp_path / "llava-back"), tensors(made.folder))


def test_a_merged_adapter_is_a_whole_llava(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-lora")
    rows = convert(ConvertConfig(made.folder, tmp_path / "llava-merged", "llava", verify=True))
    assert all(row.good for row in rows)
    folder = model_dir.read(tmp_path / "llava-merged")
    assert folder.stage == "full"
    assert model_dir.encoder_of(folder) == tower.check(made.encoder)
    parts = open_source(folder.path)
    assert parts.stage == "full"
    assert parts.encoder == tower.check(made.encoder)


def test_the_projector_alone(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-lora")
    convert(ConvertConfig(made.folder, tmp_path / "projector", "projector"))
    expected = model_dir.read_projector(made.folder / "non_lora_trainables.safetensors")
    same(model_dir.read_projector(tmp_path / "projector"), expected)
    same(model_dir.read_projector(tmp_path / "projector/mm_projector.bin"), expected)
    assert model_dir.read(tmp_path / "projector").stage == "projector"


def test_another_encoder_can_be_put_in(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-lora")
    clip = tower.load(made.encoder)
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    other = tmp_path / "other"
    tower.write(clip, other, files_from=made.encoder, name="other", parents=[], config={})
    config = ConvertConfig(made.folder, tmp_path / "hf", swap_encoder=str(other), verify=True)
    assert all(row.good for row in convert(config))
    record = json.loads((tmp_path / "hf/ohd.json").read_text())
    assert record["encoder"]["digest"] == tower.check(other).digest
    assert record["converted"]["trained_on"] == tower.check(made.encoder).digest
    found = tensors(tmp_path / "hf")["vision_tower.vision_model.embeddings.class_embedding"]
    assert torch.equal(found, clip.vision_model.embeddings.class_embedding)


def test_a_narrower_type_is_verified_within_its_precision(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-projector")
    rows = convert(ConvertConfig(made.folder, tmp_path / "hf", dtype="bfloat16", verify=True))
    differences = {row.what: row.difference for row in rows}
    assert 0 < differences["tower features"] < differences["logits"] * 100
    assert {weight.dtype for weight in tensors(tmp_path / "hf").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_numbers_beyond_a_type_are_refused(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("llava-full")
    folder = tmp_path / "llava-large"
    shutil.copytree(made.folder, folder)
    file = folder / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = 1e6
    from safetensors.torch import save_file

    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="beyond that type's range"):
        convert(ConvertConfig(folder, tmp_path / "hf", dtype="float16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava-large"]
