"""Caption accuracy beside zero-shot recognition: the two that fine-tuning trades, for many encoders of one geometry."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.clip.accuracy import accuracy, interval, is_right, score
from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.zero_shot import predictions, read_set, recognise
from llava_ohd.ohd_caps.readers import read_rows

__all__ = ["Measured", "Share", "measuring"]


@dataclass(frozen=True)
class Share:
    """A share of right items with its 95 % interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Share":
        """Counts hits; at least one item."""
        low, high = (metric.value for metric in interval("", hits))
        return cls(sum(hits) / len(hits), low, high, len(hits))


@dataclass(frozen=True)
class Measured:
    """What one encoder reaches.

    Attributes:
        ohd_caps: Caption accuracy on OHD-Caps.
        shuffled: The same with another row's image.
        zero_shot: Recognition of images of one class.
    """

    ohd_caps: Share
    shuffled: float
    zero_shot: Share

    def record(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return asdict(self)


def measuring(
    encoder: Path, test: Path, images: Path, zero_shot: str, zero_shot_data: Path
) -> Callable[[Any], Measured]:
    """Reads rows and images once.

    Args:
        encoder: Encoder folder whose tokenizer and image processor all models share.
        test: OHD-Caps rows.
        images: Folder of their images, and of those of COCO instances.
        zero_shot: `world` for COCO instances, or one of `prompts.SETS`.
        zero_shot_data: The instances json, or the folder of the set.

    Returns:
        A function from a CLIPModel in eval mode to what it reaches.

    Raises:
        DataFormatError, ImageError: rows or images cannot be read.
    """
    tokenizer, processor = tower.load_tokenizer(encoder), tower.load_processor(encoder)
    rows = read_rows(test)
    pictures = Images(images, image_names(rows), processor)
    data = read_set(zero_shot, zero_shot_data, images, processor)

    def measure(model: Any) -> Measured:
        scores = score(model, tokenizer, pictures, rows)
        hits = [bool(row["correct"]) for row in predictions(recognise(model, tokenizer, data))]
        return Measured(Share.of(list(map(is_right, scores.cosines))), accuracy(scores.shuffled), Share.of(hits))

    return measure
