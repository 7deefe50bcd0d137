"""An encoder goes into a live model, or an error says why not; a tower that was reset is found."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, ModelFormatError


def other_encoder(
    source: Path, destination: Path, vision: dict[str, Any] | None = None, pixels: dict[str, Any] | None = None
) -> Path:
    """An encoder with other weights, and with another vision config or preprocessing where one is given."""
    from transformers import CLIPConfig, CLIPModel

    record = json.loads((source / "config.json").read_text())
    record["vision_config"] |= vision or {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig.from_dict(record))
    files = destination.parent / "files"
    files.mkdir(exist_ok=True)
    for file in source.glob("*.json"):
        text = file.read_text()
        if vision and file.name == "preprocessor_config.json":
            text = text.replace("32", str(vision.get("image_size", 32)))
        if pixels and file.name == "preprocessor_config.json":
            text = json.dumps(json.loads(text) | pixels)
        (files / file.name).write_text(text)
    tower.write(model, destination, files_from=files, name=destination.name, parents=[], config={})
    return destination


@pytest.fixture
def another(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    return other_encoder(tiny_encoder_dir, tmp_path / "another")


def hf_llava(encoder: Path) -> Any:
    """The model of transformers around an encoder; its language model is random."""
    from transformers import CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionModel.from_pretrained(encoder)  # not by the code under test
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    text = LlamaConfig(vocab_size=64, num_hidden_layers=2, pad_token_id=0, **width)
    config = LlavaConfig(vision_config=vision.config, text_config=text, image_token_index=63, image_seq_length=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    live(model).load_state_dict(vision.state_dict())
    return model


def live(model: Any) -> Any:
    """The tower inside: on transformers 4.37 at the top, later one level deeper, as in the original code."""
    return getattr(model, "model", model).vision_tower


class LlavaLike(torch.nn.Module):
    """The three attributes of the original code's model that a swap touches."""

    def __init__(self, encoder: Path, **more: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(mm_vision_tower=str(encoder), mm_vision_select_layer=-2, mm_hidden_size=32)
        self.model = torch.nn.Module()
        self.model.config = self.config
        self.model.vision_tower = tower.OHDVisionTower(encoder, self.config, **more)
        self.model.mm_projector = torch.nn.Linear(32, 8)


def logits(model: Any) -> torch.Tensor:
    before_4_46 = not hasattr(model, "model")  # then one token stood for the whole image
    ids = torch.tensor([[1, *[63] * (1 if before_4_46 else 16), 5, 6]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits


def test_swap_into_transformers(tiny_encoder_dir: Path, another: Path) -> None:
    model, expected = hf_llava(tiny_encoder_dir), logits(hf_llava(another))
    before = logits(model)
    encoder = tower.swap(model, another)
    assert encoder == tower.check(another) == tower.verify(model, another)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(before, expected)
    with pytest.raises(EncoderFormatError, match=r"is not tiny .* weights differ, first embeddings\.class_embedding"):
        tower.verify(model, tiny_encoder_dir)
    tower.swap(model, tower.check(tiny_encoder_dir))
    assert torch.equal(logits(model), before)


def test_swap_survives_saving(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = hf_llava(tiny_encoder_dir)
    tower.swap(model, another)
    model.save_pretrained(tmp_path / "saved")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    tower.verify(again, another)
    assert torch.equal(logits(again), logits(model))


def test_swap_takes_the_activation_along(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    """The same weights under another activation are another tower."""
    gelu = other_encoder(tiny_encoder_dir, tmp_path / "gelu", {"hidden_act": "gelu"})
    quick = other_encoder(tiny_encoder_dir, tmp_path / "quick")
    assert tower.check(gelu).digest == tower.check(quick).digest
    model = hf_llava(quick)
    with pytest.raises(EncoderFormatError, match=r"digest \w+\): hidden_act is quick_gelu, not gelu\. The model"):
        tower.verify(model, gelu)
    tower.swap(model, gelu)
    assert model.config.vision_config.hidden_act == "gelu"
    assert torch.equal(logits(model), logits(hf_llava(gelu)))


@pytest.mark.parametrize("make", [hf_llava, LlavaLike])
def test_type_freezing_and_mode_follow_the_old_tower(make: Any, tiny_encoder_dir: Path, another: Path) -> None:
    model = make(tiny_encoder_dir).to(torch.bfloat16).train()
    model.requires_grad_(False)
    tower.swap(model, another)
    new = live(model)
    assert {weight.dtype for weight in new.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in new.parameters())
    assert new.training
    model.requires_grad_(True).float()
    tower.verify(model, another)  # bfloat16 on its way, and still that encoder
    with pytest.raises(EncoderFormatError, match="weights differ"):
        tower.verify(model, another, exact=True)
    tower.swap(model, tiny_encoder_dir)
    assert all(weight.requires_grad for weight in live(model).parameters())


def test_attention_follows_the_old_tower(tiny_encoder_dir: Path, another: Path) -> None:
    model = hf_llava(tiny_encoder_dir)
    if not hasattr(live(model), "set_attn_implementation"):
        pytest.skip("this transformers version has one implementation of CLIP's attention")
    live(model).set_attn_implementation("eager")
    tower.swap(model, another)
    assert live(model).config._attn_implementation == "eager"


# --- the original code's layout


def test_swap_into_the_original_layout(tiny_encoder_dir: Path, another: Path) -> None:
    model, pixels = LlavaLike(tiny_encoder_dir), torch.rand(1, 3, 32, 32)
    encoder = tower.swap(model, another)
    assert (model.config.mm_vision_tower, model.config.mm_hidden_size) == (str(encoder.path), 32)
    assert torch.equal(model.model.vision_tower(pixels), tower.OHDVisionTower.of(another)(pixels))


def test_swap_under_fsdp_keeps_the_list(tiny_encoder_dir: Path, another: Path) -> None:
    model = LlavaLike(tiny_encoder_dir)
    old = model.model.vision_tower
    del model.model.vision_tower
    model.model.vision_tower = [old]
    tower.swap(model, another)
    assert isinstance(model.model.vision_tower, list)
    tower.verify(model, another)


def test_a_tower_still_to_be_loaded(tiny_encoder_dir: Path, another: Path) -> None:
    model = LlavaLike(tiny_encoder_dir, delay_load=True).to(torch.bfloat16)
    with pytest.raises(ModelFormatError, match="is not loaded yet"):
        tower.verify(model, tiny_encoder_dir)
    tower.swap(model, another)
    assert model.model.vision_tower.dtype == torch.bfloat16
    tower.verify(model, another)


def test_selection_and_scales_stay(tiny_encoder_dir: Path, another: Path) -> None:
    model = LlavaLike(tiny_encoder_dir)
    settings = {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
    model.model.vision_tower = tower.OHDVisionTower(tiny_encoder_dir, SimpleNamespace(**settings))
    tower.swap(model, another)
    assert (model.model.vision_tower.select_layer, model.model.vision_tower.select_feature) == (-1, "cls_patch")
    scales = SimpleNamespace(mm_vision_select_layer=-2, s2=True, s2_scales="32,64")
    model.model.vision_tower = tower.OHDVisionTower(tiny_encoder_dir, scales)
    tower.swap(model, another)
    assert (model.model.vision_tower.s2_scales, model.config.mm_hidden_size) == ([32, 64], 64)


# --- refusals


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_size": 64}, "hidden size 32 .* and 64"),
        ({"num_hidden_layers": 2}, "layers 3 .* and 2"),
        ({"patch_size": 16}, "patches 16 .* and 4"),
        ({"image_size": 64, "patch_size": 16}, "image size 32 .* and 64"),
    ],
)
@pytest.mark.parametrize("make", [hf_llava, LlavaLike])
def test_another_geometry(
    make: Any, vision: dict[str, int], message: str, tiny_encoder_dir: Path, tmp_path: Path
) -> None:
    model, wrong = make(tiny_encoder_dir), other_encoder(tiny_encoder_dir, tmp_path / "wrong", vision)
    with pytest.raises(EncoderFormatError, match=message):
        tower.swap(model, wrong)
    tower.verify(model, tiny_encoder_dir)


def test_one_weight_decides(tiny_encoder_dir: Path) -> None:
    model = hf_llava(tiny_encoder_dir)
    with torch.no_grad():
        core = getattr(live(model), "vision_model", live(model))
        core.get_parameter("encoder.layers.2.mlp.fc1.bias")[0] += 1e-4
    with pytest.raises(EncoderFormatError, match=r"1 weights differ, first encoder\.layers\.2\.mlp\.fc1\.bias"):
        tower.verify(model, tiny_encoder_dir)


def test_models_without_a_tower_to_swap(tiny_encoder_dir: Path) -> None:
    with pytest.raises(ModelFormatError, match="Linear has no vision tower"):
        tower.swap(torch.nn.Linear(2, 2), tiny_encoder_dir)
    quantised, empty = hf_llava(tiny_encoder_dir), hf_llava(tiny_encoder_dir).to("meta")
    weight = torch.zeros(32, dtype=torch.int8)
    core = getattr(live(quantised), "vision_model", live(quantised))
    core.embeddings.class_embedding = torch.nn.Parameter(weight, requires_grad=False)
    for model, message in ((quantised, "quantised"), (empty, "meta device")):
        with pytest.raises(ModelFormatError, match=message):
            tower.swap(model, tiny_encoder_dir)


@pytest.mark.parametrize("make", [hf_llava, LlavaLike])
def test_a_partly_frozen_tower_stays_so(make: Any, tiny_encoder_dir: Path, another: Path) -> None:
    model = make(tiny_encoder_dir)
    for name, weight in live(model).named_parameters():
        weight.requires_grad_("layers.2" in name)
    before = [name for name, weight in live(model).named_parameters() if weight.requires_grad]
    tower.swap(model, another)
    assert [name for name, weight in live(model).named_parameters() if weight.requires_grad] == before
    assert len(before) == 16


@pytest.mark.parametrize("make", [hf_llava, LlavaLike])
def test_types_follow_weight_by_weight(make: Any, tiny_encoder_dir: Path, another: Path) -> None:
    model = make(tiny_encoder_dir).to(torch.bfloat16)
    for name, module in live(model).named_modules():
        if "norm" in name:
            module.float()
    before = {name: weight.dtype for name, weight in live(model).named_parameters()}
    tower.swap(model, another)
    assert {name: weight.dtype for name, weight in live(model).named_parameters()} == before
    assert len(set(before.values())) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
def test_adapters_on_the_tower_are_not_thrown_away(tiny_encoder_dir: Path, another: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(hf_llava(tiny_encoder_dir), config)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    with pytest.raises(ModelFormatError, match=r"adapters of peft \(.*base_layer.*merge_and_unload"):
        tower.swap(model, another)
    after = {name: (weight, weight.requires_grad) for name, weight in model.named_parameters()}
    assert after.keys() == before.keys()
    assert all(
        torch.equal(before[name][0], now) and before[name][1] == trained for name, (now, trained) in after.items()
    )
    with pytest.raises(EncoderFormatError, match=r"weights differ.*adapters of peft are on it"):
        tower.verify(model, tiny_encoder_dir)
    tower.swap(model.merge_and_unload(), another)
    words_only = peft.LoraConfig(target_modules=r".*language_model.*q_proj", r=2)
    tower.swap(peft.get_peft_model(hf_llava(tiny_encoder_dir), words_only), another)


def test_quantised_by_bitsandbytes(tiny_encoder_dir: Path, another: Path, tmp_path: Path) -> None:
    """Its first weight, the class embedding, stays in floating point."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    hf_llava(tiny_encoder_dir).save_pretrained(tmp_path / "llava")

    def quantised(**more: Any) -> Any:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **more)
        place = {"quantization_config": config, "device_map": {"": "cpu"}}
        return LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava", **place)

    model = quantised()
    assert next(live(model).parameters()).is_floating_point()
    with pytest.raises(
        ModelFormatError, match=r"quantised \(.*is Params4bit of torch\.uint8\); load it with the tower left"
    ):
        tower.swap(model, another)
    assert "Linear4bit" in {type(module).__name__ for module in live(model).modules()}
    spared = quantised(llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"])
    tower.swap(spared, another)


def test_a_tower_that_is_partly_offloaded(tiny_encoder_dir: Path, another: Path) -> None:
    model = hf_llava(tiny_encoder_dir)
    live(model).get_submodule("vision_model" if hasattr(live(model), "vision_model") else "").encoder.layers[2].to(
        "meta"
    )
    with pytest.raises(ModelFormatError, match=r"layers\.2.* is not in memory .*without offloading by device_map"):
        tower.swap(model, another)


# --- numbers that the type of the model cannot hold


@pytest.mark.parametrize("make", [hf_llava, LlavaLike])
def test_beyond_float16(make: Any, tiny_encoder_dir: Path, tmp_path: Path) -> None:
    loud: Any = tower.load(tiny_encoder_dir)
    with torch.no_grad():
        loud.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] = 1e5
    tower.write(loud, tmp_path / "loud", files_from=tiny_encoder_dir, name="loud", parents=[], config={})
    model = make(tiny_encoder_dir).half()
    with pytest.raises(EncoderFormatError, match=r"fc1\.weight of the tower holds Inf.*float16.*bfloat16 or float32"):
        tower.swap(model, tmp_path / "loud")
    tower.verify(model, tiny_encoder_dir)  # the old one is still there
    tower.swap(model.to(torch.bfloat16), tmp_path / "loud")
    model.half()
    with pytest.raises(EncoderFormatError, match="holds Inf"):
        tower.verify(model, tmp_path / "loud")


# --- pixels


@pytest.fixture
def grey(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """An encoder that was trained with another mean."""
    return other_encoder(tiny_encoder_dir, tmp_path / "grey", pixels={"image_mean": [0.5] * 3})


@pytest.mark.parametrize("ready", [True, False])
def test_other_pixels_in_the_original_layout(tiny_encoder_dir: Path, grey: Path, ready: bool) -> None:
    """`image_processor`, which load_pretrained_model has given away, would be the old one."""
    model = LlavaLike(tiny_encoder_dir, delay_load=not ready)
    with pytest.raises(EncoderFormatError, match=r"image_mean \[0\.48.*\(the model's tower\) and \[0\.5, 0\.5, 0\.5\]"):
        tower.swap(model, grey)
    assert model.model.vision_tower.vision_tower_name == str(tiny_encoder_dir)
    tower.swap(model, grey, preprocessing="changed")
    assert list(model.model.vision_tower.image_processor.image_mean) == [0.5] * 3
    tower.swap(LlavaLike(grey), grey)


class Words:
    """What a LlavaProcessor has of images."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor


@pytest.mark.parametrize("wrap", [Words, lambda processor: processor])
def test_other_pixels_in_transformers(tiny_encoder_dir: Path, another: Path, grey: Path, wrap: Any) -> None:
    model, inner = hf_llava(tiny_encoder_dir), tower.load_processor(tiny_encoder_dir)
    with pytest.raises(EncoderFormatError, match=r"\(OpenAI's CLIP\) and .*is not known: give it by processor="):
        tower.swap(model, grey)
    with pytest.raises(EncoderFormatError, match=r"image_mean .*\(the processor\) and .*preprocessing='changed'"):
        tower.swap(model, grey, processor=wrap(inner))
    tower.verify(model, tiny_encoder_dir)
    tower.swap(model, another, processor=wrap(inner))
    tower.swap(model, grey, processor=wrap(inner), preprocessing="changed")
    image = Image.fromarray(numpy.arange(3600, dtype=numpy.uint8).reshape(30, 40, 3))
    expected = tower.process_images([image], tower.load_processor(grey))
    assert torch.equal(tower.process_images([image], inner), expected)
    tower.swap(model, grey, processor=wrap(inner))
    with pytest.raises(ValueError, match="preprocessing is 'other'"):
        tower.swap(model, grey, preprocessing="other")  # type: ignore[arg-type]


def test_a_folder_that_changed_since_it_was_checked(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    other_encoder(tiny_encoder_dir, tmp_path / "e")
    seen = tower.check(tmp_path / "e")
    tower.write(
        tower.load(tiny_encoder_dir), tmp_path / "e", files_from=tiny_encoder_dir, name="e", parents=[], config={}
    )
    with pytest.raises(EncoderFormatError, match="it had"):
        tower.swap(hf_llava(tiny_encoder_dir), seen)
