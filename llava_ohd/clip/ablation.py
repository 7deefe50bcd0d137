"""Which part of the loss does the work: short fine-tunings that differ in nothing but the loss, over several seeds.

A seed decides the order of the rows and which negatives are drawn, alike for all variants, so that variants are
compared in pairs, seed by seed. What a run measured is kept in OUT/runs; a plan that was stopped, or is given more
seeds, trains only what is missing.

Source: the ablation of arXiv 2410.03176, table 9; its equations and the released code differ in the sign of L_2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_ohd.clip import config as training
from llava_ohd.clip.config import FinetuneConfig
from llava_ohd.clip.train import finetune
from llava_ohd.command_line import helps, require, require_between
from llava_ohd.files import read_json, sha256_file, sha256_json, write_json
from llava_ohd.home import from_home, home
from llava_ohd.progress import track

if TYPE_CHECKING:
    from llava_ohd.clip.measuring import Measured

__all__ = ["AblationConfig", "Variant", "check", "run", "variants"]

MODES: tuple[Literal["paper", "released"], ...] = ("paper", "released")
SIGNS = {"paper": "above", "released": "below"}
"""Where L_2 wants an edited caption, against other pairs of the batch: eq. 4, and what the released code does."""

Measure = Callable[[Path], dict[str, Any]]


def _world(*parts: str) -> Path:
    return home().joinpath("world", *parts)


@dataclass(frozen=True)
class AblationConfig:
    """What to vary, and the training that all variants share."""

    encoder: str = field(default="openai", metadata=helps("name or path of the encoder to start from"))
    data: Path = field(
        default_factory=lambda: _world("ohd_caps", "train.jsonl"), metadata=helps("OHD-Caps rows to train on")
    )
    test: Path = field(
        default_factory=lambda: _world("ohd_caps", "test.jsonl"), metadata=helps("OHD-Caps rows to measure on")
    )
    instances: Path = field(
        default_factory=lambda: _world("annotations", "instances_zero_shot.json"),
        metadata=helps("COCO instances json for zero-shot recognition"),
    )
    images: Path = field(
        default_factory=lambda: _world("images"), metadata=helps("folder that the images of all three lie in")
    )
    out: Path = field(default_factory=lambda: home() / "ablation", metadata=helps("where to write"))
    plan: Literal["terms", "grid", "all"] = field(
        default="terms", metadata=helps("terms and signs of both modes; grid of taus x lambdas, both signs; or both")
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=helps("one training of each variant per seed"))
    taus: list[float] = field(
        default_factory=lambda: [0.35, 2.0, 5.0], metadata=helps("margins of the grid, tau1 = tau2, logits")
    )
    lambdas: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 1.0], metadata=helps("weights of the grid, lambda1 = lambda2")
    )
    max_steps: int = field(default=120, metadata=helps("optimiser steps of a training"))
    batch_size: int = field(default=32, metadata=helps("images a step"))
    negatives: int = field(default=9, metadata=helps("negatives per image and step, drawn anew; -1 = all"))
    learning_rate: float = field(default=8e-4, metadata=helps("peak rate; 8e-4 suits the world's mini CLIP"))
    warmup_steps: int = field(default=10, metadata=helps("steps of linear warm-up; linear decay to 0 follows"))


@dataclass(frozen=True)
class Variant:
    """One loss.

    Attributes:
        name: As tables show it.
        changes: Fields of `FinetuneConfig` and their values; what is not named has the mode's own.
    """

    name: str
    changes: Mapping[str, Any]


def variants(config: AblationConfig) -> list[Variant]:
    """Returns the losses of a plan; the first is the one that others are compared with: L_0 alone, mode paper."""
    reference = Variant("paper: L0", {"loss": "paper", "lambda1": 0.0, "lambda2": 0.0})
    found = list(_terms()) if config.plan in ("terms", "all") else [reference]
    return found + (list(_grid(config)) if config.plan in ("grid", "all") else [])


def check(config: AblationConfig) -> None:
    """Refuses settings that no plan can have, before anything is read.

    Raises:
        OptionError: the first of them, with what is expected.
    """
    for name in ("seeds", "taus", "lambdas"):
        require(bool(getattr(config, name)), name, "(none)", "at least one value")
    require_between(1, inf, "max_steps", config.max_steps)
    require_between(-1, inf, "negatives", config.negatives)
    require_between(0, 2**32 - 1, "seeds", *config.seeds)
    require_between(0, inf, "lambdas", *config.lambdas)
    for seed, variant in product(config.seeds, variants(config)):
        training.check(_training(config, variant, seed, config.out))


def _sign(mode: str, sign: str) -> dict[str, str]:
    """Names the sign where it is not the mode's own."""
    return {} if sign == SIGNS[mode] else {"l2_sign": sign}


def _terms() -> Iterator[Variant]:
    for mode in MODES:
        loss = {"loss": mode}
        yield Variant(f"{mode}: L0", loss | {"lambda1": 0.0, "lambda2": 0.0})
        yield Variant(f"{mode}: L0 + L1", loss | {"lambda2": 0.0})
        for sign in SIGNS.values():
            yield Variant(f"{mode}: L0 + L2 {sign}", loss | {"lambda1": 0.0} | _sign(mode, sign))
            yield Variant(f"{mode}: L0 + L1 + L2 {sign}", loss | _sign(mode, sign))


def _grid(config: AblationConfig) -> Iterator[Variant]:
    """All terms of mode paper with both signs of L_2."""
    for sign, tau, weight in product(SIGNS.values(), config.taus, config.lambdas):
        numbers = {"tau1": tau, "tau2": tau, "lambda1": weight, "lambda2": weight}
        yield Variant(f"L2 {sign}, τ {tau:g}, λ {weight:g}", {"loss": "paper"} | numbers | _sign("paper", sign))


def run(config: AblationConfig, report: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Trains and measures every variant with every seed, seed by seed; what is there already is not done again.

    Args:
        config: The plan.
        report: Called with the rows so far after each of them.

    Returns:
        One row per run: `{"variant", "seed", "changes", "accuracy", "shuffled", "n", "zero_shot", "zero_shot_n",
        "first": {loss and parts at the first step}, "last": {their means over the last 10}}`. The stock encoder,
        which no seed touches, is the first, with an empty `changes` and seed None.

    Raises:
        OptionError: a setting that no plan can have.
        EncoderNotFound, EncoderFormatError, DataFormatError, ImageError, StorageError, StageFailed: as `finetune`.
    """
    check(config)
    from llava_ohd import tower
    from llava_ohd.clip.measuring import measuring

    stock = tower.resolve(config.encoder)
    reached = measuring(stock, config.test, config.images, "world", config.instances)

    def measure(encoder: Path) -> dict[str, Any]:
        return _row(reached(tower.load(encoder)))

    shared = _fingerprint(config)
    rows: list[dict[str, Any]] = [{"variant": "stock", "seed": None, "changes": {}, **measure(stock)}]
    for seed, variant in track(list(product(config.seeds, variants(config))), "ablating the loss"):
        rows.append(_run(config, shared, variant, seed, measure))
        report(rows)
    return rows


def _row(measured: "Measured") -> dict[str, Any]:
    caption, kind = measured.ohd_caps, measured.zero_shot
    numbers = {"accuracy": caption.value, "shuffled": measured.shuffled, "n": caption.n}
    return numbers | {"zero_shot": kind.value, "zero_shot_n": kind.n}


def _run(
    config: AblationConfig, shared: dict[str, Any], variant: Variant, seed: int, measure: Measure
) -> dict[str, Any]:
    terms = shared | {"changes": dict(variant.changes), "seed": seed}
    folder = config.out / "runs" / sha256_json(terms)[:16]
    file = folder / "measured.json"
    if not file.is_file():
        encoder = finetune(_training(config, variant, seed, folder))
        curve = read_json(folder / "curve.json")
        row = {"variant": variant.name, "seed": seed, "changes": dict(variant.changes), **measure(encoder)}
        write_json(file, {"terms": terms, "row": row | {"first": _parts(curve[:1]), "last": _parts(curve[-10:])}})
    return read_json(file)["row"] | {"variant": variant.name}


def _fingerprint(config: AblationConfig) -> dict[str, Any]:
    """Returns what all runs of a plan rest on, JSON-able; results of anything else are not taken up."""
    from llava_ohd import tower

    shared = ("max_steps", "batch_size", "negatives", "learning_rate", "warmup_steps")
    files = {name: sha256_file(getattr(config, name)) for name in ("data", "test", "instances")}
    digest = tower.check(tower.resolve(config.encoder)).digest
    found = {name: asdict(config)[name] for name in shared} | files
    return found | {"images": from_home(config.images), "encoder": digest}


def _training(config: AblationConfig, variant: Variant, seed: int, folder: Path) -> FinetuneConfig:
    shared = FinetuneConfig(
        encoder=config.encoder,
        data=config.data,
        images=config.images,
        out=folder,
        name=variant.name,
        register=False,
        seed=seed,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        negatives=None if config.negatives == -1 else config.negatives,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
    )
    return replace(shared, **variant.changes)


def _parts(curve: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = ("loss", "contrastive", "margin1", "margin2", "scale")
    return {name: sum(point[name] for point in curve) / len(curve) for name in names}
