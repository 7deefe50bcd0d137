"""POPE's question sets: where each lies under $LLAVA_OHD_DATA, and how its files are read.

Two versions of COCO's set are in use under one name: `coco` (3000 questions per split) and `coco-2910`, older, with
2910 random ones, which LLaVA-1.5's published 85.9 rests on. RePOPE (arXiv 2504.15707) relabels `coco`. POPEv2 asks one
question about a photo and about a copy of it without the object, in one split.
"""

from dataclasses import dataclass
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import STRATEGIES as SPLITS
from llava_ohd.files import read_jsonl
from llava_ohd.home import data_folder, home
from llava_ohd.records import Question

__all__ = ["SETS", "SPLITS", "PopeQuestion", "QuestionSet", "images_of", "locate", "read_questions", "read_set"]

_V2 = "counterfactual"


@dataclass(frozen=True)
class PopeQuestion(Question):
    """A question with its label; the id is `<split>/<question_id>`.

    Attributes:
        split: `random`, `popular` or `adversarial`; `counterfactual` in POPEv2.
        label: "no", or anything else for yes.
    """

    split: str
    label: str


@dataclass(frozen=True)
class QuestionSet:
    """A published set.

    Attributes:
        folder: Relative to the data folder; None for the embedded world.
        prefix: How its file names begin.
        source: Where its labels are from.
        answered_as: Sets whose answers are answers to this one's questions too, as it only leaves out and relabels.
    """

    folder: str | None
    prefix: str = ""
    source: str = "AoiDragon/POPE@08d957b"
    answered_as: tuple[str, ...] = ()


_OHD = "Yufang-Liu/clip_hallucination@8a748e6"
SETS = {
    "coco": QuestionSet("pope/coco_official_08d957b"),
    "coco-2910": QuestionSet("pope/coco_llava_e3e39262", source="AoiDragon/POPE@e3e39262"),
    "aokvqa": QuestionSet("pope/aokvqa_seem"),
    "gqa": QuestionSet("pope/gqa_seem"),
    "flickr": QuestionSet("pope/ohd_caps", "flickr", _OHD),
    "nocaps": QuestionSet("pope/ohd_caps", "nocaps", _OHD),
    "repope": QuestionSet("repope", "coco", "YanNeu/RePOPE@bcf22e5", ("coco", "coco-2910")),
    "popev2": QuestionSet("pope/pope_v2"),
    "coco128": QuestionSet("photos/coco128/pope", source="derived from developer0hye/COCO128@47a3de3"),
    "world": QuestionSet(None, source="the embedded world"),
}


def locate(name: str) -> Path:
    """Returns the folder of a set: of a published one under $LLAVA_OHD_DATA, of the world, or the folder `name`.

    Raises:
        DataFormatError: neither a set nor there; or a published set, and $LLAVA_OHD_DATA does not have it.
        LlavaOhdError: a published set, and $LLAVA_OHD_DATA is not set.
    """
    if name not in SETS:
        if not Path(name).exists():
            raise DataFormatError(f"{name} is neither a folder nor one of the sets {', '.join(SETS)}")
        return Path(name)
    relative = SETS[name].folder
    if relative is None:
        return home() / "world"
    folder = data_folder(f"set {name}") / relative
    if not folder.is_dir():
        raise DataFormatError(
            f"set {name} is not there: {folder} does not exist; `python scripts/download_benchmarks.py {relative}` "
            "brings it"
        )
    return folder


def images_of(folder: Path) -> Path:
    """Returns where the images of a set are looked for: images/ in its folder, or beside it."""
    inside, beside = folder / "images", folder.parent / "images"
    return beside if beside.is_dir() and not inside.is_dir() else inside


def read_set(name: str, prefix: str = "") -> list[PopeQuestion]:
    """Reads a published set by its name, or the set in a folder (or in `pope/` of it); see `read_questions`."""
    folder = locate(name)
    if name in SETS:
        prefix = prefix or SETS[name].prefix
    return read_questions(folder / "pope" if (folder / "pope").is_dir() else folder, prefix)


def read_questions(folder: Path, prefix: str = "") -> list[PopeQuestion]:
    """Reads `{prefix}_pope_{random,popular,adversarial}.json` of a folder, or POPEv2's annotations.json.

    Args:
        folder: The folder; other files in it do no harm.
        prefix: How the file names begin; needed only where the folder holds several sets.

    Returns:
        The questions, split by split, in file order.

    Raises:
        DataFormatError: not exactly one file per split, a row without the four keys, or an id used twice.
    """
    if not folder.is_dir():
        raise DataFormatError(
            f"{folder} is not a folder; give one with POPE's question files (the embedded world's: `make quickstart`)"
        )
    v2 = folder / "annotations.json"
    if v2.is_file() and not any(folder.glob("*pope*_random.json")):
        return _read_v2(v2)
    questions: list[PopeQuestion] = []
    for split in SPLITS:
        path = _split_file(folder, prefix, split)
        for number, row in enumerate(read_jsonl(path), 1):
            name, image, text, label = _values(path, number, row, ("question_id", "image", "text", "label"))
            questions.append(PopeQuestion(f"{split}/{name}", image, text, split, label))
    if len({question.id for question in questions}) < len(questions):
        raise DataFormatError(f"{folder}: a question_id occurs twice in one file; answers could not be told apart")
    return questions


def _read_v2(path: Path) -> list[PopeQuestion]:
    questions = []
    for number, row in enumerate(read_jsonl(path), 1):
        _, image, text, label = _values(path, number, row, ("image_id", "image_name", "query", "label"))
        if label not in ("Yes", "No"):
            raise DataFormatError(f"{path} row {number} has the label {label!r}; POPEv2 has Yes and No")
        questions.append(PopeQuestion(f"{_V2}/{number}", image.lstrip("/"), text, _V2, label.lower()))
    return questions


def _values(path: Path, number: int, row: dict[str, object], keys: tuple[str, ...]) -> tuple[str, ...]:
    """Returns an id and three texts of a row."""
    for key in keys:
        if key not in row:
            raise DataFormatError(f"{path} row {number} lacks {key!r}; {', '.join(keys)} are expected")
    if not all(isinstance(row[key], str) for key in keys[1:]):
        raise DataFormatError(f"{path} row {number}: {', '.join(keys[1:-1])} and {keys[-1]} must be text")
    return tuple(str(row[key]) for key in keys)


def _split_file(folder: Path, prefix: str, split: str) -> Path:
    found = sorted(folder.glob(f"{prefix}*pope*_{split}.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataFormatError(
            f"{folder} must hold one file *_pope_{split}.json{f' that begins with {prefix!r}' if prefix else ''}; "
            f"found: {names}. Give the folder with all three splits, and the prefix if it holds several sets."
        )
    return found[0]
