"""An encoder folder goes out and comes back bit for bit; anything altered, missing or half-written raises."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, StorageError
from llava_ohd.tower.weights import tower_digest

WEIGHTS = "model.safetensors"


@pytest.fixture
def encoder(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that the test may spoil."""
    return Path(shutil.copytree(tiny_encoder_dir, tmp_path / "encoder"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights and leaves no ohd.json that would give it away."""
    weights = {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "ohd.json").unlink()


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# --- round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_bit_exact(tiny_encoder_dir: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = tower.load(tiny_encoder_dir).to(dtype)
    digest = tower.write(model, tmp_path / "copy", files_from=tiny_encoder_dir, name="copy", parents=[], config={})
    stored, again = load_file(tmp_path / "copy" / WEIGHTS), tower.load(tmp_path / "copy")
    assert stored.keys() == model.state_dict().keys() == again.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert stored[name].dtype == dtype
        assert torch.equal(stored[name], weight)
        assert torch.equal(again.state_dict()[name], weight.float())
    assert tower.check(tmp_path / "copy") == tower.Encoder((tmp_path / "copy").resolve(), "copy", digest, 32, 8, 32)
    assert not again.training


def test_loaded_model_equals_transformers_own(tiny_encoder_dir: Path) -> None:
    from transformers import CLIPModel, CLIPVisionModel

    ours = tower.load(tiny_encoder_dir)
    pixels = torch.rand(2, 3, 32, 32)
    words = tower.load_tokenizer(tiny_encoder_dir)(["a red ball", "a blue cup"], padding=True, return_tensors="pt")
    theirs = CLIPModel.from_pretrained(tiny_encoder_dir).eval()
    vision = CLIPVisionModel.from_pretrained(tiny_encoder_dir).eval()
    with torch.no_grad():
        expected, found = theirs(**words, pixel_values=pixels), ours(**words, pixel_values=pixels)
        patches = vision(pixels, output_hidden_states=True).hidden_states[-2]
        same = ours.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(expected.logits_per_image, found.logits_per_image)
    assert patches.shape == (2, 17, 32)
    assert torch.equal(patches, same)


def test_loaded_model_can_be_trained(tiny_encoder_dir: Path) -> None:
    before = (tiny_encoder_dir / WEIGHTS).read_bytes()
    model = tower.load(tiny_encoder_dir)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.logit_scale.zero_()
    assert (tiny_encoder_dir / WEIGHTS).read_bytes() == before


def test_what_is_recorded(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    parent = {"path": str(tiny_encoder_dir), "digest": tower.check(tiny_encoder_dir).digest}
    model = tower.load(tiny_encoder_dir)
    tower.write(model, tmp_path / "e", files_from=tiny_encoder_dir, name="ours", parents=[parent], config={"lr": 1e-5})
    record = json.loads((tmp_path / "e" / "ohd.json").read_text())
    assert record["parents"] == [parent]
    assert record["config"] == {"lr": 1e-5}
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    names = {path.name for path in tiny_encoder_dir.iterdir()}
    assert {path.name for path in (tmp_path / "e").iterdir()} == names
    for name in names - {"ohd.json", "config.json"}:
        assert (tmp_path / "e" / name).read_bytes() == (tiny_encoder_dir / name).read_bytes()


def test_digest_is_of_the_vision_tower_only(tiny_encoder_dir: Path) -> None:
    weights = load_file(tiny_encoder_dir / WEIGHTS)
    digest = tower_digest(weights)
    assert digest == json.loads((tiny_encoder_dir / "ohd.json").read_text())["digest"]
    assert tower_digest(weights | {"text_projection.weight": torch.zeros(1)}) == digest
    assert tower_digest(dict(reversed(weights.items()))) == digest
    name = "vision_model.post_layernorm.bias"
    assert tower_digest(weights | {name: weights[name] + 1e-7}) != digest
    assert tower_digest(weights | {name: weights[name].half()}) != digest
    assert tower_digest(weights | {name: weights[name].reshape(4, 8)}) != digest


def test_stock_download_is_accepted(encoder: Path) -> None:
    """No ohd.json, an old transformers' `position_ids`, and sizes given as plain numbers, as on the Hub."""
    digest = tower.check(encoder).digest
    rewrite(encoder, lambda weights: weights.update({"vision_model.embeddings.position_ids": torch.arange(17)[None]}))
    edit(encoder / "preprocessor_config.json", size=32, crop_size=32)
    found = tower.check(encoder)
    assert (found.name, found.digest) == ("encoder", digest)
    assert tower.load(encoder).dtype == torch.float32


def test_pickled_weights_of_the_hub(encoder: Path) -> None:
    expected = tower.check(encoder).digest
    torch.save(load_file(encoder / WEIGHTS), encoder / "pytorch_model.bin")
    (encoder / WEIGHTS).unlink()
    (encoder / "ohd.json").unlink()
    assert tower.check(encoder).digest == expected


# --- faults


def flip_vision_byte(folder: Path) -> None:
    flip(folder, "vision_model.encoder.layers.1.mlp.fc1.weight")


def flip_text_byte(folder: Path) -> None:
    flip(folder, "text_model.embeddings.token_embedding.weight")


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    header = int.from_bytes(content[:8], "little")
    start = 8 + header + json.loads(content[8 : 8 + header])[name]["data_offsets"][0]
    content[start] ^= 1  # the last bit of a mantissa
    (folder / WEIGHTS).write_bytes(content)


def flip_header_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[20] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)


def empty(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 0)


def drop_key(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("vision_model.pre_layrnorm.bias"))


def add_key(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"vision_model.encoder.layers.3.layer_norm1.bias": torch.zeros(32)}))


def flat_layout(folder: Path) -> None:
    def flatten(weights: dict[str, torch.Tensor]) -> None:
        tower_keys = [name for name in weights if name.startswith("vision_model.")]
        for name in tower_keys:
            weights[name.removeprefix("vision_model.")] = weights.pop(name)

    rewrite(folder, flatten)


def reshape(folder: Path) -> None:
    name = "vision_model.embeddings.position_embedding.weight"
    rewrite(folder, lambda weights: weights.update({name: weights[name][:10].contiguous()}))


def not_a_number(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["text_model.final_layer_norm.weight"].fill_(float("nan")))


def infinity(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["vision_model.post_layernorm.weight"][:1].fill_(float("inf")))


def quantised(folder: Path) -> None:
    name = "visual_projection.weight"
    rewrite(folder, lambda weights: weights.update({name: weights[name].to(torch.int8)}))


def other_encoder(folder: Path) -> None:
    edit(folder / "ohd.json", digest="0" * 64)


def newer_format(folder: Path) -> None:
    edit(folder / "ohd.json", format=3)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "clip",')


def vision_config_only(folder: Path) -> None:
    edit(folder / "config.json", model_type="clip_vision_model")


def wrong_patch_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config=config["vision_config"] | {"patch_size": 16})


def crooked_patch_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config=config["vision_config"] | {"patch_size": 7})


def foreign_end_of_text(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", text_config=config["text_config"] | {"eos_token_id": 49407})


def no_preprocessor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def wrong_crop(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", crop_size={"height": 224, "width": 224})


def wrong_mean(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", image_mean=[123.7, 116.3, 103.5])


def zero_deviation(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", image_std=[0, 0, 0])


def code_in_pickle(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "exploded",)

    torch.save({"vision_model.pre_layrnorm.bias": Bomb()}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def edit_vision(folder: Path, **values: Any) -> None:
    edit(
        folder / "config.json", vision_config=json.loads((folder / "config.json").read_text())["vision_config"] | values
    )


def other_activation(folder: Path) -> None:
    edit_vision(folder, hidden_act="gelu")


def other_heads(folder: Path) -> None:
    edit_vision(folder, num_attention_heads=8)


def other_epsilon(folder: Path) -> None:
    edit_vision(folder, layer_norm_eps=0.1)


def crooked_heads(folder: Path) -> None:
    edit_vision(folder, num_attention_heads=5)


def other_colours(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])


def other_merges(folder: Path) -> None:
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join([lines[0], *reversed(lines[1:])]))


def no_merges(folder: Path) -> None:
    (folder / "merges.txt").unlink()


def second_vocabulary(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))


def quantised_by_config(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"load_in_4bit": True})


def code_in_config(folder: Path) -> None:
    edit_vision(folder, auto_map={"AutoModel": "code.Tower"})


def other_weights_by_config(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="other.safetensors")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def no_mark_for_torch(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    (folder / "ohd.json").unlink()


def foreign_tokenizer(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"more": len(vocabulary)}))
    (folder / "ohd.json").unlink()


def foreign_end(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    other = next(piece for piece, number in vocabulary.items() if number == 5)
    swapped = {other: vocabulary["<|endoftext|>"], "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary | swapped))
    (folder / "ohd.json").unlink()


def short_captions(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=20)


STEPS = ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")


def no_step(name: str) -> Callable[[Path], None]:
    def leave_out(folder: Path) -> None:
        edit(folder / "preprocessor_config.json", **{name: False})

    leave_out.__name__ = f"not_{name}"
    return leave_out


def nearest_pixel(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", resample=0)


def no_rescaling(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", rescale_factor=1.0)


def padded(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", do_pad=True)


FAULTS: dict[Callable[[Path], None], str] = {
    flip_vision_byte: "the vision tower has digest .* ohd.json says",
    flip_text_byte: "altered after it was written",
    flip_header_byte: "model.safetensors",
    truncate: "truncated or damaged",
    empty: "truncated or damaged",
    drop_key: "missing: vision_model.pre_layrnorm.bias",
    add_key: "unexpected: vision_model.encoder.layers.3.layer_norm1.bias",
    flat_layout: "saved by transformers >= 5.6",
    reshape: r"shape \[10, 32\], its config.json asks for \[17, 32\]",
    not_a_number: "NaN or Inf in text_model.final_layer_norm.weight",
    infinity: "NaN or Inf in vision_model.post_layernorm.weight",
    quantised: "floating point is expected",
    other_encoder: "belong to another encoder",
    newer_format: "newer version",
    no_weights: "has no model.safetensors",
    no_config: "config.json does not exist",
    broken_config: "not JSON",
    vision_config_only: "'clip_vision_model'; a full CLIPModel",
    wrong_patch_size: "shape",
    crooked_patch_size: "32 is not a multiple of patch_size 7",
    foreign_end_of_text: "eos_token_id 49407 is outside the vocabulary",
    no_preprocessor: "preprocessor_config.json does not exist",
    wrong_crop: "crop_size .* image_size 32",
    wrong_mean: "image_mean",
    zero_deviation: "image_std",
    code_in_pickle: "holds code beside tensors",
    other_activation: r"config.json was altered: SHA-256 \w{12}, ohd.json says",
    other_heads: "config.json was altered",
    other_epsilon: "config.json was altered",
    other_colours: "preprocessor_config.json was altered",
    other_merges: "merges.txt was altered",
    no_merges: "merges.txt is missing, which ohd.json lists",
    second_vocabulary: "tokenizer.json was added",
    crooked_heads: "hidden_size 32 cannot be divided by num_attention_heads 5",
    quantised_by_config: "quantization_config is .*; remove it",
    code_in_config: "auto_map is",
    other_weights_by_config: "transformers_weights is 'other.safetensors'",
    adapter: "adapter_config.json does not belong into an encoder folder",
    no_mark_for_torch: "metadata format is None, 'pt' is expected",
    foreign_tokenizer: "Copy the tokenizer it was trained with",
    foreign_end: "ends a caption with 5",
    short_captions: "model_max_length is 20, the text tower takes 77",
    **{no_step(name): f"{name} is False" for name in STEPS},
    nearest_pixel: "resample is 0; CLIP's 3",
    no_rescaling: "rescale_factor is 1.0",
    padded: "do_pad is True",
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_fault_raises(encoder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(encoder)
    with pytest.raises(EncoderFormatError, match=message) as error:
        tower.check(encoder)
    assert str(encoder) in str(error.value)
    with pytest.raises(EncoderFormatError):
        tower.load(encoder)
    assert not (encoder / "exploded").exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFound, match="is not a folder"):
        tower.check(tmp_path / "nothing")


# --- writing


def test_write_refuses_a_diverged_model(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(EncoderFormatError, match=rf"nothing was written: {tmp_path}/e/model.safetensors holds NaN"):
        tower.write(model, tmp_path / "e", files_from=tiny_encoder_dir, name="e", parents=[], config={})
    assert not list(tmp_path.iterdir())


def test_write_refuses_a_model_with_adapters(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    model.visual_projection = torch.nn.Sequential(model.visual_projection)
    with pytest.raises(EncoderFormatError, match=r"missing: visual_projection\.weight"):
        tower.write(model, tmp_path / "e", files_from=tiny_encoder_dir, name="e", parents=[], config={})


def test_write_replaces_an_encoder_but_nothing_else(tiny_encoder_dir: Path, encoder: Path, tmp_path: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.add_(1)
    digest = tower.write(model, encoder, files_from=encoder, name="new", parents=[], config={})
    assert tower.check(encoder).digest == digest != tower.check(tiny_encoder_dir).digest
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(StorageError, match="would be lost"):
        tower.write(model, tmp_path / "thesis", files_from=encoder, name="new", parents=[], config={})
    with pytest.raises(StorageError, match="would be lost"):
        tower.write(model, tmp_path / "thesis" / "chapter.tex", files_from=encoder, name="new", parents=[], config={})
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_destination_that_another_writer_is_replacing(
    tiny_encoder_dir: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen half removed, then gone: not taken for a folder of something else."""
    seen = iter([["config.json"]])

    def listdir(_: Path) -> list[str]:
        if names := next(seen, None):
            return names
        raise FileNotFoundError

    monkeypatch.setattr("llava_ohd.tower.encoder_dir.os.listdir", listdir)
    tower.write(tower.load(tiny_encoder_dir), encoder, files_from=tiny_encoder_dir, name="e", parents=[], config={})
    monkeypatch.undo()
    assert tower.check(encoder).name == "e"


KILLED = """
import os, signal, sys
from pathlib import Path
from llava_ohd import tower
from llava_ohd.tower import encoder_dir
source, destination, moment = sys.argv[1:]
real = getattr(encoder_dir, moment)
def die(*arguments, **named):
    if moment == "write_weights":
        Path(arguments[0]).write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
setattr(encoder_dir, moment, die)
tower.write(tower.load(source), destination, files_from=source, name="x", parents=[], config={})
"""


@pytest.mark.parametrize("moment", ["write_weights", "check"])
def test_a_kill_leaves_nothing_that_is_taken_for_whole(tiny_encoder_dir: Path, tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tiny_encoder_dir), str(tmp_path / "new"), moment]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    with pytest.raises(EncoderNotFound):
        tower.check(tmp_path / "new")
    model = tower.load(tiny_encoder_dir)
    tower.write(model, tmp_path / "new", files_from=tiny_encoder_dir, name="new", parents=[], config={})
    assert tower.check(tmp_path / "new").name == "new"


def test_read_only_folder(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(StorageError, match="no permission"):
        tower.write(
            tower.load(tiny_encoder_dir), locked / "e", files_from=tiny_encoder_dir, name="e", parents=[], config={}
        )


def test_a_path_with_spaces_and_a_link(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    model = tower.load(tiny_encoder_dir)
    real, link = tmp_path / "my encoders" / "one", tmp_path / "link"
    tower.write(model, real, files_from=tiny_encoder_dir, name="one", parents=[], config={})
    link.symlink_to(real)
    assert tower.check(link) == tower.check(real)
    tower.write(model, link, files_from=link, name="two", parents=[], config={})
    assert link.is_symlink()
    assert tower.check(real).name == "two"


def test_tokenizer_cuts_at_the_length_of_the_text_tower(encoder: Path) -> None:
    edit(encoder / "tokenizer_config.json", model_max_length=10**9)
    ids = tower.load_tokenizer(encoder)(["a red ball " * 60], truncation=True)["input_ids"][0]
    assert len(ids) == 77
    (encoder / "vocab.json").unlink()
    with pytest.raises(EncoderFormatError, match="no tokenizer files"):
        tower.load_tokenizer(encoder)


@pytest.mark.parametrize(("end", "more"), [(7, 0), (2, 1), (2, -1)])
def test_tokenizer_of_another_encoder(encoder: Path, end: int, more: int) -> None:
    text = json.loads((encoder / "config.json").read_text())["text_config"]
    spoilt = {"eos_token_id": end, "vocab_size": text["vocab_size"] + more}
    edit(encoder / "config.json", text_config=text | spoilt)
    with pytest.raises(EncoderFormatError, match="Copy the tokenizer it was trained with"):
        tower.load_tokenizer(encoder)


def test_end_of_text_of_old_configurations(encoder: Path) -> None:
    text = json.loads((encoder / "config.json").read_text())["text_config"]
    edit(encoder / "config.json", text_config=text | {"eos_token_id": 2})
    assert tower.load_tokenizer(encoder).eos_token_id == text["vocab_size"] - 1
