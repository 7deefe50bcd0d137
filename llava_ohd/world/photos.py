"""Turns a folder of photographs into a data folder with the layout of the embedded world.

Expected in the folder (as in the project's test material):
    flickr8k/captions.txt, flickr8k/images/               photos with five captions each, no boxes
    coco128/annotations/instances_train2017.json, images/ photos with COCO instances, no captions
    coco128/pope/coco128_pope_{strategy}.json             questions on some of them
    ohd_caps_real/*_annotations.json, images/             rows of the authors with their photos
    pope_aokvqa_real/*_{strategy}.json, images/           POPE's A-OKVQA questions with their photos

What one source lacks is made from what it has: objects of Flickr8k are the COCO categories that a photo's captions
name (their boxes cover the photo), captions of COCO128 enumerate its instances. Photos that a question set or an
OHD-Caps row is about never come into train or dev; those of COCO128's questions make the test split.
"""

import csv
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import STRATEGIES
from llava_ohd.files import atomic_folder, read_json, read_jsonl, write_json, write_jsonl, write_text
from llava_ohd.ohd_caps.coco import CocoImage, Instance, describe, read_coco
from llava_ohd.ohd_caps.grammar import plural
from llava_ohd.ohd_caps.lexicon import Lexicon
from llava_ohd.ohd_caps.readers import read_rows, write_rows
from llava_ohd.ohd_caps.words import SYNONYMS
from llava_ohd.progress import track
from llava_ohd.world.llava_json import write_llava_json

__all__ = ["SOURCES", "prepare"]

SOURCES = ("flickr8k", "coco128", "ohd_caps_real", "pope_aokvqa_real")
_INSTANCES = "coco128/annotations/instances_train2017.json"
_CAPTIONS = "flickr8k/captions.txt"
_QUESTIONS = {"coco128": "coco128/pope", "aokvqa": "pope_aokvqa_real"}
_DEV = 0.1  # share of the photos without questions
_LLAVA_CAPTIONS = 2  # per photo, in pretrain.json


@dataclass(frozen=True)
class _Photo:
    """What is known about a photo, and its size in pixels."""

    image: CocoImage
    width: int
    height: int


def prepare(photos: Path, out: Path, seed: int) -> None:
    """Writes the data folder; it appears under its name only when it is complete. Photos are linked, not copied.

    Writes `annotations/{instances,captions}_{train,dev,test}.json`, `pope/{coco128,aokvqa}/`,
    `ohd_caps_real/test.jsonl`, `llava/{pretrain,instruct}.json`, `synonyms.txt` and the links `images/SOURCE`.

    Args:
        photos: The folder of photographs.
        out: The data folder; an older one is replaced.
        seed: Seed of the split and of LLaVA's questions.

    Raises:
        DataFormatError: something expected is missing or of another format.
        ImageError: a photo is missing or truncated.
        StorageError: the disk is full or not writable.
    """
    _check_layout(photos)
    questions = {name: _read_questions(photos, name) for name in _QUESTIONS}
    rows = [
        replace(row, image=f"ohd_caps_real/{row.image}")
        for path in sorted((photos / "ohd_caps_real").glob("*_annotations.json"))
        for row in read_rows(path)
    ]
    asked = {str(row["image"]) for rows_of_set in questions.values() for row in _all_rows(rows_of_set)}
    _check_photos(photos, sorted(asked | {row.image for row in rows}))
    splits = _split(_photos(photos, held_out={Path(row.image).stem for row in rows}), asked, seed)
    with atomic_folder(out, marker="annotations") as new:
        (new / "images").mkdir()
        for source in SOURCES:
            (new / "images" / source).symlink_to((photos / source / "images").resolve())
        for split, members in splits.items():
            _write_split(new / "annotations", split, members, read_json(photos / _INSTANCES)["categories"])
        for name, files in questions.items():
            for strategy, set_rows in files.items():
                write_jsonl(new / "pope" / name / f"{name}_pope_{strategy}.json", set_rows)
        write_rows(new / "ohd_caps_real" / "test.jsonl", rows)
        write_text(new / "synonyms.txt", "".join(_synonyms(photos)))
        write_llava_json(
            new / "annotations" / "instances_train.json",
            new / "annotations" / "captions_train.json",
            new / "llava" / "pretrain.json",
            new / "llava" / "instruct.json",
            seed=seed,
            n_captions=_LLAVA_CAPTIONS,
        )


def _check_layout(photos: Path) -> None:
    needed = [_INSTANCES, _CAPTIONS, *_QUESTIONS.values(), *(f"{source}/images" for source in SOURCES)]
    missing = [name for name in needed if not (photos / name).exists()]
    if not list((photos / "ohd_caps_real").glob("*_annotations.json")):
        missing.append("ohd_caps_real/*_annotations.json")
    if missing:
        raise DataFormatError(f"{photos} is not a folder of photos as expected: it lacks {', '.join(missing)}")


def _read_questions(photos: Path, name: str) -> dict[str, list[dict[str, object]]]:
    """Reads the three files of a question set; image names become relative to the folder of all images."""
    folder = photos / _QUESTIONS[name]
    source = _QUESTIONS[name].split("/")[0]
    files = {}
    for strategy in STRATEGIES:
        found = sorted(folder.glob(f"*pope*_{strategy}.json"))
        if len(found) != 1:
            raise DataFormatError(f"{folder} has {len(found)} files *pope*_{strategy}.json; exactly one is expected")
        rows = read_jsonl(found[0])
        if not all(isinstance(row.get("image"), str) for row in rows):
            raise DataFormatError(f"{found[0]} has rows without image; POPE's format is expected")
        files[strategy] = [{**row, "image": f"{source}/{row['image']}"} for row in rows]
    return files


def _all_rows(files: dict[str, list[dict[str, object]]]) -> Iterator[dict[str, object]]:
    return (row for rows in files.values() for row in rows)


def _check_photos(photos: Path, names: Iterable[str]) -> None:
    for name in names:
        tower.open_image(_path(photos, name))


def _path(photos: Path, name: str) -> Path:
    source, _, file_name = name.partition("/")
    return photos / source / "images" / file_name


def _photos(photos: Path, held_out: set[str]) -> list[_Photo]:
    """Reads every photo of Flickr8k and COCO128, but those of OHD-Caps rows (held_out: their names without suffix)."""
    coco = [
        replace(
            image,
            file_name=f"coco128/{image.file_name}",
            captions=(f"a photo of {describe(image.instances)}",) if image.instances else (),
        )
        for image in read_coco(photos / _INSTANCES)
    ]
    lexicon = Lexicon(_category_names(photos))
    flickr = [
        CocoImage(f"flickr8k/{name}", _instances(captions, lexicon), tuple(captions))
        for name, captions in _read_flickr(photos / _CAPTIONS).items()
        if Path(name).stem.split("_")[0] not in held_out
    ]
    found = []
    for image in track([*coco, *flickr], "reading photos"):
        width, height = tower.open_image(_path(photos, image.file_name)).size
        found.append(_Photo(image, width, height))
    return found


def _category_names(photos: Path) -> list[str]:
    return [row["name"] for row in read_json(photos / _INSTANCES)["categories"]]


def _read_flickr(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["image", "caption"]:
            raise DataFormatError(f"{path} begins with {reader.fieldnames}; the columns image,caption are expected")
        for row in reader:
            caption = " ".join((row["caption"] or "").split())
            if not row["image"] or not caption:
                raise DataFormatError(f"{path} line {reader.line_num} has no image or no caption")
            captions.setdefault(row["image"], []).append(caption)
    if not captions:
        raise DataFormatError(f"{path} has no rows; captions of photos are expected")
    return captions


def _instances(captions: Iterable[str], lexicon: Lexicon) -> tuple[Instance, ...]:
    """The objects that captions surely name, the most often named first; a box is filled in when the size is known."""
    counts = Counter(
        name
        for caption in captions
        for name in sorted({mention.name for mention in lexicon.mentions(caption) if mention.clean})
    )
    return tuple(Instance(name, (0, 0, 0, 0)) for name, _ in counts.most_common())


def _split(photos: list[_Photo], asked: set[str], seed: int) -> dict[str, list[_Photo]]:
    test = [photo for photo in photos if photo.image.file_name in asked]
    others = [photo for photo in photos if photo.image.file_name not in asked]
    random.Random(seed).shuffle(others)
    n_dev = round(_DEV * len(others))
    return {"train": others[n_dev:], "dev": others[:n_dev], "test": test}


def _write_split(folder: Path, split: str, photos: list[_Photo], categories: list[dict[str, object]]) -> None:
    ids = {row["name"]: row["id"] for row in categories}
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for image_id, photo in enumerate(photos, 1):
        name = photo.image.file_name
        images.append({"id": image_id, "file_name": name, "width": photo.width, "height": photo.height})
        for instance in photo.image.instances:
            box = list(instance.box) if any(instance.box) else [0, 0, photo.width, photo.height]
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": ids[instance.name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(instance.crowd),
                }
            )
        for caption in photo.image.captions:
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption})
    write_json(
        folder / f"instances_{split}.json", {"images": images, "annotations": instances, "categories": categories}
    )
    write_json(folder / f"captions_{split}.json", {"images": images, "annotations": captions})


def _synonyms(photos: Path) -> Iterator[str]:
    """Lines in CHAIR's format, the category first."""
    for name in _category_names(photos):
        yield ", ".join(dict.fromkeys([name, plural(name), *SYNONYMS.get(name, "").split()])) + "\n"
