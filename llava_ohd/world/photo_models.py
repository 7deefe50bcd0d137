"""A small CLIP and a small Llama for a folder of photos, trained from scratch with the real tokenizers.

They take the place of the mini models where the main job runs on photographs: CLIP's own byte-pair vocabulary and
preprocessing, Llama's own SentencePiece vocabulary. From a thousand photos they learn next to nothing; the point is
that no stage is special to rendered scenes.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel, CLIPTokenizer

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json
from llava_ohd.llava15.conversation import IMAGE, encode
from llava_ohd.llava15.tokenizer import SentencePieceTokenizer, load_tokenizer
from llava_ohd.ohd_caps.coco import CocoImage, read_coco
from llava_ohd.progress import track
from llava_ohd.world.mini_clip import MiniClipConfig, build_clip, fit_clip
from llava_ohd.world.mini_llama import MiniLlamaConfig, build_llama, fit_llama, padded

__all__ = ["PhotoModelsConfig", "build_photo_models"]

CLIP_FILES = "clip_vitb32_no_weights"
LLAMA_FILES = "llama"


@dataclass(frozen=True)
class PhotoModelsConfig:
    """Geometry and training of both models; small enough for minutes on two cores."""

    clip: MiniClipConfig = field(
        default_factory=lambda: MiniClipConfig(
            image_size=224,
            patch_size=32,
            vision_width=96,
            vision_layers=3,
            text_width=64,
            text_layers=2,
            projection=64,
            context=77,
            steps=150,
            batch=64,
            warmup=20,
        )
    )
    llama: MiniLlamaConfig = field(
        default_factory=lambda: MiniLlamaConfig(
            width=64, layers=2, heads=4, intermediate=176, context=512, steps=60, batch=8, warmup=10
        )
    )


def _folder(tokenizers: Path, name: str, needed: str) -> Path:
    folder = tokenizers / name
    if not (folder / needed).is_file():
        raise DataFormatError(
            f"{folder / needed} does not exist; --tokenizers takes a folder that holds {CLIP_FILES}/ (tokenizer and "
            f"preprocessor files of openai/clip-vit-base-patch32) and {LLAMA_FILES}/tokenizer.model"
        )
    return folder


def build_photo_models(data: Path, tokenizers: Path, out: Path, config: PhotoModelsConfig) -> None:
    """Trains both models on the training split of a data folder.

    Args:
        data: Folder with annotations/ and llava/, as `photos.prepare` writes it.
        tokenizers: Folder with the real tokenizers.
        out: `out/clip` becomes an encoder directory, `out/llama` a Llama directory.
        config: Geometry and training.

    Raises:
        DataFormatError: no tokenizers, or no captions to train on.
        ImageError: a photo is missing or truncated.
    """
    clip_files = _folder(tokenizers, CLIP_FILES, "vocab.json")
    llama_file = _folder(tokenizers, LLAMA_FILES, "tokenizer.model") / "tokenizer.model"
    annotations = data / "annotations"
    images = read_coco(annotations / "instances_train.json", annotations / "captions_train.json")
    images = [image for image in images if image.captions]
    model = _train_clip(images, data / "images", clip_files, config.clip)
    tower.write(model, out / "clip", files_from=clip_files, name="photos-stock", parents=[], config=vars(config.clip))
    (out / "llama").mkdir(parents=True, exist_ok=True)
    shutil.copy(llama_file, out / "llama")
    tokenizer = load_tokenizer(out / "llama")
    llama = build_llama(config.llama, len(tokenizer))
    fit_llama(llama, _conversations(data, images, tokenizer, config.llama), config.llama)
    llama.save_pretrained(out / "llama")


def _train_clip(images: list[CocoImage], folder: Path, files: Path, config: MiniClipConfig) -> CLIPModel:
    tokenizer = CLIPTokenizer.from_pretrained(files)
    processor = tower.load_processor(files)
    pixels = torch.stack(
        [
            torch.as_tensor(np.asarray(processor(tower.open_image(folder / image.file_name))["pixel_values"][0]))
            for image in track(images, "reading photos")
        ]
    )

    def batch(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        rows = rng.choice(len(images), min(config.batch, len(images)), replace=False)
        texts = [images[i].captions[rng.integers(len(images[i].captions))] for i in rows]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=config.context, return_tensors="pt")
        return {"pixel_values": pixels[rows], **tokens}

    return fit_clip(build_clip(config, tokenizer), batch, config)


def _conversations(
    data: Path, images: list[CocoImage], tokenizer: SentencePieceTokenizer, config: MiniLlamaConfig
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields batches of the instruction rows with a caption where the image would be."""
    captions = {image.file_name: image.captions for image in images}
    rows = [row for row in read_json(data / "llava" / "instruct.json") if row.get("image") in captions]
    rng = np.random.default_rng(config.seed)
    while True:
        batch = []
        for i in rng.integers(len(rows), size=config.batch):
            caption = captions[rows[i]["image"]][0]
            said = [turn["value"].replace(IMAGE, caption) for turn in rows[i]["conversations"]]
            ids, labels = encode("v1", list(zip(said[::2], said[1::2], strict=True)), tokenizer)
            batch.append((ids[: config.context], labels[: config.context]))
        yield padded(batch, config.context_weight)
