"""OpenAI's and open_clip's files become encoders with the same features, and no activation is guessed at."""

import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.activation import of_program
from llava_ohd.tower.torchscript import read_torchscript

Same = Callable[[Path, Any], None]
Weights = dict[str, torch.Tensor]

TOP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
NORMS = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
NORMS["text_model.final_layer_norm"] = "ln_final"
PARTS = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
PARTS |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def openai_names(model: Any) -> Weights:
    """The state dict as openai/CLIP's model.py would have it, written from its attribute names."""
    out: Weights = {}
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        if name in TOP:
            out[TOP[name]] = weight.t().contiguous() if name.endswith("_projection.weight") else weight
        elif module in NORMS:
            out[f"{NORMS[module]}.{kind}"] = weight
        else:
            side, number, part = re.fullmatch(r"(\w+)_model\.encoder\.layers\.(\d+)\.(.+)", module).groups()  # type: ignore[union-attr]
            block = f"{'visual.' if side == 'vision' else ''}transformer.resblocks.{number}."
            if part == "self_attn.q_proj":
                rows = [weights[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(rows)
            elif part in PARTS:
                out[f"{block}{PARTS[part]}.{kind}"] = weight
    return out


class QuickGELU(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Holder(torch.nn.Module):
    """A module with given parameters, at given names, and an activation that its program names."""

    def __init__(self, weights: Weights, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        for first in sorted({name.split(".")[0] for name in weights}):
            if first in weights:
                self.register_parameter(first, torch.nn.Parameter(weights[first]))
                continue
            inner = {name.partition(".")[2]: w for name, w in weights.items() if name.startswith(f"{first}.")}
            self.add_module(first, Holder(inner, torch.nn.Identity()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x)


def save_archive(weights: Weights, file: Path, activation: Any) -> None:
    module = Holder(weights, activation)
    for name, number in {"input_resolution": 32, "context_length": 77, "vocab_size": 625}.items():
        module.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch versions announce the end of TorchScript
        torch.jit.script(module).save(str(file))


def with_activation(model: Any, name: str) -> Any:
    """The same weights in a CLIPModel of another activation."""
    from transformers import CLIPConfig, CLIPModel

    record = model.config.to_dict()
    record["vision_config"]["hidden_act"] = record["text_config"]["hidden_act"] = name
    other = CLIPModel(CLIPConfig.from_dict(record))
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture
def base_with(lively: Any, lively_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The lively encoder, its folder saying an activation."""

    def make(name: str) -> Path:
        folder = tmp_path / f"base with {name}"
        tower.write(with_activation(lively, name), folder, files_from=lively_dir, name="base", parents=[], config={})
        return folder

    return make


# --- OpenAI


@pytest.mark.parametrize(("activation", "name"), [(QuickGELU(), "quick_gelu"), (torch.nn.GELU(), "gelu")])
def test_torchscript_archive(
    base_with: Any, lively: Any, tmp_path: Path, assert_same: Same, activation: Any, name: str
) -> None:
    """The activation is read off the program, which is never run."""
    save_archive(openai_names(lively), tmp_path / "clip.pt", activation)
    tower.import_encoder(tmp_path / "clip.pt", tmp_path / "out", base=base_with(name))
    assert_same(tmp_path / "out", with_activation(lively, name))
    record = json.loads((tmp_path / "out" / "ohd.json").read_text())["config"]
    assert (record["activation"], record["hidden_act"]) == ("said by the file", name)
    assert record["distances"][name] == 0  # and measured all the same


def test_archive_equals_what_torch_reads(lively: Any, tmp_path: Path) -> None:
    weights = openai_names(lively)
    weights["visual.proj"] = weights["visual.proj"].half()
    weights["ln_final.bias"] = weights["ln_final.bias"].bfloat16()
    save_archive(weights, tmp_path / "clip.pt", QuickGELU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(tmp_path / "clip.pt")).state_dict()
    found, _ = read_torchscript(tmp_path / "clip.pt")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)


def test_half_precision_of_openai_goes_to_float32(
    lively_dir: Path, lively: Any, tmp_path: Path, assert_same: Same
) -> None:
    """Its files mix both types; float32 holds each number exactly, and is what the Hub's copy has."""
    weights = {n: w.half() if w.ndim > 1 else w for n, w in openai_names(lively).items()}
    save_archive(weights, tmp_path / "clip.pt", QuickGELU())
    tower.import_encoder(tmp_path / "clip.pt", tmp_path / "out", base=lively_dir)
    with torch.no_grad():
        for name, weight in lively.named_parameters():
            if weight.ndim > 1 or name.endswith("position_embedding.weight"):
                weight.copy_(weight.half())
    assert_same(tmp_path / "out", lively)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def test_program_of_an_archive() -> None:
    assert of_program("return torch.mul(x, torch.sigmoid(torch.mul(x, CONSTANTS.c0)))") is True
    assert of_program("return torch.gelu(x)") is False
    assert of_program("return __torch__.torch.nn.functional.gelu(torch.sigmoid(x))") is None
    assert of_program("") is None


def test_archive_with_foreign_objects(lively: Any, tmp_path: Path) -> None:
    save_archive(openai_names(lively), tmp_path / "good.pt", QuickGELU())
    bomb = b"cos\nmkdir\n(V" + str(tmp_path / "exploded").encode() + b"\ntR."
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, bomb if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(EncoderFormatError, match=r"asks for os\.mkdir, which is neither module nor tensor"):
        tower.import_encoder(tmp_path / "bad.pt", tmp_path / "out", quick_gelu=True)
    assert not (tmp_path / "exploded").exists()


def test_archive_cut_short(lively: Any, tmp_path: Path) -> None:
    save_archive(openai_names(lively), tmp_path / "clip.pt", QuickGELU())
    content = (tmp_path / "clip.pt").read_bytes()
    (tmp_path / "clip.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(EncoderFormatError, match="truncated or damaged"):
        tower.import_encoder(tmp_path / "clip.pt", tmp_path / "out")


# --- open_clip


def save(weights: Weights, file: Path) -> Path:
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    return file


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("form", ["plain.pt", "plain.safetensors", "trainer.pt", "text.bin"])
def test_open_clip(base_with: Any, lively: Any, tmp_path: Path, assert_same: Same, form: str, name: str) -> None:
    weights: Any = openai_names(lively)
    if form.startswith("text"):
        weights = {n if n.startswith("visual.") or n == "logit_scale" else f"text.{n}": w for n, w in weights.items()}
        weights["text.attn_mask"] = torch.zeros(77, 77)
    if form.startswith("trainer"):
        weights = {"epoch": 3, "name": "run", "state_dict": {f"module.{n}": w for n, w in weights.items()}}
    file = save(weights, tmp_path / form)
    tower.import_encoder(file, tmp_path / "out", base=base_with(name), quick_gelu=name == "quick_gelu")
    assert_same(tmp_path / "out", with_activation(lively, name))


def test_without_a_base(tmp_path: Path, lively_dir: Path, assert_same: Same) -> None:
    """Geometry comes from the tensors; a head has 64 channels where every model of that width has."""
    from transformers import CLIPConfig, CLIPModel

    pieces = tower.load(lively_dir).config.text_config.vocab_size
    sizes = {"hidden_size": 512, "intermediate_size": 96, "num_attention_heads": 8, "projection_dim": 24}
    ids = {"vocab_size": pieces, "eos_token_id": pieces - 1, "bos_token_id": pieces - 2, "pad_token_id": pieces - 1}
    vision = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 2, **sizes}
    text = {"num_hidden_layers": 1, "max_position_embeddings": 20, **ids, **sizes}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24))
    file = save(openai_names(model), tmp_path / "clip.pt")
    with pytest.raises(EncoderFormatError, match="--files-from"):
        tower.import_encoder(file, tmp_path / "out", quick_gelu=True)
    tower.import_encoder(file, tmp_path / "out", quick_gelu=True, files_from=lively_dir)
    assert_same(tmp_path / "out", model)
    assert tower.load_tokenizer(tmp_path / "out").model_max_length == 20


@pytest.mark.parametrize("base_name", ["quick_gelu", "gelu"])
def test_activation_is_measured(lively: Any, lively_dir: Path, tmp_path: Path, base_name: str) -> None:
    """A fine-tune lies near its base with the activation of the base, whichever that is."""
    base = with_activation(lively, base_name)
    tower.write(base, tmp_path / "base", files_from=lively_dir, name="base", parents=[], config={})
    tuned = openai_names(lively)
    tuned = {n: w + 1e-4 * torch.randn_like(w) if w.ndim > 1 else w for n, w in tuned.items()}
    file = save(tuned, tmp_path / "clip.pt")
    tower.import_encoder(file, tmp_path / "out", base=tmp_path / "base")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == config["text_config"]["hidden_act"] == base_name
    record = json.loads((tmp_path / "out" / "ohd.json").read_text())["config"]
    assert record["activation"] == "measured against the base"
    assert min(record["distances"], key=record["distances"].get) == base_name
    assert min(record["distances"].values()) < 0.3 * max(record["distances"].values())


def test_undecided(lively: Any, lively_dir: Path, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    file = save(openai_names(lively), tmp_path / "clip.pt")
    with pytest.raises(EncoderFormatError, match=r"width 32, and nothing says its number of heads.*--base"):
        tower.import_encoder(file, tmp_path / "out", files_from=lively_dir, quick_gelu=True)
    with pytest.raises(EncoderFormatError, match=r"undecided: .*quick_gelu [\d.]+, gelu [\d.]+;.*--quick-gelu true"):
        tower.import_encoder(file, tmp_path / "out", base=tiny_encoder_dir)  # it is no fine-tune of that
    assert not (tmp_path / "out").exists()


def test_undecided_without_a_base(tmp_path: Path, lively_dir: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 512, "intermediate_size": 64, "num_attention_heads": 8, "num_hidden_layers": 1}
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    text = {"vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97, **sizes}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    file = save(openai_names(model), tmp_path / "clip.pt")
    with pytest.raises(EncoderFormatError, match="does not say which activation it was trained with; say it"):
        tower.import_encoder(file, tmp_path / "out", files_from=lively_dir)
    with pytest.raises(EncoderFormatError, match="the base has another geometry"):
        tower.import_encoder(file, tmp_path / "out", base=lively_dir)
    with pytest.raises(EncoderFormatError, match="tokenizer has"):
        tower.import_encoder(file, tmp_path / "out", files_from=lively_dir, quick_gelu=True)


def test_contradictions(lively: Any, lively_dir: Path, tmp_path: Path) -> None:
    save_archive(openai_names(lively), tmp_path / "clip.pt", QuickGELU())
    with pytest.raises(EncoderFormatError, match="the file itself says quick_gelu; leave the flag out"):
        tower.import_encoder(tmp_path / "clip.pt", tmp_path / "out", base=lively_dir, quick_gelu=False)
    with pytest.raises(EncoderFormatError, match="says quick_gelu; leave the flag out"):
        tower.import_encoder(lively_dir, tmp_path / "out", quick_gelu=False)


def open_clip_folder(folder: Path, model: Any, **model_cfg: Any) -> Path:
    folder.mkdir()
    save(openai_names(model), folder / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 32, **model_cfg}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_open_clip_folder(lively: Any, lively_dir: Path, base_with: Any, tmp_path: Path, assert_same: Same) -> None:
    """Its configuration says the activation and the mean that it was trained with."""
    source = open_clip_folder(tmp_path / "src", lively, quick_gelu=False)
    config = json.loads((source / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (source / "open_clip_config.json").write_text(json.dumps(config))
    base = base_with("gelu")
    with pytest.raises(EncoderFormatError, match=r"made for image_mean \[0\.5, 0\.5, 0\.5\], the base .*--files-from"):
        tower.import_encoder(source, tmp_path / "out", base=base)
    files = shutil.copytree(lively_dir, tmp_path / "files")
    record = json.loads((files / "preprocessor_config.json").read_text())
    record |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (files / "preprocessor_config.json").write_text(json.dumps(record))
    tower.import_encoder(source, tmp_path / "out", base=base, files_from=files)
    assert_same(tmp_path / "out", with_activation(lively, "gelu"))


# --- the trap: OpenAI's weights under GELU, or the other way round


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_open_clip_folder_that_is_silent(
    lively: Any, lively_dir: Path, base_with: Any, tmp_path: Path, assert_same: Same, name: str
) -> None:
    """Silence is no word for GELU: the base decides, else the user."""
    source = open_clip_folder(tmp_path / "src", lively)
    tower.import_encoder(source, tmp_path / "out", base=base_with(name))
    assert_same(tmp_path / "out", with_activation(lively, name))
    sized = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 32}
    alone = open_clip_folder(tmp_path / "alone", resized(lively, vision=sized, text=sized))
    with pytest.raises(EncoderFormatError, match="does not say which activation it was trained with; say it"):
        tower.import_encoder(alone, tmp_path / "never", files_from=lively_dir)


@pytest.mark.parametrize("kind", ["open_clip folder", "stated", "CLIPVisionModel", "CLIPModel", "LLaVA"])
def test_a_word_that_the_features_contradict(lively: Any, base_with: Any, tmp_path: Path, kind: str) -> None:
    """Everything says GELU, and the features are those of a base with QuickGELU."""
    base, quick_gelu = base_with("quick_gelu"), None
    source = tmp_path / "src"
    if kind == "open_clip folder":
        open_clip_folder(source, lively, quick_gelu=False)
    elif kind == "stated":
        source, quick_gelu = save(openai_names(lively), tmp_path / "clip.pt"), False
    elif kind == "CLIPModel":
        source = base_with("gelu")
    else:
        source.mkdir()
        prefix = "model.vision_tower.vision_tower." if kind == "LLaVA" else ""
        inside = {f"{prefix}{n}": w for n, w in lively.state_dict().items() if n.startswith("vision_model.")}
        save_file(inside, source / "model.safetensors")
        config = with_activation(lively, "gelu").config.vision_config.to_dict() | {"model_type": "clip_vision_model"}
        config = {"model_type": "llava_llama", "mm_vision_tower": "laion/clip"} if kind == "LLaVA" else config
        (source / "config.json").write_text(json.dumps(config))
        quick_gelu = False if kind == "LLaVA" else None
    with pytest.raises(EncoderFormatError, match=r"says gelu, but the features are those|base: quick_gelu|--base"):
        tower.import_encoder(source, tmp_path / "out", base=base, quick_gelu=quick_gelu)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_tower_of_a_llava_is_measured(lively: Any, base_with: Any, tmp_path: Path, name: str) -> None:
    """Its config.json says no activation; that of the base is taken where the features agree with it."""
    source, base = tmp_path / "src", base_with(name)
    source.mkdir()
    inside = {n: w for n, w in lively.state_dict().items() if n.startswith("vision_model.")}
    save_file({f"model.vision_tower.vision_tower.{n}": w for n, w in inside.items()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "laion/clip"}))
    tower.import_encoder(source, tmp_path / "out", base=base)
    record = json.loads((tmp_path / "out" / "ohd.json").read_text())["config"]
    assert (record["hidden_act"], record["distances"][name]) == (name, 0)
    other = {n: w + torch.randn_like(w) for n, w in inside.items()}  # a tower of another family
    save_file({f"model.vision_tower.vision_tower.{n}": w for n, w in other.items()}, source / "model.safetensors")
    with pytest.raises(EncoderFormatError, match="the activation is undecided"):
        tower.import_encoder(source, tmp_path / "never", base=base)


# --- heads, which no tensor shows


def resized(model: Any, vision: dict[str, int], text: dict[str, int]) -> Any:
    """A random CLIPModel of other widths, with attention that depends on the number of heads."""
    from transformers import CLIPConfig, CLIPModel

    record = model.config.to_dict()
    record["vision_config"] |= vision
    record["text_config"] |= text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = CLIPModel(CLIPConfig.from_dict(record)).eval()
        with torch.no_grad():
            for weight in other.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
    return other


def test_heads_of_an_open_clip_folder(lively: Any, lively_dir: Path, tmp_path: Path, assert_same: Same) -> None:
    """ViT-H has heads of 80 channels, and says so in its vision_cfg."""
    model = resized(
        lively,
        vision={"hidden_size": 320, "num_attention_heads": 4, "intermediate_size": 32},
        text={"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 32},
    )
    config = {"vision_cfg": {"head_width": 80, "width": 320}, "text_cfg": {"heads": 2, "width": 64}}
    source = open_clip_folder(tmp_path / "src", model, quick_gelu=True, **config)
    tower.import_encoder(source, tmp_path / "out", files_from=lively_dir)
    assert tower.load(tmp_path / "out").config.vision_config.num_attention_heads == 4
    assert_same(tmp_path / "out", model)


def test_heads_that_base_and_folder_say_differently(lively: Any, lively_dir: Path, tmp_path: Path) -> None:
    source = open_clip_folder(tmp_path / "a", lively, quick_gelu=True, vision_cfg={"head_width": 16, "width": 32})
    with pytest.raises(EncoderFormatError, match="gives the vision tower 2 heads, the base has 4"):
        tower.import_encoder(source, tmp_path / "out", base=lively_dir)
    source = open_clip_folder(tmp_path / "b", lively, quick_gelu=True, vision_cfg={"head_width": 24, "width": 32})
    with pytest.raises(EncoderFormatError, match="head_width 24, its tensors have width 32"):
        tower.import_encoder(source, tmp_path / "out", base=lively_dir)
    source = open_clip_folder(tmp_path / "c", lively, quick_gelu=True, text_cfg={"no_causal_mask": True, "heads": 4})
    with pytest.raises(EncoderFormatError, match="text_cfg has no_causal_mask True; only the architecture of OpenAI"):
        tower.import_encoder(source, tmp_path / "out", base=lively_dir)


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (1408, 16), (1664, 16)])
def test_heads_of_a_bare_file_are_not_guessed(width: int, heads: int) -> None:
    """The widths of ViT-H, g and bigG; width // 64 would be 20, 22 and 26."""
    from llava_ohd.tower.openai_clip import _heads

    with pytest.raises(EncoderFormatError, match=rf"width {width}, and nothing says its number of heads"):
        _heads(width, None, None, "vision")
    assert _heads(width, heads, None, "vision") == heads
    assert [_heads(known, None, None, "vision") for known in (512, 768, 1024)] == [8, 12, 16]


# --- faults


@pytest.mark.parametrize(
    ("add", "drop", "message"),
    [
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, [], "a ResNet CLIP"),
        ({"visual.transformer.resblocks.0.ls_1.gamma": torch.zeros(1)}, [], r"does not have: visual.*ls_1\.gamma"),
        ({"logit_bias": torch.zeros(1)}, [], "does not have: logit_bias"),
        ({"optimizer.x": torch.zeros(1)}, [], "does not have: optimizer"),
        ({"text.ln_final.bias": torch.zeros(32)}, [], "both at the top level and under"),
        ({}, ["visual.ln_pre.bias"], r"missing: vision_model\.pre_layrnorm\.bias"),
        ({}, ["visual.proj"], r"no visual\.proj"),
        ({}, ["token_embedding.weight"], "token_embedding.weight is missing"),
        ({"visual.ln_pre.bias": torch.full((32,), float("nan"))}, [], "NaN"),
        ({"visual.positional_embedding": torch.zeros(16, 32)}, [], "15 patch positions do not form a square"),
        ({"visual.ln_pre.bias": torch.zeros(31)}, [], "shape"),
    ],
)
def test_faults(lively: Any, lively_dir: Path, tmp_path: Path, add: Weights, drop: list[str], message: str) -> None:
    weights = {n: w for n, w in (openai_names(lively) | add).items() if n not in drop}
    file = save(weights, tmp_path / "clip.pt")
    with pytest.raises(EncoderFormatError, match=message) as error:
        tower.import_encoder(file, tmp_path / "out", base=lively_dir, quick_gelu=True)
    assert str(file) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_file_that_is_no_clip(lively: Any, lively_dir: Path, tmp_path: Path) -> None:
    file = save(dict(lively.state_dict()), tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderFormatError, match="give the folder"):
        tower.import_encoder(file, tmp_path / "out", base=lively_dir)
    torch.save({"epoch": 3}, file)
    with pytest.raises(EncoderFormatError, match="something else than named tensors"):
        tower.import_encoder(file, tmp_path / "out", base=lively_dir)
