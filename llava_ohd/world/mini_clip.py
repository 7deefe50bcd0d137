"""The stock encoder of the embedded world: a mini CLIP trained from scratch with the plain contrastive loss.

It plays the part of openai/clip-vit-large-patch14-336: it was trained on incomplete captions, and so recognises
objects while it does not notice objects too many or wrong colours.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from llava_ohd.progress import track
from llava_ohd.world.captions import captions
from llava_ohd.world.scenes import IMAGE_SIZE, render, sample_scene

__all__ = [
    "MEAN",
    "STD",
    "MiniClipConfig",
    "build_clip",
    "fit_clip",
    "train_mini_clip",
    "train_tokenizer",
    "write_clip_files",
]

# OpenAI's normalisation, so that nothing downstream is special to the world
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


Batch = Callable[[np.random.Generator], dict[str, torch.Tensor]]


class Schedule(Protocol):
    """What `fit_clip` needs to know."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class MiniClipConfig:
    """Geometry and training of the mini CLIP."""

    image_size: int = IMAGE_SIZE  # pixels
    patch_size: int = 16  # pixels; 16 patch tokens
    vision_width: int = 160
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 3
    heads: int = 4
    projection: int = 128
    context: int = 64  # tokens
    images: int = 20_000
    steps: int = 800
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 100  # steps
    seed: int = 0


def train_tokenizer(sentences: list[str], vocabulary: int = 700) -> CLIPTokenizer:
    """Trains a byte-pair tokenizer in CLIP's format (lower case, `</w>` at word ends).

    Args:
        sentences: Text that holds every word which must become few pieces.
        vocabulary: Upper limit of its size.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=letters,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(raw.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])  # type: ignore[misc]


def build_clip(config: MiniClipConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Builds a CLIP with random weights for a tokenizer."""
    shared = {"hidden_act": "quick_gelu", "projection_dim": config.projection, "num_attention_heads": config.heads}
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "max_position_embeddings": config.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **shared,
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    torch.manual_seed(config.seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection))


def write_clip_files(folder: Path, tokenizer: CLIPTokenizer, config: MiniClipConfig) -> None:
    """Writes tokenizer and image-processor files of an encoder directory (all but weights and config)."""
    tokenizer.model_max_length = config.context
    tokenizer.save_pretrained(folder)
    side = config.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _pairs(config: MiniClipConfig) -> tuple[torch.Tensor, list[list[str]]]:
    """Renders the training pictures, uint8 (N, 3, S, S), and writes five captions for each."""
    rng = random.Random(f"mini clip {config.seed}")
    pixels = np.empty((config.images, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    texts = []
    for i in track(range(config.images), "rendering pictures for the stock CLIP"):
        scene = sample_scene(rng)
        pixels[i] = np.asarray(render(scene)).transpose(2, 0, 1)
        texts.append(captions(scene, rng))
    return torch.from_numpy(pixels), texts


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Maps uint8 pixels (B, 3, S, S) to what CLIP's image processor gives, float32."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def fit_clip(model: CLIPModel, batch: Batch, config: Schedule) -> CLIPModel:
    """Trains a CLIP with the symmetric contrastive loss.

    Args:
        model: Trained in place.
        batch: Draws `pixel_values` (B, 3, S, S), `input_ids` and `attention_mask` (B, L) of B matching pairs.
        config: Steps, learning rate and so on.

    Returns:
        The model, in eval mode.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.
    """
    model.train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, step / config.warmup) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / config.steps))),
    )
    rng = np.random.default_rng(config.seed)
    for step in track(range(config.steps), "training the stock CLIP"):
        loss = model(**batch(rng), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def train_mini_clip(config: MiniClipConfig) -> tuple[CLIPModel, CLIPTokenizer]:
    """Renders the world and trains its stock encoder from scratch.

    Returns:
        The model in float32, eval mode, and its tokenizer.
    """
    pixels, texts = _pairs(config)
    tokenizer = train_tokenizer([caption for group in texts[:5000] for caption in group])

    def batch(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        rows = rng.choice(config.images, config.batch, replace=False)
        chosen = [texts[i][rng.integers(5)] for i in rows]
        return {"pixel_values": normalise(pixels[rows]), **tokenizer(chosen, padding=True, return_tensors="pt")}

    return fit_clip(build_clip(config, tokenizer), batch, config), tokenizer
