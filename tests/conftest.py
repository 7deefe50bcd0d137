"""Fixtures that several test folders share: a home of its own per test, and a tiny encoder and language model.

Both models are random and made in a second. They are shared by the whole session: copy the folder before changing it.
"""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported; the default run needs no network

KINDS = ("ball", "box", "cone", "cup", "star", "ring", "key", "lamp")
COLORS = ("red", "green", "blue", "yellow", "black", "white")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _sentences() -> list[str]:
    captions = [f"a {color} {kind}" for color in COLORS for kind in KINDS]
    captions += [f"a large {one} ball and a small {two} {kind}" for one in COLORS for two in COLORS for kind in KINDS]
    turns = [
        f"{SYSTEM} USER: Is there a {kind} in the image? ASSISTANT: {word}" for kind in KINDS for word in ("Yes", "No")
    ]
    return captions + turns + ["USER: Describe the image. ASSISTANT: There is a small box and a red cup in the image."]


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees or changes what is registered on this machine."""
    monkeypatch.setenv("LLAVA_OHD_HOME", str(tmp_path / "home"))


def _write_clip_tokenizer(folder: Path) -> int:
    """Trains a byte-pair vocabulary built like CLIP's (bytes, bytes at a word's end, merges, two specials)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=160, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([sentence.lower() for sentence in _sentences()], trainer)
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]  # strings before 0.20
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.joinpath("vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    folder.joinpath("merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    specials = {"bos_token": "<|startoftext|>"} | dict.fromkeys(
        ("eos_token", "pad_token", "unk_token"), "<|endoftext|>"
    )
    folder.joinpath("special_tokens_map.json").write_text(json.dumps(specials))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings | specials))
    return len(pieces)


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder: 32 px, patch 8 (16 patch tokens), width 32, 3 vision and 2 text layers, its own tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from llava_ohd import tower

    source = tmp_path_factory.mktemp("clip_files")
    pieces = _write_clip_tokenizer(source)
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    steps = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    colors = {"image_mean": mean, "image_std": deviation, "rescale_factor": 1 / 255}
    processor = {"image_processor_type": "CLIPImageProcessor"} | steps | sizes | colors
    source.joinpath("preprocessor_config.json").write_text(json.dumps(processor))
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32}
    text = {"num_hidden_layers": 2, "vocab_size": pieces, "bos_token_id": pieces - 2, "eos_token_id": pieces - 1}
    config = CLIPConfig(
        vision_config={"image_size": 32, "patch_size": 8, "num_hidden_layers": 3, **width},
        text_config={"pad_token_id": pieces - 1, **text, **width},
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
    destination = tmp_path_factory.mktemp("encoders") / "tiny"
    tower.write(model, destination, files_from=source, name="tiny", parents=[], config={"seed": 0})
    return destination


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model folder: Llama of width 32 and 2 layers, SentencePiece with unk 0, bos 1, eos 2, byte fallback.

    The tokenizer adds the bos token; `tokenizer.model` is there too, as older transformers versions need it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sentencepiece = pytest.importorskip("sentencepiece")  # not in the environments of `make test-old`
    folder = tmp_path_factory.mktemp("language_models") / "tiny_llama"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=512,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    folder.joinpath("tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    limits = {"model_max_length": 512, "clean_up_tokenization_spaces": False}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings | specials | limits))
    folder.joinpath("special_tokens_map.json").write_text(json.dumps(specials))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
        config = LlamaConfig(
            vocab_size=pieces, num_hidden_layers=2, max_position_embeddings=512, pad_token_id=0, **width
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
