"""What changes for LLaVA when one encoder takes another's place, and whether the projector must be trained again.

    difference = compare("openai", "ours", images=["1.jpg", "2.jpg"])
    print("\\n".join(difference.lines()))

LLaVA-1.5 reads the patch tokens of layer -2, while encoders are trained on the pooled output after the last layer. So
neither the distance of the weights nor an accuracy on captions says what the projector meets; the drift does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_ohd.tower import verdicts
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.drift import Drift, measure
from llava_ohd.tower.encoder_dir import Encoder, check, load
from llava_ohd.tower.images import load_processor, open_image, pixel_settings, process_images
from llava_ohd.tower.names import resolve
from llava_ohd.tower.weights import read_weights, weights_file

__all__ = ["Difference", "compare"]

Pair = tuple[Any, Any]
_GEOMETRY: tuple[str, ...] = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_GEOMETRY += ("intermediate_size", "hidden_act", "layer_norm_eps", "projection_dim")
_BATCH = 8  # images; the features of two CLIP-L/336 in float64 are then 75 MB


@dataclass(frozen=True)
class Difference:
    """Two encoders side by side.

    Attributes:
        a: The encoder that the projector was trained on.
        b: The one that is to take its place.
        layer: The layer whose patch tokens LLaVA reads, an index into `hidden_states`.
        geometry: Name to the values of A and B.
        preprocessing: Name to the values of A and B.
        weights: Part of the vision tower to ||B - A|| / ||A|| (Frobenius); None where the shapes differ.
        drift: How far the features of `layer` moved; None where they were not or cannot be compared.
        no_drift: Why there is no drift; empty where there is.
        verdict: `keep`, `fits`, `retrain`, `must` or `unknown`, see `verdicts`.
        reason: The verdict as a sentence.
    """

    a: Encoder
    b: Encoder
    layer: int
    geometry: dict[str, Pair]
    preprocessing: dict[str, Pair]
    weights: dict[str, float | None]
    drift: Drift | None
    no_drift: str
    verdict: str
    reason: str

    def lines(self) -> Iterator[str]:
        """Yields the report for people."""
        for side, encoder in (("A", self.a), ("B", self.b)):
            yield f"{side}  {encoder.name}  {encoder.path}  digest {encoder.digest[:12]}"
        for title, rows in (("geometry", self.geometry), ("preprocessing", self.preprocessing)):
            yield from ("", f"{title:22} {'A':>24} {'B':>24}")
            for name, (left, right) in rows.items():
                yield f"  {name:20} {_short(left):>24} {_short(right):>24}" + ("" if left == right else "  differs")
        yield from ("", "weights of the tower   ||B - A|| / ||A||")
        for part, distance in self.weights.items():
            yield f"  {part:20} " + ("other shapes" if distance is None else f"{distance:.6f}")
        yield from ("", f"drift of the patch tokens at layer {self.layer}", *self._drift_lines())
        yield from ("", f"verdict: {self.verdict}. {self.reason}")

    def _drift_lines(self) -> Iterator[str]:
        if self.drift is None:
            yield f"  left out: {self.no_drift}"
            return
        drift = self.drift
        worst = ", ".join(f"{percent} %: {value:.6f}" for percent, value in drift.percentiles.items())
        yield f"  images, tokens       {drift.images}, {drift.tokens}"
        yield f"  cosine               {drift.cosine:.6f}  (percentiles {worst})"
        yield f"  ||B - A|| / ||A||    {drift.distance:.6f}"
        yield f"  linear CKA           {drift.cka:.6f}"

    def record(self) -> dict[str, Any]:
        """Returns everything as a JSON-able value."""
        record = asdict(self)
        for side in ("a", "b"):
            record[side]["path"] = str(record[side]["path"])
        return record


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_short(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def compare(
    a: str | Path, b: str | Path, images: Sequence[str | Path] | None = None, layer: int = -2, aspect_ratio: Any = "pad"
) -> Difference:
    """Compares two encoders as LLaVA sees them.

    Args:
        a: Name or folder of the encoder that the projector was trained on.
        b: Name or folder of the one that is to take its place.
        images: Image files for the drift, read one batch at a time; each tower gets them through its own preprocessing.
        layer: Whose output LLaVA reads, as an index into `hidden_states` (`mm_vision_select_layer`).
        aspect_ratio: As in `process_images`.

    Raises:
        EncoderNotFound: a name or folder leads nowhere.
        EncoderFormatError: an encoder does not pass `check`.
        ImageError: an image cannot be read.
        ValueError: there is no such layer.
    """
    folders = (resolve(a), resolve(b))
    encoders = (check(folders[0]), check(folders[1]))
    geometry, preprocessing = _geometry(*folders), _preprocessing(*folders)
    depth = min(geometry["num_hidden_layers"])
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer is {layer}; between {-depth - 1} and {depth} is expected for {depth} layers")
    weights = _weight_distances(*folders)
    no_drift = _why_not(geometry, images)
    drift = None if no_drift else measure(_features(folders, images or (), layer, aspect_ratio))
    verdict, reason = verdicts.decide(geometry, preprocessing, weights, drift, layer)
    return Difference(*encoders, layer, geometry, preprocessing, weights, drift, no_drift, verdict, reason)


def _why_not(geometry: dict[str, Pair], images: Sequence[str | Path] | None) -> str:
    if differing := verdicts.misfits(geometry):
        return f"features of another {' and '.join(differing)} cannot be compared token by token"
    return "" if images else "no images were given (--images FOLDER)"


def _geometry(a: Path, b: Path) -> dict[str, Pair]:
    left, right = (read_config(folder).vision_config for folder in (a, b))
    rows: dict[str, Pair] = {name: (getattr(left, name), getattr(right, name)) for name in _GEOMETRY}
    tokens = tuple((config.image_size // config.patch_size) ** 2 for config in (left, right))
    return {"patch_tokens": (tokens[0], tokens[1]), **rows}


def _preprocessing(a: Path, b: Path) -> dict[str, Pair]:
    left, right = (pixel_settings(load_processor(folder)) for folder in (a, b))
    return {name: (left[name], right[name]) for name in left}


def _weight_distances(a: Path, b: Path) -> dict[str, float | None]:
    """Sums up the squares of each part, with the files memory-mapped."""
    left, right = (read_weights(weights_file(folder)) for folder in (a, b))
    moved, length = dict.fromkeys(verdicts.parts(left, right), 0.0), dict.fromkeys(verdicts.parts(left, right), 0.0)
    for name in sorted(left.keys() | right.keys()):
        part = verdicts.part_of(name)
        if part is None:
            continue
        one, other = left.get(name), right.get(name)
        if one is None or other is None or one.shape != other.shape:
            moved[part] = moved["total"] = math.inf
            continue
        for sums, square in ((moved, (other.double() - one.double()).square()), (length, one.double().square())):
            sums[part] += float(square.sum())
            sums["total"] += float(square.sum())
    return {
        part: None if math.isinf(square) else math.sqrt(square / (length[part] or 1.0))
        for part, square in moved.items()
    }


def _features(
    folders: tuple[Path, Path], images: Sequence[str | Path], layer: int, aspect_ratio: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the patch tokens `(B, N, D)` of A and B, float32, a few images at a time."""
    towers = [load(folder).vision_model for folder in folders]
    processors = [load_processor(folder) for folder in folders]
    for start in range(0, len(images), _BATCH):
        batch = [open_image(file) for file in images[start : start + _BATCH]]
        found = []
        for tower, processor in zip(towers, processors, strict=True):
            pixels = process_images(batch, processor, aspect_ratio)
            with torch.no_grad():
                found.append(tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:])
        yield found[0], found[1]
