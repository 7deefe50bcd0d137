"""Writes LLaVA's two training files from any pair of COCO files.

Pretraining pairs an image with a human caption. Instruction rows are a description made from the instances, and yes/no
questions whose absent objects are chosen as POPE chooses them (random, popular and adversarial in turn).

Questions and description are conversations of their own: in one, the answers could be read off the description
instead of the image. The numbers of "yes" and of "no" in a conversation are drawn independently from the same
distribution, so that answers given do not tell those to come, while the file as a whole is balanced.

Source: haotian-liu/LLaVA docs/Finetune_Custom_Data.md @ c121f04 for the format.
"""

import random
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import STRATEGIES, Sampler, question_text
from llava_ohd.files import write_json
from llava_ohd.ohd_caps.coco import CocoImage, describe, image_objects, read_coco

__all__ = ["DESCRIBE", "instruct_rows", "pretrain_rows", "write_llava_json"]

DESCRIBE = "Describe this image."


def write_llava_json(
    instances: Path,
    captions: Path,
    out_pretrain: Path,
    out_instruct: Path,
    *,
    seed: int,
    n_captions: int = 1,
    n_questions: int = 4,
    sampler: Sampler | None = None,
) -> None:
    """Writes `pretrain.json` and `instruct.json`, each atomically.

    Args:
        instances: COCO `instances_*.json`; images are named relative to one image folder.
        captions: COCO `captions_*.json` of the same images.
        out_pretrain: Where the caption rows go.
        out_instruct: Where descriptions and questions go.
        seed: Seed of every choice.
        n_captions: Captions used per image, at most.
        n_questions: Questions per image, at most, with the answer "Yes"; as many with "No".
        sampler: Chooses absent objects; default: one over these images.

    Raises:
        DataFormatError: a file is not COCO, or no image has a caption or an object.
        StorageError: the disk is full or not writable.
    """
    images = read_coco(instances, captions)
    pretrain = pretrain_rows(images, seed=seed, n_captions=n_captions)
    instruct = instruct_rows(images, seed=seed, n_questions=n_questions, sampler=sampler)
    for path, rows, missing in ((out_pretrain, pretrain, "caption"), (out_instruct, instruct, "object")):
        if not rows:
            raise DataFormatError(f"{path} would have no rows: no image of {instances} has any {missing}")
    write_json(out_pretrain, pretrain)
    write_json(out_instruct, instruct)


def pretrain_rows(images: list[CocoImage], *, seed: int, n_captions: int = 1) -> list[dict[str, Any]]:
    """Returns up to `n_captions` rows per image, "<image>" answered by a human caption, images in order."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for image in images:
        distinct = list(dict.fromkeys(image.captions))
        for text in rng.sample(distinct, min(n_captions, len(distinct))):
            rows.append(_row(len(rows), image, [("<image>", text)]))
    return rows


def instruct_rows(
    images: list[CocoImage], *, seed: int, n_questions: int = 4, sampler: Sampler | None = None
) -> list[dict[str, Any]]:
    """Returns per image with objects one description row and, with `n_questions`, one row of yes/no questions."""
    rng = random.Random(seed)
    sampler = sampler or Sampler(image_objects(images), seed)
    rows: list[dict[str, Any]] = []
    for image in images:
        if not image.instances:
            continue
        rows.append(_row(len(rows), image, [(DESCRIBE, describe(image.instances))]))
        if n_questions:
            rows.append(_row(len(rows), image, _questions(image, n_questions, sampler, rng)))
    return rows


def _questions(image: CocoImage, most: int, sampler: Sampler, rng: random.Random) -> list[tuple[str, str]]:
    most = min(most, len(image.objects))
    n_yes, n_no = _two_counts(most, rng)
    present = rng.sample(image.objects, n_yes)
    absent: list[str] = []
    for _ in range(n_no):
        beside, strategy = rng.choice(image.objects), rng.choice(STRATEGIES)
        try:
            absent.append(sampler.absent(image.objects, beside, strategy, absent))
        except DataFormatError:
            break  # every known object is in this image or was asked for
    turns = [(question_text(name), "Yes") for name in present] + [(question_text(name), "No") for name in absent]
    if not turns:
        turns = [(question_text(rng.choice(image.objects)), "Yes")]
    rng.shuffle(turns)
    return turns


def _two_counts(most: int, rng: random.Random) -> tuple[int, int]:
    """Two independent numbers from 0 to `most`, not both 0."""
    while True:
        counts = rng.randint(0, most), rng.randint(0, most)
        if any(counts):
            return counts


def _row(number: int, image: CocoImage, turns: list[tuple[str, str]]) -> dict[str, Any]:
    conversations = []
    for index, (prompt, answer) in enumerate(turns):
        with_image = prompt if index or prompt == "<image>" else f"<image>\n{prompt}"
        conversations += [{"from": "human", "value": with_image}, {"from": "gpt", "value": answer}]
    return {"id": f"{number:06d}", "image": image.file_name, "conversations": conversations}
