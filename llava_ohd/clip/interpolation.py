"""Encoders between the stock and the tuned one: what fine-tuning unlearns can be had back for a part of its gain.

Every parameter, `logit_scale` too, is (1 - alpha) · stock + alpha · tuned in float32; 0 and 1 are the two themselves.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv 2109.01903, section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd.command_line import helps
from llava_ohd.errors import DataFormatError, EncoderFormatError
from llava_ohd.files import read_json, sha256_file, write_json
from llava_ohd.home import from_home, home

__all__ = ["Between", "InterpolationConfig", "sweep"]


@dataclass(frozen=True)
class InterpolationConfig:
    """Between which encoders, how finely, and what is measured."""

    stock: str = field(default="openai", metadata=helps("name or path of the encoder at alpha 0"))
    tuned: str = field(default="ours", metadata=helps("name or path of the encoder at alpha 1"))
    alphas: list[float] = field(
        default_factory=lambda: [i / 10 for i in range(11)], metadata=helps("shares of the tuned one, 0 to 1")
    )
    test: Path = field(
        default_factory=lambda: home() / "world" / "ohd_caps" / "test.jsonl", metadata=helps("OHD-Caps rows")
    )
    images: Path = field(
        default_factory=lambda: home() / "world" / "images",
        metadata=helps("folder of their images, and of the world's"),
    )
    set: str = field(default="world", metadata=helps("zero-shot set: world, or as eval/zero_shot.py"))
    set_data: Path = field(
        default_factory=lambda: home() / "world" / "annotations" / "instances_zero_shot.json",
        metadata=helps("its COCO instances json, or its folder"),
    )
    out: Path = field(default_factory=lambda: home() / "interpolation", metadata=helps("where to write"))
    alpha: float | None = field(default=None, metadata=helps("also write the encoder at this alpha to OUT/encoder"))
    name: str | None = field(default=None, metadata=helps("and register it under this name"))


class Between:
    """The encoders between two, both checked.

    Args:
        stock: Encoder folder at alpha 0.
        tuned: Encoder folder at alpha 1.

    Raises:
        EncoderNotFound, EncoderFormatError: either is unsound, or they differ in geometry or activation.
    """

    def __init__(self, stock: Path, tuned: Path) -> None:
        from llava_ohd import tower

        self.stock, self.tuned = tower.check(stock), tower.check(tuned)
        self._model, other = tower.load(stock), tower.load(tuned)
        _check_alike(self.stock.path, self._model, self.tuned.path, other)
        self._from = {name: weight.clone() for name, weight in self._model.state_dict().items()}
        self._to = other.state_dict()

    def at(self, alpha: float) -> Any:
        """Returns the CLIPModel at `alpha`, in float32 and eval mode; the next call changes it.

        Raises:
            EncoderFormatError: alpha is not from 0 to 1.
        """
        if not 0 <= alpha <= 1:
            raise EncoderFormatError(f"alpha is {alpha}; a share of the tuned encoder from 0 to 1 is expected")
        ends = {0.0: self._from, 1.0: self._to}  # as they are: -0 + 0 would already be another digest
        mixed = {name: (1 - alpha) * weight + alpha * self._to[name] for name, weight in self._from.items()}
        self._model.load_state_dict(ends.get(alpha, mixed))
        return self._model

    def write(self, alpha: float, destination: Path, name: str) -> Path:
        """Writes the encoder at `alpha` with tokenizer and preprocessor of the stock one; returns its folder.

        Raises:
            EncoderFormatError, StorageError: as `tower.write`.
        """
        from llava_ohd import tower

        parents = [{"path": str(parent.path), "digest": parent.digest} for parent in (self.stock, self.tuned)]
        config = {"interpolation": "WiSE-FT, arXiv 2109.01903", "alpha": alpha}
        tower.write(self.at(alpha), destination, files_from=self.stock.path, name=name, parents=parents, config=config)
        return destination


def _check_alike(stock: Path, one: Any, tuned: Path, other: Any) -> None:
    """Raises where the weights of two models cannot be added, or would not mean the same."""
    shapes, others = ({name: list(w.shape) for name, w in model.state_dict().items()} for model in (one, other))
    faults = [
        f"{name} is {shapes.get(name, 'not there')} and {others.get(name, 'not there')}"
        for name in sorted(shapes.keys() | others.keys())
        if shapes.get(name) != others.get(name)
    ]
    for part in ("text_config", "vision_config"):
        for key in ("hidden_act", "num_attention_heads", "layer_norm_eps", "patch_size"):
            a, b = (getattr(getattr(model.config, part), key, None) for model in (one, other))
            faults += [f"{part}.{key} is {a!r} and {b!r}"] if a != b else []
    if faults:
        raise EncoderFormatError(
            f"{stock} and {tuned} cannot be interpolated, {len(faults)} differences: {'; '.join(faults[:4])}. Give the "
            "encoder that the tuned one was made from"
        )


def sweep(config: InterpolationConfig, report: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    """Measures the encoder at every alpha; rows of OUT/curve.json of the same encoders and data are not made again.

    Args:
        config: What to measure.
        report: Called with each row.

    Returns:
        What stands in OUT/curve.json: `{"stock", "tuned", "data", "rows": [{"alpha", "ohd_caps": {"value", "low",
        "high", "n"}, "shuffled", "zero_shot": {...}}]}`.

    Raises:
        EncoderNotFound, EncoderFormatError, DataFormatError, ImageError, StorageError: encoders or data.
    """
    from llava_ohd import tower
    from llava_ohd.clip.measuring import measuring
    from llava_ohd.progress import track

    between = Between(tower.resolve(config.stock), tower.resolve(config.tuned))
    measure = measuring(between.stock.path, config.test, config.images, config.set, config.set_data)
    record = _terms(config, between)
    rows = {row["alpha"]: row for row in _rows_so_far(config.out / "curve.json", record)}
    for alpha in track(sorted(set(config.alphas)), "interpolating"):
        if alpha not in rows:
            rows[alpha] = {"alpha": alpha, **measure(between.at(alpha)).record()}
            write_json(config.out / "curve.json", record | {"rows": [rows[key] for key in sorted(rows)]})
        report(rows[alpha])
    if config.alpha is not None:
        between.write(config.alpha, config.out / "encoder", config.name or f"alpha-{config.alpha:g}")
        if config.name:
            tower.register(config.name, config.out / "encoder")
    return record | {"rows": [rows[alpha] for alpha in sorted(rows)]}


def _terms(config: InterpolationConfig, between: Between) -> dict[str, Any]:
    """Returns what the rows rest on."""
    from llava_ohd.tower.weights import weights_file

    record: dict[str, Any] = {
        key: {"name": end.name, "digest": end.digest, "file_sha256": sha256_file(weights_file(end.path))}
        for key, end in (("stock", between.stock), ("tuned", between.tuned))
    }
    data = {"test_sha256": sha256_file(config.test), "images": from_home(config.images)}
    data |= {"zero_shot": config.set, "zero_shot_data": from_home(config.set_data)}
    if config.set_data.is_file():
        data["zero_shot_sha256"] = sha256_file(config.set_data)
    return record | {"data": data}


def _rows_so_far(file: Path, record: dict[str, Any]) -> Sequence[dict[str, Any]]:
    try:
        old = read_json(file)
    except DataFormatError:
        return []
    return old["rows"] if all(old.get(key) == value for key, value in record.items()) else []
