"""Whether an export computes what its source does: pixels, tower features, projector output, logits, greedy text.

Both are run in float32, one after the other. LLaVA's layout is run by the formula (features of one layer, without the
class token, through the projector into the place of `<image>`), HF's by `LlavaForConditionalGeneration` and
`AutoProcessor`, as their users do: the two share no code beyond CLIP and Llama.

Tolerance: none for token ids and pixels; 1e-5 of the largest number where no weight was rounded on the way. A merge or
a narrower type rounds weights: what these weights act on may then differ by 4 times the relative precision of the type,
and the texts may part only at a token where the source's two candidates are closer than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image

from llava_ohd.errors import ModelFormatError
from llava_ohd.llava15.convert.live import Observed, observe_hf, observe_llava
from llava_ohd.llava15.convert.parts import Parts
from llava_ohd.llava15.convert.sources import open_source
from llava_ohd.llava15.convert.stored import Stored

__all__ = ["Row", "compare", "pictures", "verify"]

_EXACT, _ROUNDED = 1e-5, 4
_PARTS = ("tower", "projector", "language")
QUESTION = "Describe the image."


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        what: What was compared.
        difference: Largest absolute difference; of token ids and texts, the number that differ.
        tolerance: Largest one that is allowed.
        note: What it is to be compared with.
    """

    what: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        sign = "" if self.good else "   DIFFERS"
        return f"{self.what:18} {self.difference:<10.3g} tolerance {self.tolerance:<10.3g} {self.note}{sign}"


def pictures() -> list[Image.Image]:
    """Two pictures, one wider and one taller than a square, so that padding shows; the same on every machine."""
    generator = numpy.random.default_rng(0)
    made = []
    for width, height in ((90, 50), (40, 100)):
        slope = numpy.linspace(0, 200, width) * numpy.linspace(0.2, 1, height)[:, None]
        noise = generator.integers(0, 56, (height, width, 3))
        made.append(Image.fromarray((slope[..., None] + noise).astype(numpy.uint8)))
    return made


def verify(source: Parts, export: Path, images: Sequence[Image.Image], new_tokens: int = 16) -> list[Row]:
    """Runs source and export on images and compares them.

    Args:
        source: What was converted.
        export: The folder that was written.
        images: RGB.
        new_tokens: Length of the greedy texts.

    Returns:
        The report.

    Raises:
        ModelFormatError: a difference is above its tolerance; the message holds the report.
    """
    written = open_source(export)
    before, after = (_observe(parts, images, new_tokens) for parts in (source, written))
    rows = compare(before, after, [_precision(source, written, part) for part in _PARTS])
    if wrong := [row.what for row in rows if not row.good]:
        report = "\n".join(map(str, rows))
        raise ModelFormatError(f"the export differs from {source.folder} in {', '.join(wrong)}:\n{report}")
    return rows


def _precision(source: Parts, written: Parts, part: str) -> float:
    """Returns the relative precision of the narrowest type that weights of a part were rounded to; 0 where none was.

    The other way too: an encoder folder may hold the digits that an HF folder in float16 has lost.
    """
    old, new = getattr(source, part), getattr(written, part)
    coarser = [
        max(torch.finfo(new[n].dtype).eps, torch.finfo(s.dtype).eps) for n, s in old.items() if _rounded(s, new[n])
    ]
    return max(coarser, default=0.0)


def _rounded(old: Stored, new: Stored) -> bool:
    return old.rounded or (old.dtype != new.dtype and not torch.equal(old.read().double(), new.read().double()))


def _observe(parts: Parts, images: Sequence[Image.Image], new_tokens: int) -> list[Observed]:
    observe = observe_hf if parts.layout == "hf" else observe_llava
    return observe(parts, images, QUESTION, new_tokens)


def compare(
    before: Sequence[Observed], after: Sequence[Observed], precisions: Sequence[float] = (0.0, 0.0, 0.0)
) -> list[Row]:
    """Compares what two models made of the same images.

    Args:
        before: Of the source.
        after: Of the export.
        precisions: Relative precision of the type to which weights of tower, projector and language model were rounded
            in between; 0 where none was.
    """
    pairs = list(zip(before, after, strict=True))
    unlike = sum(old.ids != new.ids for old, new in pairs)
    rows = [Row("prompt ids", unlike, 0, f"{len(before[0].ids)} tokens"), _largest("pixels", pairs, 0)]
    if unlike:
        return rows  # everything else depends on them
    worst = 0.0
    for what, precision in zip(("features", "projected", "logits"), precisions, strict=True):
        worst = max(worst, precision)
        rows.append(_largest(what, pairs, max(_EXACT, _ROUNDED * worst)))
    parted = sum(_parted(old, new, rows[-1].tolerance if worst else 0) for old, new in pairs)
    same = all(old.tokens == new.tokens for old, new in pairs)
    return [*rows, Row("greedy texts", parted, 0, f"{len(before[0].tokens)} tokens" + ("" if same else ", a tie"))]


_SHOWN = {"features": "tower features", "projected": "projector output"}


def _largest(what: str, pairs: list[tuple[Observed, Observed]], share: float) -> Row:
    difference, largest = 0.0, 0.0
    for old, new in pairs:
        left, right = getattr(old, what), getattr(new, what)
        if left.shape != right.shape:
            raise ModelFormatError(f"{what} have shape {list(left.shape)} before and {list(right.shape)} after")
        gap = (left - right).abs().max().item()
        difference = gap if gap != gap else max(difference, gap)
        largest = max(largest, left.abs().max().item())
    return Row(_SHOWN.get(what, what), difference, share * largest, f"largest {largest:.3g}")


def _parted(old: Observed, new: Observed, tie: float) -> bool:
    """Says whether two texts differ otherwise than by a near tie of the source's candidates."""
    for place, (left, right) in enumerate(zip(old.tokens, new.tokens, strict=False)):
        if left != right:
            scores = old.scores[place]
            return max(left, right) >= len(scores) or (scores[left] - scores[right]).item() > 2 * tie
    return len(old.tokens) != len(new.tokens)
