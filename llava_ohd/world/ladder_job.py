"""The ladder as stages: the stock LLaVA, and what each way of giving it the new encoder costs and brings.

stock    the stock model, unchanged
swap     the new encoder put in, nothing trained
refit    and an affine map of its features folded into the projector, by least squares
stage1   and the projector of the new encoder's own stage projector; the old adapter
both     both stages trained on the new encoder

Each is a model folder; each is measured by eval/pope.py and eval/chair.py. On the embedded world the models are those
of the main job, which is run as far as needed where they are not registered.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.command_line import helps
from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.files import read_json, sha256_file
from llava_ohd.home import home
from llava_ohd.results import differences
from llava_ohd.stages import Stage
from llava_ohd.world.main_job import JobConfig, main_job, script

__all__ = ["RUNGS", "LadderConfig", "Rungs", "find_rungs", "ladder_stages", "trainings"]

RUNGS = {
    "stock": "stock model, unchanged",
    "swap": "swap only",
    "refit": "affine re-fit of the projector",
    "stage1": "stage 1 trained, old adapter",
    "both": "both stages trained",
}
"""Rungs in order, and what tables call them."""


@dataclass(frozen=True)
class LadderConfig:
    """Models, what they are asked, and where results go."""

    out: Path = field(default_factory=lambda: home() / "ladder", metadata=helps("where to write"))
    stock: str = field(default="openai", metadata=helps("encoder that the stock model was trained on"))
    encoder: str = field(default="ours", metadata=helps("the new encoder"))
    stock_model: Path | None = field(default=None, metadata=helps("stock LLaVA (default: the one registered)"))
    model: Path | None = field(
        default=None, metadata=helps("LLaVA with both stages trained on the new encoder (default: the one registered)")
    )
    projector: Path | None = field(
        default=None, metadata=helps("what stage projector wrote for it (default: what --model started from)")
    )
    untrained: bool = field(default=False, metadata=helps("only the rungs that need no training: stock, swap, refit"))
    other_recipe: bool = field(
        default=False, metadata=helps("compare although --stock_model and --model were not trained alike")
    )
    images: int = field(default=1000, metadata=helps("training images of the re-fit"))
    image_folder: Path | None = field(default=None, metadata=helps("of these images (default: the stock model's own)"))
    data_path: Path | None = field(default=None, metadata=helps("training file that names them (default: the same)"))
    seed: int = field(default=0, metadata=helps("of the draw of these images; trainings have their own"))
    pope: str = field(default="", metadata=helps("further flags of eval/pope.py, in one string"))
    chair: str = field(default="", metadata=helps("further flags of eval/chair.py, in one string"))
    data: Path = field(
        default_factory=lambda: home() / "world", metadata=helps("labels: pope/, annotations/, synonyms.txt")
    )
    split: str = field(default="test", metadata=helps("annotations that CHAIR is scored with"))
    questions: Path | None = field(default=None, metadata=helps("POPE's questions (default: pope/ of --data)"))
    also: list[Path] = field(default_factory=list, metadata=helps("finished ladders of other seeds, to be averaged"))
    resamples: int = field(default=5_000, metadata=helps("of the bootstrap"))


@dataclass(frozen=True)
class Rungs:
    """Where the models of the ladder lie.

    Attributes:
        stock: The stock model.
        projector: What stage projector wrote for the new encoder; None leaves that rung out.
        both: The model with both stages trained; None leaves that rung out.
    """

    stock: Path
    projector: Path | None
    both: Path | None


def trainings(config: LadderConfig) -> list[Stage]:
    """Returns the stages of the main job that train the models on the world; none where they are given or registered.

    Raises:
        ModelNotFound: they are of other encoders than the main job's.
    """
    known = tower.registered()
    given = {config.stock: config.stock_model, config.encoder: config.model or config.projector or config.untrained}
    missing = [name for name, model in given.items() if not model and not known.get(name, {}).get("model")]
    if not missing:
        return []
    if (config.stock, config.encoder) != ("openai", "ours") or any(given.values()):
        raise ModelNotFound(f"no LLaVA is registered for {missing[0]!r}; give --stock_model and --model")
    names = {"data", "captions", "encoder", "projector-openai", "lora-openai", "projector-ours", "lora-ours"}
    return [stage for stage in main_job(JobConfig(home())) if stage.name in names]


def find_rungs(config: LadderConfig) -> tuple[Rungs, list[str]]:
    """Finds the models, and in what the trainings of the first and the last differ beside the encoder.

    Raises:
        ModelNotFound: a model is not given, not registered, or gone.
        ModelFormatError: the projector is not the one that `model` started from; or the trainings differ, and
            `other_recipe` does not allow it.
    """
    stock = (config.stock_model or tower.model_for(config.stock)).resolve()
    if config.untrained:
        return Rungs(stock, None, None), []
    if config.model is None and config.projector is not None:
        return Rungs(stock, config.projector.resolve(), None), []
    both = (config.model or tower.model_for(config.encoder)).resolve()
    return Rungs(stock, (config.projector or _start_of(both)).resolve(), both), _differing(config, stock, both)


def _differing(config: LadderConfig, stock: Path, both: Path) -> list[str]:
    from llava_ohd.llava15.run_record import identity

    one, other = (identity(read_json(folder / "ohd.json")) for folder in (stock, both))
    for record in (one, other):
        for name in ("encoder digest", "pretrain_mm_mlp_adapter_sha256"):
            record.pop(name, None)
    found = differences(one, other)
    if found and not config.other_recipe:
        raise ModelFormatError(
            f"{stock} and {both} were not trained alike: {'; '.join(found[:4])}. What the encoder contributes is then "
            "mixed up with that; train them alike, or accept it by --other_recipe True"
        )
    return found


def _start_of(model: Path) -> Path:
    """Returns the projector that a model's second stage started from."""
    from llava_ohd.llava15 import model_dir

    flags: dict[str, Any] = read_json(model / "ohd.json")["config"]
    start = flags.get("pretrain_mm_mlp_adapter")
    if start is None or not Path(start).exists():
        raise ModelNotFound(f"the projector that {model} started from ({start}) is gone; give it as --projector")
    if sha256_file(model_dir.projector_file(Path(start))) != flags["pretrain_mm_mlp_adapter_sha256"]:
        raise ModelFormatError(f"{start} was trained again since {model} started from it; give that as --projector")
    return Path(start)


def ladder_stages(config: LadderConfig, rungs: Rungs) -> list[Stage]:
    """Returns the stages that make and measure the rungs.

    Args:
        config: The ladder.
        rungs: Where the models are.
    """
    found = _measured(config, "stock", config.stock, rungs.stock)
    ways: dict[str, tuple[object, ...]] = {"swap": ("keep",), "refit": ("refit", *_refit(config))}
    if rungs.projector is not None:
        ways["stage1"] = (rungs.projector,)
    for name, way in ways.items():
        made = _made(config, name, rungs, way)
        found += [made, *_measured(config, name, config.encoder, made.output, (made.name,))]
    if rungs.both is not None:
        found += _measured(config, "both", config.encoder, rungs.both)
    return found


def _refit(config: LadderConfig) -> tuple[object, ...]:
    given = {"data_path": config.data_path, "image_folder": config.image_folder}
    more = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    return ("--images", config.images, "--seed", config.seed, *more)


def _record(model: Path) -> tuple[Path, ...]:
    """Returns the record of a model, which holds the digests of its weights and of its encoder."""
    file = (model if model.is_dir() else model.parent) / "ohd.json"
    return (file,) if file.is_file() else ()


def _made(config: LadderConfig, rung: str, rungs: Rungs, way: tuple[object, ...]) -> Stage:
    # LLaVA's own loader decides by the words "llava" and "lora" in the folder's name
    adapter = "-lora" if read_json(rungs.stock / "ohd.json")["stage"] in ("lora", "qlora") else ""
    out = config.out.resolve() / "models" / f"llava-v1.5-{rung}{adapter}"
    given = ("--model", rungs.stock, "--encoder", config.encoder, "--projector", *way, "--out", out)
    reads = _record(rungs.stock) + _record(tower.resolve(config.encoder))
    if rung == "stage1" and rungs.projector is not None:
        reads += _record(rungs.projector)
    command = script("scripts/swap_llava.py", *given)
    return Stage(f"make-{rung}", f"making: {RUNGS[rung]}", (command,), out, (), reads, 8.0, proof="ohd.json")


def _measured(config: LadderConfig, rung: str, encoder: str, model: Path, needs: tuple[str, ...] = ()) -> list[Stage]:
    """Returns POPE and CHAIR of one rung."""
    places = [config.questions or config.data / "pope", config.data / "synonyms.txt"]
    places += [config.data / f"annotations/{kind}_{config.split}.json" for kind in ("instances", "captions")]
    reads = tuple(place for place in places if place.exists()) + (() if needs else _record(model))
    stages = []
    for evaluation, flags in (("pope", config.pope), ("chair", config.chair)):
        out = config.out.resolve() / "eval" / rung / evaluation
        given = ("--encoder", encoder, "--model", model, *shlex.split(flags), "--out", out)
        label = f"{evaluation.upper()}: {RUNGS[rung]}"
        command = script(f"eval/{evaluation}.py", *given)
        stages.append(Stage(f"{evaluation}-{rung}", label, (command,), out, needs, reads, 8.0, proof="results.json"))
    return stages
