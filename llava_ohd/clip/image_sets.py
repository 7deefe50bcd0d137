"""Labelled images as their makers publish them: folders, binaries, pickles, or a `datasets` folder. Nothing is fetched.

| layout | found by | sets |
|---|---|---|
| class folders, also under the split's name | subfolders that hold images | EuroSAT, ImageNet (WordNet ids), any |
| cifar-10-batches-py, cifar-100-python | `batches.meta`, `meta` (pickles) | CIFAR-10, CIFAR-100 |
| cifar-10-batches-bin, cifar-100-binary | `batches.meta.txt`, `fine_label_names.txt` | CIFAR-10, CIFAR-100 |
| stl10_binary | `class_names.txt` and `test_X.bin` | STL10 |
| GTSRB/Final_Test | `GT-final_test.csv` | GTSRB |
| `save_to_disk` of `datasets` | `dataset_dict.json`, `state.json` | any |
| parquet files as on the Hub | `*.parquet` whose names begin with the split | any |

Source: cs.toronto.edu/~kriz/cifar.html, cs.stanford.edu/~acoates/stl10, benchmark.ini.rub.de (formats as described
there); torchvision.datasets for the folder names.
"""

import csv
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import DataFormatError

__all__ = ["LabelledImages", "read_image_set"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
_SPLITS = ("test", "validation", "val", "valid")  # what is measured on, in the order of preference
_NUMPY = {"_reconstruct", "ndarray", "dtype", "encode"}  # all that the pickles of CIFAR need


@dataclass(frozen=True)
class LabelledImages:
    """Images with one label each.

    Attributes:
        ids: Name of each image.
        labels: Number of each image's label.
        names: What the data call each label.
        open: Returns the image at an index, RGB.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    names: Sequence[str]
    open: Callable[[int], Image.Image]


def read_image_set(folder: Path, classes: int) -> LabelledImages:
    """Reads the test images of a data set in any of the layouts above.

    Args:
        folder: The folder that was unpacked, or one above it.
        classes: How many labels the data must have; of several label columns the one that has as many is taken.

    Raises:
        DataFormatError: no such folder, none of the layouts, or files that contradict themselves.
    """
    if not folder.is_dir():
        raise DataFormatError(f"{folder} is not a folder; give the folder of the data set as --data")
    for read in (_disk, _parquet, _cifar_pickles, _cifar_binary, _stl10, _gtsrb, _class_folders):
        if (found := read(folder, classes)) is not None:
            return found
    raise DataFormatError(
        f"{folder} holds no images in a layout that is known: folders of classes, CIFAR's and STL10's own files, "
        "GTSRB's Final_Test, a folder of `datasets`.save_to_disk, parquet files"
    )


def _find(folder: Path, name: str) -> Path | None:
    """Returns the file of that name in the folder, or up to three levels below."""
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        if hits := sorted(folder.glob(depth + name)):
            return hits[0]
    return None


# --- class folders


def _class_folders(folder: Path, classes: int) -> LabelledImages | None:
    places = [folder, *(folder / split for split in _SPLITS)]
    places += sorted(path for path in folder.iterdir() if path.name != "train")  # EuroSAT's lie in 2750
    files = next((found for place in filter(Path.is_dir, places) if (found := list(_files_by_class(place)))), [])
    if not files:
        return None
    names = sorted({file.parent.name for file in files})
    number = {name: index for index, name in enumerate(names)}
    ids = [f"{file.parent.name}/{file.name}" for file in files]
    labels = [number[file.parent.name] for file in files]
    return LabelledImages(ids, labels, names, lambda index: tower.open_image(files[index]))


def _files_by_class(folder: Path) -> Iterator[Path]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from sorted(file for file in inner.iterdir() if file.suffix.lower() in _SUFFIXES)


# --- CIFAR and STL10: arrays


def _from_array(pixels: Any, labels: Sequence[int], names: Sequence[str], what: Path) -> LabelledImages:
    """Wraps uint8 pixels (N, H, W, 3)."""
    if len(pixels) != len(labels) or not set(labels) <= set(range(len(names))):
        raise DataFormatError(
            f"{what}: {len(pixels)} images, {len(labels)} labels up to {max(labels, default=-1)}, {len(names)} names; "
            "unpack the data set again"
        )
    return LabelledImages(
        [f"{index:05}" for index in range(len(labels))], labels, names, lambda index: Image.fromarray(pixels[index])
    )


def _planes(raw: Any, side: int) -> Any:
    """Turns rows of three planes (N, 3 * side * side) into pixels (N, side, side, 3)."""
    return raw.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


class _ArrayUnpickler(pickle.Unpickler):
    """Opens a pickle that holds nothing but numpy arrays, lists and text; a pickle can run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _NUMPY and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise DataFormatError(f"the pickle asks for {module}.{name}, which CIFAR's do not; it is not opened")


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            record = _ArrayUnpickler(stream, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise DataFormatError(f"{file} is missing or damaged ({error}); unpack the data set again") from None
    return dict(record)


def _cifar_pickles(folder: Path, classes: int) -> LabelledImages | None:
    for meta, data, names, labels in (
        ("batches.meta", "test_batch", "label_names", "labels"),
        ("meta", "test", "fine_label_names", "fine_labels"),
    ):
        if file := _find(folder, meta):
            batch = _unpickle(file.with_name(data))
            return _from_array(_planes(batch["data"], 32), batch[labels], _unpickle(file)[names], file)
    return None


def _cifar_binary(folder: Path, classes: int) -> LabelledImages | None:
    for meta, data, bytes_before in (
        ("batches.meta.txt", "test_batch.bin", 1),
        ("fine_label_names.txt", "test.bin", 2),
    ):
        if file := _find(folder, meta):
            raw = _bytes(file.with_name(data), bytes_before + 3072)
            labels = raw[:, bytes_before - 1].tolist()  # CIFAR-100: coarse label, fine label, pixels
            return _from_array(_planes(raw[:, bytes_before:], 32), labels, file.read_text().split(), file)
    return None


def _stl10(folder: Path, classes: int) -> LabelledImages | None:
    file = _find(folder, "class_names.txt")
    if file is None or not file.with_name("test_X.bin").is_file():
        return None
    pixels = _planes(_bytes(file.with_name("test_X.bin"), 3 * 96 * 96), 96).transpose(0, 2, 1, 3)  # column by column
    labels = (_bytes(file.with_name("test_y.bin"), 1)[:, 0].astype(int) - 1).tolist()  # from 1
    return _from_array(pixels, labels, file.read_text().split(), file)


def _bytes(file: Path, width: int) -> Any:
    """Reads a file of records as uint8 (N, width)."""
    size = file.stat().st_size if file.is_file() else 0
    if not size or size % width:
        raise DataFormatError(f"{file} has {size} bytes, no multiple of {width}; unpack the data set again")
    return np.fromfile(file, np.uint8).reshape(-1, width)


# --- GTSRB


def _gtsrb(folder: Path, classes: int) -> LabelledImages | None:
    file = _find(folder, "GT-final_test.csv")
    if file is None:
        return None
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter=";"))
    image = _find(folder, rows[0]["Filename"]) if rows else None
    if image is None:
        raise DataFormatError(f"{file} names images that are not below {folder}; unpack GTSRB_Final_Test_Images there")
    ids, labels = [row["Filename"] for row in rows], [int(row["ClassId"]) for row in rows]
    names = [str(number) for number in range(classes)]
    return LabelledImages(ids, labels, names, lambda index: tower.open_image(image.with_name(ids[index])))


# --- `datasets`


def _disk(folder: Path, classes: int) -> LabelledImages | None:
    if not ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        return None
    from datasets import Dataset, load_from_disk

    data = load_from_disk(str(folder))
    if isinstance(data, Dataset):
        return _from_dataset(data, classes, folder)
    return _from_splits(list(data), data.__getitem__, classes, folder)


def _parquet(folder: Path, classes: int) -> LabelledImages | None:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        return None
    from datasets import Dataset

    parts: dict[str, list[str]] = defaultdict(list)
    for file in files:
        parts[file.stem.split("-")[0]].append(str(file))
    return _from_splits(list(parts), lambda split: Dataset.from_parquet(parts[split]), classes, folder)


def _from_splits(splits: Sequence[str], read: Callable[[str], Any], classes: int, folder: Path) -> LabelledImages:
    """Takes the first of `_SPLITS` that has labels: ImageNet's test split on the Hub has none (all are -1)."""
    there = [split for split in _SPLITS if split in splits]
    if not there:
        raise DataFormatError(f"{folder} has the splits {sorted(splits)}; one of {', '.join(_SPLITS)} is expected")
    for split in there[:-1]:
        try:
            return _from_dataset(read(split), classes, folder)
        except _NoLabels:
            continue
    return _from_dataset(read(there[-1]), classes, folder)


class _NoLabels(DataFormatError):
    """Images whose labels are withheld."""


def _from_dataset(data: Any, classes: int, folder: Path) -> LabelledImages:
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    columns = [name for name, feature in data.features.items() if isinstance(feature, ImageFeature)]
    labels = {name: f.names for name, f in data.features.items() if isinstance(f, ClassLabel)}
    fitting = [name for name, names in labels.items() if len(names) == classes]
    if len(columns) != 1 or len(fitting) != 1:
        raise DataFormatError(
            f"{folder} has {len(columns)} columns of images and label columns with "
            f"{ {name: len(names) for name, names in labels.items()} } named classes; one of images and one with "
            f"{classes} named classes are expected (cast_column(NAME, ClassLabel(names=...)) names them)"
        )
    ids, numbers = [f"{index:05}" for index in range(len(data))], list(data[fitting[0]])
    if without := sum(number is None or number < 0 for number in numbers):
        raise _NoLabels(
            f"{folder}: {without} of {len(numbers)} images have no label in {fitting[0]!r}; give a split that has "
            "them (of ImageNet, validation)"
        )
    return LabelledImages(ids, numbers, labels[fitting[0]], lambda index: data[index][columns[0]].convert("RGB"))
