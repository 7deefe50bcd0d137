"""What is exported in HF's layout: every source, loaded as its users do, computes what the source computes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava_ohd import tower
from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import IMAGE_TOKEN, SYSTEM, encode
from llava_ohd.llava15.convert import ConvertConfig, convert
from llava_ohd.llava15.convert.parity import pictures
from llava_ohd.llava15.convert.targets import CHAT_TEMPLATE
from llava_ohd.llava15.convert.tokenizer_files import write_for_hf
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.tower.weights import tower_digest
from llava_ohd.world import MINI_LLAMA

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
KINDS = ["ours-projector", "ours-lora", "ours-full", "llava-full", "old-full", "llava-lora", "llava-projector"]
KINDS += ["llava-unfrozen", "world-lora"]
REAL = Path(__file__).parents[3].parent / "shared/data/tokenizers/llama"


def export(source: Any, out: Path, **options: Any) -> Path:
    convert(ConvertConfig(source.folder, out, **source.options, **options))
    return out


def load(folder: Path) -> Any:
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_an_export_where_a_model_folder_belongs_is_told_from_it(source: Callable[[str], Any], tmp_path: Path) -> None:
    folder = export(source("ours-projector"), tmp_path / "out")
    with pytest.raises(ModelFormatError, match=f"convert_llava.py --source {folder} --to llava --out"):
        model_dir.read(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_hf_computes_what_the_source_does(kind: str, source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source(kind)
    folder = export(made, tmp_path / "out", dtype="float32")
    model = load(folder)
    ids = [model.config.image_token_index if number == IMAGE_TOKEN else number for number in made.ids]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), pixel_values=made.pixels).logits[0]
    vocabulary = made.logits.shape[1]
    torch.testing.assert_close(logits[:, :vocabulary], made.logits, rtol=1e-6, atol=1e-6)
    assert logits.shape[1] % 64 == 0
    assert logits.shape[1] >= vocabulary + 2
    assert (logits[:, vocabulary:].amax(1) < made.logits.amax(1)).all()  # an added token never wins


@pytest.mark.parametrize("kind", ["ours-lora", "llava-unfrozen", "world-lora"])
def test_verify_reports_every_step(kind: str, source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source(kind)
    rows = convert(ConvertConfig(made.folder, tmp_path / "out", **made.options, verify=True))
    assert [row.what for row in rows] == [
        "prompt ids",
        "pixels",
        "tower features",
        "projector output",
        "logits",
        "greedy texts",
    ]
    by_name = {row.what: row for row in rows}
    assert by_name["pixels"].difference == by_name["prompt ids"].difference == by_name["greedy texts"].difference == 0
    merged = kind == "world-lora"  # its weights are float16: merging rounds
    limit = 4 * torch.finfo(torch.float16).eps if merged else 1e-5
    assert by_name["logits"].difference <= limit * made.logits.abs().max() * 3
    assert (by_name["logits"].difference > 0) == merged or by_name["logits"].difference < 1e-5
    record = json.loads((tmp_path / "out/ohd.json").read_text())
    assert record["parity"]["pixels"] == {"difference": 0.0, "tolerance": 0}


def test_names_and_settings_are_llava_hfs(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-lora")
    folder = export(made, tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    starts = {".".join(name.split(".")[:2]) for name in weights}
    assert starts == {
        "language_model.model",
        "language_model.lm_head",
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    }
    config = json.loads((folder / "config.json").read_text())
    pieces = len(load_tokenizer(made.base))
    assert config["image_token_index"] == pieces
    assert config["pad_token_id"] == pieces + 1
    assert config["image_seq_length"] == 16
    assert config["text_config"]["rope_theta"] == 10000.0
    assert config["text_config"]["vocab_size"] == len(weights["language_model.lm_head.weight"])
    images = json.loads((folder / "preprocessor_config.json").read_text())
    assert images["image_processor_type"] == "LlavaImageProcessor"
    assert images["do_pad"] is True
    record = json.loads((folder / "ohd.json").read_text())
    inside = {name.removeprefix("vision_tower."): weight for name, weight in weights.items() if "vision_" in name}
    assert record["encoder"]["digest"] == tower_digest(inside) == tower.check(made.encoder).digest
    assert record["converted"]["stage"] == "lora"


def test_a_tied_head_is_not_stored(source: Callable[[str], Any], tmp_path: Path) -> None:
    folder = export(source("world-lora"), tmp_path / "out")
    assert "language_model.lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_added_rows_are_the_mean(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-projector")
    folder = export(made, tmp_path / "out")
    new = load_file(folder / "model.safetensors")["language_model.lm_head.weight"]
    old = load_file(made.base / "model.safetensors")["lm_head.weight"]
    assert torch.equal(new[: len(old)], old)
    assert (new[len(old) :] - old.mean(0)).abs().max() < 1e-8
    assert len(new) > len(old)


def test_the_processor_makes_llavas_prompt_and_pixels(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("ours-lora")
    folder = export(made, tmp_path / "out")
    processor: Any = AutoProcessor.from_pretrained(folder)
    image = {"type": "image", "image": pictures()[0]}
    text = {"type": "text", "text": "Is there a ball in the image?"}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [text, image]}],  # the image comes first all the same, as in LLaVA
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    image_token = json.loads((folder / "config.json").read_text())["image_token_index"]
    assert inputs["input_ids"][0].tolist() == [image_token if i == IMAGE_TOKEN else i for i in made.ids]
    assert torch.equal(inputs["pixel_values"], made.pixels)


def test_a_conversation_has_the_ids_it_was_trained_on(source: Callable[[str], Any], tmp_path: Path) -> None:
    made = source("world-lora")
    folder = export(made, tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    turns = [("<image>\nIs there a ball?", "No"), ("A red  cup\n?", "Yes, there is.")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids, _ = encode("v1", turns, load_tokenizer(made.base), image_tokens=1)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    assert tokenizer(text)["input_ids"] == [image_token if i == IMAGE_TOKEN else i for i in ids]
    own = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *messages], tokenize=False)
    assert own.startswith("Be brief. USER: ")
    assert SYSTEM not in own


TEXTS = ["A ball", "two  spaces", "  ", "\n\nlines \t tab", "日本 🎉 naïve", "x" * 50, "Is it? ASSISTANT:", "▁a 1234 b"]


@pytest.mark.parametrize("folder", [MINI_LLAMA, REAL], ids=["world", "Llama"])
def test_the_tokenizer_is_sentencepieces(folder: Path, tmp_path: Path) -> None:
    if not folder.is_dir():
        pytest.skip(f"the Llama tokenizer is not at {folder}")
    added = write_for_hf(folder, tmp_path, 100, CHAT_TEMPLATE)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, SYSTEM]:
        ids = ours([text])["input_ids"][0]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs(text)["input_ids"] == [1, *ids]
        assert theirs.decode(ids) == ours.decode(ids)
    assert added == {"<image>": len(ours), "<pad>": len(ours) + 1}
    assert theirs(f"{TEXTS[0]} <image>\nb", add_special_tokens=False)["input_ids"] == [
        *ours([f"{TEXTS[0]} "])["input_ids"][0],
        added["<image>"],
        *ours(["\nb"])["input_ids"][0],
    ]
