"""The model of a stage: which weights it has, which train, and what its files hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.dataset import Batches
from llava_ohd.llava15.model import build, image_tokens, language_model_folder
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.llava15.stages import trainable
from llava_ohd.llava15.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"}
FLAGS: dict[str, Any] = {
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "model_max_length": 256,
    "image_aspect_ratio": "pad",
    "tune_mm_mlp_adapter": False,
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
}


@pytest.fixture(scope="module")
def encoder(tiny_encoder_dir: Path) -> tower.Encoder:
    return tower.check(tiny_encoder_dir)


@pytest.fixture
def batch(tiny_llama_dir: Path) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(tiny_llama_dir)
    rows = [[("<image>\nIs there a ball in the image?", "Yes")], [("<image>\nIs there a key?", "No"), ("A box?", "No")]]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    examples = []
    for number, (turns, image) in enumerate(zip(rows, pixels, strict=True)):
        ids, labels = encode("v1", turns, tokenizer, 16)
        examples.append({"number": number, "input_ids": ids, "labels": labels, "pixel_values": image})
    made = Batches(16, 32)(examples)
    return {key: value for key, value in made.items() if key != "numbers"}


def record(stage: str, encoder: tower.Encoder, base: Path) -> dict[str, Any]:
    return {
        "stage": stage,
        "encoder": {"path": str(encoder.path), "digest": encoder.digest, "name": encoder.name},
        "base": {"path": str(base), "sha256": model_dir.base_sha256(base)},
        "config": FLAGS,
    }


def test_image_features_are_projected_patches_of_layer_minus_two(
    encoder: tower.Encoder, tiny_llama_dir: Path, batch: dict[str, torch.Tensor]
) -> None:
    model = build(tiny_llama_dir, encoder)
    clip = tower.load(encoder.path)
    hidden = clip.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
    features = model.model.multi_modal_projector(hidden[:, 1:])
    embeddings = model.get_input_embeddings()(batch["input_ids"].clamp(min=0))
    embeddings[batch["input_ids"] == IMAGE_TOKEN] = features.flatten(0, 1)
    by_hand = model.lm_head(
        model.model.language_model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).last_hidden_state
    )
    shown = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[shown], by_hand[shown])
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(by_hand[:, :-1].transpose(1, 2), labels, ignore_index=IGNORE)
    torch.testing.assert_close(model(**batch).loss, loss)


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_tower_does_not_have(layer: int, encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelFormatError, match=f"--mm_vision_select_layer {layer}: .* has 3 layers"):
        build(tiny_llama_dir, encoder, feature_layer=layer)


def test_the_vocabulary_stays_that_of_the_language_model(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = build(tiny_llama_dir, encoder)
    stored = load_file(tiny_llama_dir / "model.safetensors")
    assert model.lm_head.weight.shape == stored["lm_head.weight"].shape
    assert torch.equal(model.get_input_embeddings().weight, stored["model.embed_tokens.weight"])
    assert image_tokens(encoder) == 16


def test_the_projector_depends_on_the_seed_only(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    first, again, other = (
        build(tiny_llama_dir, encoder, seed=seed).model.multi_modal_projector.linear_1.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_another_tower_is_refused(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = build(tiny_llama_dir, encoder)
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(EncoderFormatError, match="the tower inside the model is not tiny"):
        tower.verify(model, encoder, exact=True)


def test_what_trains(encoder: tower.Encoder, tiny_llama_dir: Path, batch: dict[str, torch.Tensor]) -> None:
    model = trainable(build(tiny_llama_dir, encoder), "projector")
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names == {f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    adapted = trainable(build(tiny_llama_dir, encoder), "lora", LORA)
    adapted(**batch).loss.backward()
    trained = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    lora = {name for name in trained if ".lora_" in name}
    assert len(lora) == 2 * 7 * 2  # two layers, seven linear modules, A and B
    assert all("language_model.layers" in name for name in lora)
    assert len(trained - lora) == 4
    assert all("multi_modal_projector" in name for name in trained - lora)


def test_a_hidden_image_changes_neither_loss_nor_gradients(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ids, labels = encode("v1", [("Is a ball red?", "No")], load_tokenizer(tiny_llama_dir))
    made = Batches(16, 32)([{"number": 1, "input_ids": ids, "labels": labels, "pixel_values": None}])
    made.pop("numbers")
    model = trainable(build(tiny_llama_dir, encoder), "projector")
    loss = model(**made).loss
    bare = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    torch.testing.assert_close(loss, bare)
    loss.backward()
    for weight in model.model.multi_modal_projector.parameters():
        assert weight.grad is not None
        assert not weight.grad.any()


def randomise(model: torch.nn.Module) -> None:
    random = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.copy_(torch.randn(weight.shape, generator=random) * 0.1)


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_a_model_folder_gives_back_the_model(
    stage: str, encoder: tower.Encoder, tiny_llama_dir: Path, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = trainable(build(tiny_llama_dir, encoder), stage, LORA)
    randomise(model)
    weights = model_dir.trained_weights(model)
    prefix = "base_model.model." if stage == "lora" else ""
    expected = {f"{prefix}model.mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    if stage == "lora":
        expected |= {
            f"{prefix}model.layers.{layer}.{module}.lora_{half}.weight"
            for layer in (0, 1)
            for module in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
            for half in "AB"
        }
    assert weights.keys() == expected
    made = record(stage, encoder, tiny_llama_dir)
    model_dir.write(tmp_path, weights, made, llava_config(tiny_llama_dir, encoder, FLAGS))
    folder = model_dir.read(tmp_path)
    assert model_dir.encoder_of(folder) == encoder
    loaded = build(model_dir.base_of(folder), encoder)
    model_dir.load_trained(loaded, folder)
    torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, rtol=1e-5, atol=1e-5)

    again = trainable(build(tiny_llama_dir, encoder, seed=5), stage, LORA, seed=5)
    model_dir.load_checkpoint(again, tmp_path)
    restored = model_dir.trained_weights(again)
    assert all(torch.equal(restored[name], weight) for name, weight in weights.items())


def test_the_pickles_hold_what_llava_reads(encoder: tower.Encoder, tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = trainable(build(tiny_llama_dir, encoder), "lora", LORA)
    made = record("lora", encoder, tiny_llama_dir)
    model_dir.write(tmp_path, model_dir.trained_weights(model), made, llava_config(tiny_llama_dir, encoder, FLAGS))
    rest = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    # builder.py: "base_model." goes, then one "model."
    stripped = {name.removeprefix("base_model.").removeprefix("model.") for name in rest}
    assert stripped == {f"model.mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert config["mm_vision_tower"] == str(encoder.path)
    assert config["rope_theta"] == 10000.0
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["peft_type"]) == (4, 8, "LORA")


def test_peft_reads_the_adapter_onto_the_bare_language_model(
    encoder: tower.Encoder, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    model = trainable(build(tiny_llama_dir, encoder), "lora", LORA)
    randomise(model)
    made = record("lora", encoder, tiny_llama_dir)
    model_dir.write(tmp_path, model_dir.trained_weights(model), made, llava_config(tiny_llama_dir, encoder, FLAGS))
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_llama_dir), tmp_path)
    theirs = adapted.merge_and_unload().state_dict()
    ours = build(tiny_llama_dir, encoder)
    model_dir.load_trained(ours, model_dir.read(tmp_path))
    for name, weight in ours.model.language_model.state_dict().items():
        torch.testing.assert_close(theirs[f"model.{name}"], weight, rtol=1e-5, atol=1e-6)


@pytest.fixture
def projector(encoder: tower.Encoder, tiny_llama_dir: Path, tmp_path: Path) -> Path:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama_dir, base)
    copy = tmp_path / "encoder"
    shutil.copytree(encoder.path, copy)
    model = trainable(build(base, tower.check(copy)), "projector")
    made = record("projector", tower.check(copy), base)
    folder = tmp_path / "llava"
    model_dir.write(folder, model_dir.trained_weights(model), made, llava_config(base, encoder, FLAGS))
    return folder


def test_damage_is_found(projector: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="not a folder"):
        model_dir.read(tmp_path / "none")
    with pytest.raises(ModelFormatError, match=r"no ohd\.json"):
        model_dir.read(tmp_path)
    weights = load_file(projector / "mm_projector.safetensors")
    weights["model.mm_projector.0.bias"][0] += 1
    save_file(weights, projector / "mm_projector.safetensors")
    with pytest.raises(ModelFormatError, match=r"mm_projector\.safetensors is missing or was altered"):
        model_dir.read(projector)


def test_another_base_or_encoder_is_refused(projector: Path, tmp_path: Path) -> None:
    folder = model_dir.read(projector)
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="another language model"):
        model_dir.base_of(folder)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ModelNotFound, match="which is gone"):
        model_dir.base_of(folder)
    shutil.rmtree(tmp_path / "encoder")
    with pytest.raises(EncoderNotFound, match="which is gone"):
        model_dir.encoder_of(folder)


def test_an_encoder_trained_again_is_refused(projector: Path, tmp_path: Path) -> None:
    folder = model_dir.read(projector)
    clip = tower.load(tmp_path / "encoder")
    with torch.no_grad():
        clip.vision_model.embeddings.class_embedding.add_(1)
    tower.write(clip, tmp_path / "encoder", files_from=tmp_path / "encoder", name="tiny", parents=[], config={})
    with pytest.raises(EncoderFormatError, match="trained again since"):
        model_dir.encoder_of(folder)


def test_projector_files(projector: Path, tmp_path: Path) -> None:
    expected = model_dir.read_projector(projector)
    for file in (projector / "mm_projector.bin", projector / "mm_projector.safetensors"):
        assert all(torch.equal(expected[name], weight) for name, weight in model_dir.read_projector(file).items())
    (tmp_path / "torn.bin").write_bytes((projector / "mm_projector.bin").read_bytes()[:-50])
    with pytest.raises(ModelFormatError, match="truncated or damaged"):
        model_dir.read_projector(tmp_path / "torn.bin")
    torch.save({"model.mm_projector.weight": torch.zeros(2, 2)}, tmp_path / "linear.bin")
    with pytest.raises(ModelFormatError, match="two linear layers"):
        model_dir.read_projector(tmp_path / "linear.bin")
    with pytest.raises(ModelNotFound, match="not a projector file"):
        model_dir.read_projector(tmp_path / "none.bin")


def test_language_model_folders(encoder: tower.Encoder, tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert language_model_folder(str(tiny_llama_dir)) == tiny_llama_dir
    with pytest.raises(ModelNotFound, match="is not a folder"):
        language_model_folder(str(tmp_path / "none"))
    with pytest.raises(ModelFormatError, match="model_type None"):
        build(tmp_path, encoder)
    shutil.copytree(tiny_llama_dir, tmp_path / "part")
    weights = load_file(tmp_path / "part/model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "part/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"lacks 1 weights, first model\.norm\.weight"):
        build(tmp_path / "part", encoder)
