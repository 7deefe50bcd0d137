"""Writes the embedded world as a COCO-format data folder, so that every later stage reads it as it reads COCO.

images/{train,dev,test,zero_shot}/000001.png   64 x 64 pixels
annotations/instances_{split}.json captions_{split}.json
pope/world_pope_{random,popular,adversarial}.json
llava/{pretrain,instruct}.json
synonyms.txt
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ohd.evals.pope_questions import build_questions, read_coco_objects, write_questions
from llava_ohd.files import atomic_folder, write_json, write_text
from llava_ohd.progress import track
from llava_ohd.world.captions import captions
from llava_ohd.world.kinds import KINDS, theme_of
from llava_ohd.world.llava_json import write_llava_json
from llava_ohd.world.scenes import IMAGE_SIZE, Scene, render, sample_scene, single_object_scene

__all__ = ["WorldConfig", "write_world"]

_SHUFFLE = "annotation order"


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of the splits."""

    train: int = 4000  # images
    dev: int = 200  # images
    test: int = 840  # images
    zero_shot: int = 400  # images of one object each, all kinds alike often
    pope_images: int = 500  # test images that POPE asks about, as many as POPE does; those with 3 objects or more
    questions: int = 4  # yes/no questions per training image, at most, with each answer
    seed: int = 0


def _scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    rng = random.Random(f"world {split} {seed}")
    for i in range(count):
        yield single_object_scene(KINDS[i % len(KINDS)], rng) if split == "zero_shot" else sample_scene(rng)


def _annotations(scene: Scene, image_id: int, first_id: int, rng: random.Random) -> list[dict[str, Any]]:
    """Returns COCO annotations in random order, so that nothing can be read off an object's place in the file."""
    items = rng.sample(scene.objects, len(scene.objects))
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": KINDS.index(item.kind) + 1,
            "bbox": [item.left, item.top, item.size, item.size],
            "area": item.size**2,
            "iscrowd": 0,
            "color": item.colour,
        }
        for i, item in enumerate(items)
    ]


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    rng = random.Random(f"{_SHUFFLE} {split} {seed}")
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    (folder / "images" / split).mkdir(parents=True)
    for image_id, scene in enumerate(track(_scenes(split, count, seed), f"drawing {split}", count), 1):
        name = f"{split}/{image_id:06d}.png"
        render(scene).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        instances += _annotations(scene, image_id, len(instances) + 1, rng)
        for text in captions(scene, rng):
            texts.append({"id": len(texts) + 1, "image_id": image_id, "caption": text})
    categories = [{"id": i, "name": kind, "supercategory": theme_of(kind)} for i, kind in enumerate(KINDS, 1)]
    annotations = folder / "annotations"
    write_json(
        annotations / f"instances_{split}.json", {"images": images, "annotations": instances, "categories": categories}
    )
    if split != "zero_shot":
        write_json(annotations / f"captions_{split}.json", {"images": images, "annotations": texts})


def write_world(folder: Path, config: WorldConfig) -> None:
    """Writes the whole data folder; it appears under its name only when it is complete.

    Args:
        folder: The data folder; an older one is replaced.
        config: Sizes and seed.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with atomic_folder(folder, marker="annotations") as new:
        for split in ("train", "dev", "test", "zero_shot"):
            _write_split(new, split, getattr(config, split), config.seed)
        annotations = new / "annotations"
        questions = build_questions(
            read_coco_objects(annotations / "instances_test.json"), n_images=config.pope_images, seed=config.seed
        )
        write_questions(new / "pope", "world", questions)
        write_llava_json(
            annotations / "instances_train.json",
            annotations / "captions_train.json",
            new / "llava" / "pretrain.json",
            new / "llava" / "instruct.json",
            seed=config.seed,
            n_questions=config.questions,
        )
        write_text(new / "synonyms.txt", "".join(f"{kind}\n" for kind in KINDS))
