"""A CLIP in the layouts of transformers and LLaVA becomes an encoder with the same features, or raises."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound, StorageError
from llava_ohd.tower import names
from llava_ohd.tower.__main__ import main
from llava_ohd.tower.layouts import legacy_names

Same = Callable[[Path, Any], None]
Weights = dict[str, torch.Tensor]


def store(folder: Path, weights: Weights, container: str) -> None:
    """Writes weights as one file or two shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().clone() for name, weight in weights.items()}
    suffix = container.removeprefix("sharded ")
    whole = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    save: Any = torch.save if suffix == "bin" else save_file
    if not container.startswith("sharded"):
        save(weights, folder / whole)
        return
    names = sorted(weights)
    places = {
        name: f"{Path(whole).stem}-0000{1 + 2 * number // len(names)}-of-00002.{suffix}"
        for number, name in enumerate(names)
    }
    for place in set(places.values()):
        save({name: weights[name] for name in names if places[name] == place}, folder / place)
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def source(folder: Path, like: Path, weights: Weights, container: str = "safetensors", **config: Any) -> Path:
    """A folder with all files of encoder `like`, other weights, and no ohd.json."""
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("ohd.json", "model.safetensors"))
    store(folder, weights, container)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def vision(weights: Weights, prefix: str) -> Weights:
    level = "vision_model."
    return {prefix + n.removeprefix(level): w for n, w in weights.items() if n.startswith(level)}


def vision_config(model: Any) -> dict[str, Any]:
    return {**model.config.vision_config.to_dict(), "model_type": "clip_vision_model"}


# --- CLIPModel


@pytest.mark.parametrize("container", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_clip_model_of_any_container(
    lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same, container: str
) -> None:
    place = source(tmp_path / "src", lively_dir, lively.state_dict(), container)
    encoder = tower.import_encoder(place, tmp_path / "out", name="mine")
    assert encoder == tower.check(tmp_path / "out")
    assert (encoder.name, encoder.digest) == ("mine", tower.check(lively_dir).digest)
    assert_same(tmp_path / "out", lively)


def flat(name: str) -> str:
    return name.removeprefix("vision_model.")


LAYOUTS: dict[str, Callable[[str], str]] = {
    "no level": flat,
    "doubled": lambda name: f"vision_model.{name}" if name.startswith("vision_model.") else name,
    "ddp": lambda name: f"module.{name}",
    "wrapped": lambda name: f"clip_model.{name}",
    "wrapped, no level": lambda name: f"base_model.model.{flat(name)}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_repaired(lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same, layout: str) -> None:
    weights = {LAYOUTS[layout](name): weight for name, weight in lively.state_dict().items()}
    weights[LAYOUTS[layout]("vision_model.embeddings.position_ids")] = torch.arange(17)[None]
    tower.import_encoder(source(tmp_path / "src", lively_dir, weights), tmp_path / "out")
    assert_same(tmp_path / "out", lively)


def test_saved_by_this_transformers(lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same) -> None:
    place = source(tmp_path / "src", lively_dir, {})
    lively.save_pretrained(place)
    tower.import_encoder(place, tmp_path / "out")
    assert_same(tmp_path / "out", lively)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["logit_scale", "classifier.weight"], "no layout of CLIP has: classifier.weight"),
        (["a.logit_scale", "b.logit_scale"], "more than one model"),
        (["embeddings.class_embedding", "embeddings.token_embedding.weight"], "both towers have the same names"),
        (["vision_model.encoder.x", "vision_model.vision_model.encoder.x"], "two names"),
    ],
)
def test_names_that_are_not_guessed_at(names: list[str], message: str) -> None:
    with pytest.raises(EncoderFormatError, match=message):
        legacy_names(names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_type_is_kept(lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same, dtype: torch.dtype) -> None:
    place = source(tmp_path / "src", lively_dir, lively.to(dtype).state_dict())
    tower.import_encoder(place, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(dtype).split(".")[1]
    assert_same(tmp_path / "out", lively)


def test_what_is_recorded(lively_dir: Path, lively: Any, tmp_path: Path) -> None:
    place = source(tmp_path / "src", lively_dir, lively.state_dict())
    encoder = tower.import_encoder(place, tmp_path / "my encoder")
    record = json.loads((tmp_path / "my encoder" / "ohd.json").read_text())
    assert record["name"] == "my encoder"
    assert record["parents"] == [{"path": str(place), "digest": encoder.digest}]
    assert (record["config"]["imported"], record["config"]["source"]) == ("CLIPModel", str(place))
    assert len(record["config"]["sha256"]["model.safetensors"]) == 64


# --- a vision tower alone


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_clip_vision_model(
    lively_dir: Path, lively: Any, tiny_encoder_dir: Path, tmp_path: Path, assert_same: Same, prefix: str
) -> None:
    place = source(tmp_path / "src", lively_dir, vision(lively.state_dict(), prefix), **vision_config(lively))
    with pytest.raises(EncoderFormatError, match=r"only a vision tower; .* --base NAME_OR_PATH"):
        tower.import_encoder(place, tmp_path / "out")
    tower.import_encoder(place, tmp_path / "out", base=tiny_encoder_dir)
    expected = tower.load(tiny_encoder_dir)
    expected.vision_model = lively.vision_model
    assert_same(tmp_path / "out", expected)
    parents = json.loads((tmp_path / "out" / "ohd.json").read_text())["parents"]
    assert [row["digest"] for row in parents] == [tower.check(lively_dir).digest, tower.check(tiny_encoder_dir).digest]


def test_saved_as_clip_vision_model(lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same) -> None:
    from transformers import CLIPVisionModel

    for number, model in enumerate(
        [CLIPVisionModel.from_pretrained(lively_dir), CLIPVisionModel(lively.config.vision_config)]
    ):
        if number:
            own = model.vision_model if "vision_model.post_layernorm.bias" in model.state_dict() else model
            own.load_state_dict(lively.vision_model.state_dict())
        model.save_pretrained(tmp_path / f"src{number}")
        tower.import_encoder(tmp_path / f"src{number}", tmp_path / "out", base=lively_dir)
        assert_same(tmp_path / "out", lively)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 8}, r"num_attention_heads 8 \(base: 4\)"),
        ({"hidden_act": "gelu"}, r"hidden_act gelu \(base: quick_gelu\)"),
        ({"image_size": 64}, None),  # the tensors have the last word on what they say
    ],
)
def test_vision_config_against_the_base(
    lively_dir: Path, lively: Any, tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    config = vision_config(lively) | change
    place = source(tmp_path / "src", lively_dir, vision(lively.state_dict(), ""), **config)
    if message is None:
        tower.import_encoder(place, tmp_path / "out", base=lively_dir)
        return
    with pytest.raises(EncoderFormatError, match=message):
        tower.import_encoder(place, tmp_path / "out", base=lively_dir)


def test_vision_tower_of_another_size(lively_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPVisionConfig(image_size=48, patch_size=8, **sizes)
    CLIPVisionModel(config).save_pretrained(tmp_path / "src")
    message = r"image_size 48 \(base: 32\), .*hidden_size 64 \(base: 32\), .*num_hidden_layers 1 \(base: 3\)"
    with pytest.raises(EncoderFormatError, match=message):
        tower.import_encoder(tmp_path / "src", tmp_path / "out", base=lively_dir)
    assert not (tmp_path / "out").exists()


def test_pixels_of_another_family(lively_dir: Path, lively: Any, tmp_path: Path) -> None:
    """A tower trained on mean 0.5 is not given OpenAI's mean because the base has it."""
    place = source(tmp_path / "src", lively_dir, vision(lively.state_dict(), ""), **vision_config(lively))
    record = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps(record | {"image_mean": [0.5, 0.5, 0.5]}))
    full = shutil.copytree(place, tmp_path / "full")
    (place / "vocab.json").unlink()
    with pytest.raises(EncoderFormatError, match=r"image_mean .*--files-from"):
        tower.import_encoder(place, tmp_path / "out", base=lively_dir)
    tower.import_encoder(place, tmp_path / "out", base=lively_dir, files_from=full)
    assert list(tower.load_processor(tmp_path / "out").image_mean) == [0.5, 0.5, 0.5]


# --- LLaVA

LLAVA = {
    "original": "model.vision_tower.vision_tower.vision_model.",
    "hf 4.x": "vision_tower.vision_model.",
    "hf 4.52": "model.vision_tower.vision_model.",
    "hf 5.x": "model.vision_tower.",
    "hf 5.x hub format": "vision_tower.",
}


@pytest.mark.parametrize("container", ["bin", "sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("layout", LLAVA)
def test_tower_of_a_llava(
    lively_dir: Path,
    lively: Any,
    tiny_encoder_dir: Path,
    tmp_path: Path,
    assert_same: Same,
    layout: str,
    container: str,
) -> None:
    weights = vision(lively.state_dict(), LLAVA[layout])
    weights |= {"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4), "lm_head.weight": torch.zeros(4, 4)}
    weights["model.mm_projector.0.weight"] = torch.full((4, 4), float("nan"))  # not looked at
    store(tmp_path / "llava", weights, container)
    config: dict[str, Any] = {"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}
    if layout.startswith("hf"):
        config = {"model_type": "llava", "vision_config": vision_config(lively)}
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderFormatError, match="only a vision tower"):
        tower.import_encoder(tmp_path / "llava", tmp_path / "out")
    stated = None if layout.startswith("hf") else True
    tower.import_encoder(tmp_path / "llava", tmp_path / "out", base=tiny_encoder_dir, quick_gelu=stated)
    expected = tower.load(tiny_encoder_dir)
    expected.vision_model = lively.vision_model
    assert_same(tmp_path / "out", expected)


def test_saved_by_llava_of_this_transformers(lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same) -> None:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    words = LlamaConfig(vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=lively.config.vision_config, text_config=words)
    )
    own = getattr(model, "model", model).vision_tower
    own = own.vision_model if hasattr(own, "vision_model") else own
    own.load_state_dict(lively.vision_model.state_dict())
    model.save_pretrained(tmp_path / "llava")
    tower.import_encoder(tmp_path / "llava", tmp_path / "out", base=lively_dir)
    assert_same(tmp_path / "out", lively)


def test_llava_without_its_tower(lively_dir: Path, tmp_path: Path) -> None:
    store(tmp_path / "llava", {"lm_head.weight": torch.zeros(4, 4)}, "sharded bin")
    (tmp_path / "llava" / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "x/y"}))
    with pytest.raises(EncoderFormatError, match=r"carries no weights of a CLIP.* names 'x/y'; import that"):
        tower.import_encoder(tmp_path / "llava", tmp_path / "out", base=lively_dir)


# --- the Hub


def test_hub(lively_dir: Path, tmp_path: Path, assert_same: Same, lively: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--clip" / "snapshots" / "c0ffee"
    calls = []

    def download(repository: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        calls.append((repository, revision, "*.bin" in allow_patterns))
        if calls[-1][2]:
            store(snapshot, lively.state_dict(), "bin")
        return str(snapshot)

    source(snapshot, lively_dir, {}).joinpath("model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    tower.import_encoder("org/clip", tmp_path / "out", revision="v1")
    assert calls == [("org/clip", "v1", False), ("org/clip", "v1", True)]
    assert json.loads((tmp_path / "out" / "ohd.json").read_text())["config"]["commit"] == "c0ffee"
    assert_same(tmp_path / "out", lively)
    tower.import_encoder(names.BUILT_IN["openai"].source, tmp_path / "out")
    assert calls[-1][1] == names.BUILT_IN["openai"].revision
    tower.register("mine", tmp_path / "out")
    assert tower.import_encoder("mine", tmp_path / "copy").digest == tower.check(lively_dir).digest


def test_hub_that_cannot_be_reached(tmp_path: Path, lively_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EncoderNotFound, match=r"org/clip is no file or folder here.*give its folder"):
        tower.import_encoder("org/clip", tmp_path / "out")
    with pytest.raises(EncoderNotFound, match="does not exist; give a file, a folder, or a Hub"):
        tower.import_encoder(tmp_path / "nothing.pt", tmp_path / "out")
    with pytest.raises(EncoderFormatError, match="has no revision 'v1'"):
        tower.import_encoder(lively_dir, tmp_path / "out", revision="v1")


# --- faults


def drop(weights: Weights) -> Any:
    del weights["text_model.final_layer_norm.bias"]


def spoil(weights: Weights) -> Any:
    weights["vision_model.post_layernorm.bias"][0] = float("nan")


def cut(weights: Weights) -> Any:
    weights["text_projection.weight"] = torch.zeros(3, 32)


@pytest.mark.parametrize(
    ("change", "message"), [(drop, "missing: text_model.final_layer"), (spoil, "NaN"), (cut, "shape")]
)
def test_faulty_weights(
    lively_dir: Path, lively: Any, tmp_path: Path, change: Callable[[Weights], Any], message: str
) -> None:
    weights = dict(lively.state_dict())
    change(weights)
    place = source(tmp_path / "src", lively_dir, weights)
    with pytest.raises(EncoderFormatError, match=message) as error:
        tower.import_encoder(place, tmp_path / "out")
    assert str(place) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_faulty_folders(lively_dir: Path, lively: Any, tmp_path: Path) -> None:
    place = source(tmp_path / "src", lively_dir, lively.state_dict(), "sharded safetensors")
    (place / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderFormatError, match=r"names model-00002-of-00002.safetensors, which is not beside it"):
        tower.import_encoder(place, tmp_path / "out")
    (place / "model.safetensors.index.json").unlink()
    with pytest.raises(EncoderFormatError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        tower.import_encoder(place, tmp_path / "out")
    (place / "config.json").unlink()
    with pytest.raises(EncoderFormatError, match=r"cannot tell what .* is"):
        tower.import_encoder(place, tmp_path / "out")


def test_files_that_are_missing(lively_dir: Path, lively: Any, tmp_path: Path) -> None:
    place = source(tmp_path / "src", lively_dir, lively.state_dict())
    (place / "vocab.json").unlink()
    with pytest.raises(EncoderFormatError, match="--files-from"):
        tower.import_encoder(place, tmp_path / "out")
    tower.import_encoder(place, tmp_path / "out", files_from=lively_dir)
    tower.import_encoder(place, tmp_path / "out", base=lively_dir)


def test_a_base_that_would_not_be_used(lively_dir: Path, lively: Any, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    place = source(tmp_path / "src", lively_dir, lively.state_dict())
    with pytest.raises(EncoderFormatError, match=rf"--base {tiny_encoder_dir} would not be used.*leave --base out"):
        tower.import_encoder(place, tmp_path / "out", base=tiny_encoder_dir)
    (place / "vocab.json").unlink()
    tower.import_encoder(place, tmp_path / "out", base=tiny_encoder_dir)  # gives its tokenizer, and no weight
    parents = json.loads((tmp_path / "out" / "ohd.json").read_text())["parents"]
    assert [row["path"] for row in parents] == [str(place)]


def test_destination_that_holds_something_else(lively_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(StorageError, match="holds something else"):
        tower.import_encoder(lively_dir, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(lively_dir: Path, lively: Any, tmp_path: Path, zipped: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    place = source(tmp_path / "src", lively_dir, {})
    (place / "model.safetensors").unlink()
    weights = {**lively.state_dict(), "x": Bomb()}
    torch.save(weights, place / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(EncoderFormatError, match=r"holds code beside tensors .*mkdir.* and was not opened"):
        tower.import_encoder(place, tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    torch.load(place / "pytorch_model.bin", weights_only=False)  # the bomb is live
    assert (tmp_path / "exploded").exists()


# --- the command


def test_command(
    lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same, capsys: pytest.CaptureFixture[str]
) -> None:
    place = source(tmp_path / "src", lively_dir, vision(lively.state_dict(), ""), **vision_config(lively))
    main(["import", str(place), str(tmp_path / "out"), "--base", str(lively_dir), "--name", "mine"])
    assert f"mine: {tmp_path / 'out'}\n" in capsys.readouterr().out
    assert_same(tmp_path / "out", lively)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["import", str(place), str(tmp_path / "other")])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.startswith("error: EncoderFormatError: ")
    assert "--base" in shown


def as_transformers_5(folder: Path) -> None:
    """Leaves what transformers 5 saves: tokenizer.json alone, the image processor in processor_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": pixels, "processor_class": "CLIP"}))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "preprocessor_config.json", "ohd.json"):
        (folder / name).unlink()


def test_files_as_transformers_5_saves_them(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    """Every version finds its own: 4.37 wants vocab.json, merges.txt and preprocessor_config.json."""
    source = Path(shutil.copytree(tiny_encoder_dir, tmp_path / "source"))
    as_transformers_5(source)
    tower.import_encoder(source, tmp_path / "new")
    old, new = (tower.load_tokenizer(folder) for folder in (tiny_encoder_dir, tmp_path / "new"))
    texts = ["a red ball and a small box", "keys, lamps"]
    assert old(texts)["input_ids"] == new(texts)["input_ids"]
    for name in ("vocab.json", "merges.txt", "preprocessor_config.json"):
        assert (tmp_path / "new" / name).is_file()
    wanted = json.loads((tiny_encoder_dir / "preprocessor_config.json").read_text())
    assert json.loads((tmp_path / "new" / "preprocessor_config.json").read_text()) == wanted


def test_another_encoder_is_not_overwritten(tiny_encoder_dir: Path, lively_dir: Path, tmp_path: Path) -> None:
    tower.import_encoder(tiny_encoder_dir, tmp_path / "mine")
    tower.import_encoder(tiny_encoder_dir, tmp_path / "mine")  # the same tower
    with pytest.raises(StorageError, match=r"holds another encoder .*say --overwrite"):
        tower.import_encoder(lively_dir, tmp_path / "mine")
    assert tower.check(tmp_path / "mine").digest == tower.check(tiny_encoder_dir).digest
    tower.import_encoder(lively_dir, tmp_path / "mine", overwrite=True)
    assert tower.check(tmp_path / "mine").digest == tower.check(lively_dir).digest
