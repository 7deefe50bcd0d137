"""One row and one image of a training set under the eyes of the doctor: what there is to be said of each."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import ImageError
from llava_ohd.files import sha256_file, sha256_json
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN, encode
from llava_ohd.llava15.image_source import ImageSource, image_source
from llava_ohd.llava15.rows import Finding, examine
from llava_ohd.llava15.tokenizer import load_tokenizer

__all__ = ["Checks", "look", "twin"]

_VERSION = 1
_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "GIF": (".gif",)}
_SUFFIXES |= {"WEBP": (".webp",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}
_TWINS = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG")


@dataclass(frozen=True)
class Checks:
    """What is looked at.

    Attributes:
        data_path: The training file.
        image_folder: Folder or archive of its images.
        template: `plain` or `v1`.
        language_model: Folder with the tokenizer; None: lengths in tokens are not looked at.
        image_tokens: Tokens of an image: 576 for LLaVA-1.5.
        longest: Tokens at which a row is cut.
    """

    data_path: Path
    image_folder: Path
    template: str
    language_model: Path | None = None
    image_tokens: int = 576
    longest: int = 2048

    def settings(self) -> dict[str, Any]:
        """Returns what decides the findings beside the files, JSON-able."""
        texts = None
        if self.language_model is not None:
            names = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
            files = [file for name in names if (file := self.language_model / name).is_file()]
            texts = sha256_json([sha256_file(file) for file in files])
        record = {"template": self.template, "tokenizer_sha256": texts, "version": _VERSION}
        return record | {"image_tokens": self.image_tokens, "model_max_length": self.longest}


_tokenizer = lru_cache(load_tokenizer)
_source = lru_cache(image_source)


def look(checks: Checks, number: int, piece: list[tuple[int, Any]], names: list[str]) -> dict[str, Any]:
    """Looks at a piece: `rows`, findings by number, and `images`, digest, bytes and findings by name."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for row_number, record in piece:
        row, findings = examine(record, checks.template)
        findings += _lengths(checks, row) if row else []
        if findings:
            rows[str(row_number)] = [(finding.kind, finding.text) for finding in findings]
    return {"piece": number, "rows": rows, "images": {name: _image(checks.image_folder, name) for name in names}}


def _lengths(checks: Checks, row: dict[str, Any]) -> list[Finding]:
    if checks.language_model is None:
        return []
    ids, labels = encode(checks.template, row["turns"], _tokenizer(checks.language_model), checks.image_tokens)
    if len(ids) <= checks.longest:
        return []
    size = f"{len(ids)} tokens, {checks.longest} are kept"
    if IMAGE_TOKEN in ids[checks.longest :]:
        return [Finding("nothing_trained", f"{size}: the cut goes through an image")]
    if all(label == IGNORE for label in labels[: checks.longest]):
        return [Finding("nothing_trained", f"{size}: the first answer is cut off")]
    return [Finding("over_long", size)]


def _image(folder: Path, name: str) -> tuple[str, int, list[tuple[str, str]]]:
    """Reads an image: digest and number of its bytes, and findings."""
    from PIL import Image

    source = _source(folder)
    if name not in source:
        other = twin(source, name)
        return "", 0, [("missing_image", f"image {name} does not exist" + (f", but {other} does" if other else ""))]
    try:
        data = source.read(name)
    except ImageError as error:
        return "", 0, [("corrupt_image", str(error))]
    digest, found = hashlib.sha256(data).hexdigest(), []
    try:
        tower.open_image(name, BytesIO(data))
    except ImageError as error:
        kind = "truncated_image" if "truncated" in str(error.__cause__).lower() else "corrupt_image"
        return digest, len(data), [(kind, str(error))]
    with Image.open(BytesIO(data)) as image:
        kind = str(image.format)
    if Path(name).suffix.lower() not in _SUFFIXES.get(kind, (Path(name).suffix.lower(),)):
        found.append(("mislabelled_image", f"image {name} is a {kind}"))
    return digest, len(data), found


def twin(source: ImageSource, name: str) -> str | None:
    """Returns the name of a file that differs from a missing one in its last part only (OCR-VQA has such)."""
    others = (str(Path(name).with_suffix(suffix)) for suffix in _TWINS)
    return next((other for other in others if other != name and other in source), None)
