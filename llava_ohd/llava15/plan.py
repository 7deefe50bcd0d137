"""Memory and hours of LLaVA-1.5's training, before a GPU is rented: a table over stages, ZeRO files and batches.

plan_trace.py runs the step without memory, plan_memory.py adds weights, gradients, optimiser, plan_time.py the hours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, LlamaConfig

from llava_ohd import tower
from llava_ohd.command_line import helps
from llava_ohd.errors import LlavaOhdError, ModelFormatError
from llava_ohd.files import read_json
from llava_ohd.llava15.mixture import Row, draw
from llava_ohd.llava15.plan_memory import Memory, Weights, Zero, memory
from llava_ohd.llava15.plan_time import GPUS, LLAVA_HOURS, MFU, hours
from llava_ohd.llava15.plan_trace import Step, Traced, traced
from llava_ohd.llava15.trainer import RowOrder
from llava_ohd.llava15.ways import GEOMETRIES

__all__ = ["CARDS", "Choice", "PlanConfig", "Planner", "accumulation", "cheapest", "geometry", "table"]

CARDS = (24, 40, 48, 80)
"""Memory in GiB of the cards that a table names."""
_STAGES = ("projector", "lora", "qlora", "full")
_FILES = ("zero2", "zero3", "zero2_offload", "zero3_offload")  # the quickest first
_GIB = 2**30
_STEP_ROWS = (256, 128)  # of stage projector and of the others, in LLaVA's scripts/v1_5 @ c121f04
_BATCHES = 64  # drawn to find a long one
_MEAN = 128  # rows whose FLOPs are averaged


@dataclass(frozen=True)
class PlanConfig:
    """What to plan."""

    model: str = field(
        default="7b", metadata=helps("7b, 13b, or folder of a Llama model: only its config.json is read")
    )
    vision_tower: str = field(
        default="openai/clip-vit-large-patch14-336", metadata=helps("encoder: this, or a registered name or a folder")
    )
    stages: list[str] = field(default_factory=lambda: list(_STAGES), metadata=helps("projector, lora, qlora, full"))
    zero: list[str] = field(
        default_factory=lambda: ["none", *_FILES], metadata=helps("none, or files of zero_configs/, or others' paths")
    )
    batch: list[int] = field(default_factory=lambda: [4, 16, 32], metadata=helps("rows per GPU and step"))
    gpus: int = field(default=8, metadata=helps("number of GPUs"))
    gpu: str = field(default="A100", metadata=helps(f"for the hours: {', '.join(GPUS)}"))
    gpu_memory: float = field(default=80.0, metadata=helps("GiB of one GPU, for the choice"))
    rows: int | None = field(default=None, metadata=helps("training rows; default: LLaVA's 558,128 and 665,298"))
    tokens: int | None = field(
        default=None,
        metadata=helps("every row has this many, image included (2048: the worst); default: the longest of 64 batches"),
    )
    gradient_checkpointing: bool = field(default=True, metadata=helps("recompute layers in the backward"))
    lora_r: int = field(default=128, metadata=helps("rank of the adapters"))
    bits: int = field(default=4, metadata=helps("of stage qlora: 4 or 8"))
    unfreeze_mm_vision_tower: bool = field(default=False, metadata=helps("train the tower too"))
    mfu: float | None = field(
        default=None, metadata=helps(f"share of the peak that is reached; default by stage, from LLaVA's hours: {MFU}")
    )

    def __post_init__(self) -> None:
        if wrong := [stage for stage in self.stages if stage not in _STAGES]:
            raise LlavaOhdError(f"--stages {wrong[0]}: give some of {', '.join(_STAGES)}")
        if self.bits not in (4, 8):
            raise LlavaOhdError(f"--bits {self.bits}: stage qlora has 4 or 8")
        if min([self.gpus, *self.batch]) < 1:
            raise LlavaOhdError(f"--gpus {self.gpus} --batch {self.batch}: give numbers from 1")


@dataclass(frozen=True)
class Choice:
    """One line of the table.

    Attributes:
        stage: What trains.
        zero: How it is split.
        batch: Rows per GPU and step.
        memory: Bytes of a GPU.
        flops: Of one row on average.
        hours: Of the whole training.
    """

    stage: str
    zero: Zero
    batch: int
    memory: Memory
    flops: float
    hours: float


class Planner:
    """Plans lines of the table; what several of them need is traced once.

    Args:
        config: What to plan.
        zero_configs: Where names of ZeRO files are looked up.

    Raises:
        LlavaOhdError: a ZeRO file, a model or an encoder that is not there.
    """

    def __init__(self, config: PlanConfig, zero_configs: Path) -> None:
        self.config, self.geometry = config, geometry(config.model, config.vision_tower)
        self.zeros = [_zero(name, zero_configs) for name in config.zero]
        self._traced: Callable[[str, int, int], Traced] = cache(self._trace)
        self._flops: Callable[[str], float] = cache(self._flops_of_a_row)
        self._weights: Callable[[str, bool], Weights] = cache(self._count)

    @property
    def lines(self) -> list[tuple[str, Zero, int]]:
        """Stage, split and batch of each line. qlora under ZeRO-3 is left out: training refuses it."""
        return [
            (stage, zero, batch)
            for stage in self.config.stages
            for zero in self.zeros
            if (stage, zero.stage) != ("qlora", 3)
            for batch in self.config.batch
        ]

    def choice(self, stage: str, zero: Zero, batch: int) -> Choice:
        """Plans one line."""
        given, width = self.config, self.geometry.text_config.hidden_size
        alike = "lora" if stage == "qlora" else stage
        step = self._traced(alike, zero.stage, batch)
        held = memory(self._weights(stage, zero.stage == 0), zero, given.gpus, step, width)
        flops, share = self._flops(alike), given.mfu or MFU[stage]
        return Choice(stage, zero, batch, held, flops, hours(self.rows(stage) * flops, given.gpus, given.gpu, share))

    def rows(self, stage: str) -> int:
        """Returns the number of training rows."""
        return self.config.rows or LLAVA_HOURS[stage != "projector"].rows

    def _step(self, stage: str, zero: int) -> Step:
        given = self.config
        how: dict[str, Any] = {"trained32": zero == 0, "keep_gradients": zero == 0, "split": zero == 3}
        how |= {"checkpointing": given.gradient_checkpointing, "lora_r": given.lora_r}
        return Step(self.geometry, stage, tower=given.unfreeze_mm_vision_tower, **how)

    def _count(self, stage: str, plain: bool) -> Weights:
        model = self._step(stage, 0 if plain else 2).model()
        return Weights.of(model, self.config.bits if stage == "qlora" else 16)

    def _trace(self, stage: str, zero: int, batch: int) -> Traced:
        return traced(self._step(stage, zero), self._longest(stage, batch))

    def _longest(self, stage: str, size: int) -> list[Row]:
        """Returns a batch of rows of `tokens`, or the one with most tokens of those that LLaVA's order makes."""
        patches, tokens = self.geometry.image_seq_length, self.config.tokens
        rows = draw(stage, _BATCHES * size, patches)
        if tokens is not None:
            return [_stretched(row, tokens) for row in rows[:size]]
        signed = [len(ids) if self.geometry.image_token_index in ids else -len(ids) for ids, _ in rows]
        order = list(RowOrder(signed, size, 1, seed=0, pool=1))
        batches = (order[start : start + size] for start in range(0, len(order), size))
        return [rows[i] for i in max(batches, key=lambda places: sum(abs(signed[i]) for i in places))]

    def _flops_of_a_row(self, stage: str) -> float:
        rows = draw(stage, _MEAN, self.geometry.image_seq_length)
        if self.config.tokens is not None:
            rows = [_stretched(row, self.config.tokens) for row in rows]
        return traced(self._step(stage, 2), rows).flops / len(rows)


def _stretched(row: Row, tokens: int) -> Row:
    """Cuts a row, or goes on with its last token, which is trained."""
    more = max(tokens - len(row[0]), 0)
    return (row[0] + row[0][-1:] * more)[:tokens], (row[1] + row[1][-1:] * more)[:tokens]


def _zero(name: str, folder: Path) -> Zero:
    if name == "none":
        return Zero()
    file = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not file.is_file():
        raise LlavaOhdError(f"--zero {name}: {file} is not there; give none, {', '.join(_FILES)}, or a .json file")
    return Zero.of(file)


def geometry(model: str, vision_tower: str) -> Any:
    """Returns the sizes of a model, a `LlavaConfig`; no weights are read.

    Args:
        model: A name in `GEOMETRIES`, or a folder with the config.json of a Llama model.
        vision_tower: CLIP-L/14-336's name on the Hub, or an encoder's name or folder.

    Raises:
        ModelFormatError: neither a known name nor such a folder, or fewer layers than a trace needs.
    """
    config: Any = GEOMETRIES[model if model in GEOMETRIES else "7b"].config()
    if model not in GEOMETRIES:
        file = Path(model) / "config.json"
        if not file.is_file() or read_json(file).get("model_type") not in ("llama", "llava_llama"):
            names = ", ".join(GEOMETRIES)
            raise ModelFormatError(f"--model {model} is neither {names} nor a folder with the config.json of a Llama")
        config.text_config = LlamaConfig.from_dict(read_json(file) | {"model_type": "llama"})
    if config.text_config.num_hidden_layers < 3:
        raise ModelFormatError(f"--model {model} has {config.text_config.num_hidden_layers} layers; 3 are needed")
    if vision_tower != "openai/clip-vit-large-patch14-336":
        vision: Any = CLIPConfig.from_pretrained(tower.resolve(vision_tower)).vision_config
        config.vision_config = vision
        config.image_seq_length = (vision.image_size // vision.patch_size) ** 2
    return config


def cheapest(choices: Sequence[Choice], gib: float, gpus: int) -> dict[str, Choice]:
    """Returns per stage what fits and waits least (ZeRO 2, none, 3, 2 with offload, 3 with), its largest batch.

    Batches of which a step of LLaVA-1.5's rows can be made come first.
    """
    chosen: dict[str, Choice] = {}
    for one in choices:
        if one.memory.total <= gib * _GIB and (
            one.stage not in chosen or _cost(one, gpus) < _cost(chosen[one.stage], gpus)
        ):
            chosen[one.stage] = one
    return chosen


def _cost(choice: Choice, gpus: int) -> tuple[bool, int, int, int]:
    zero, odd = choice.zero, accumulation(choice, gpus).startswith("(")
    return odd, zero.offload_weights + zero.offload_optimizer, (2, 0, 3).index(zero.stage), -choice.batch


def accumulation(choice: Choice, gpus: int) -> str:
    """Returns the flag that makes a step of LLaVA-1.5's rows (projector 256, else 128), or says that none does."""
    rows, at_once = _STEP_ROWS[choice.stage != "projector"], choice.batch * gpus
    if rows % at_once:
        return f"(LLaVA-1.5's {rows} rows a step are no multiple of {gpus} x {choice.batch})"
    return f"--gradient_accumulation_steps {rows // at_once}"


def table(choices: Sequence[Choice]) -> str:
    """Returns choices as a table, in GiB a GPU."""
    names = ("weights", "gathered", "gradients", "optimizer", "activations", "update")
    heads = ["stage", "ZeRO", "batch", *names, "**total**", "host", "fits", "TFLOP a row", "hours"]
    lines: list[list[Any]] = [heads, ["---"] * len(heads)]
    for one in choices:
        total = one.memory.total / _GIB
        sizes = [f"{getattr(one.memory, name) / _GIB:.1f}" for name in names]
        fits = next((f"{card} GB" for card in CARDS if total <= card), "none")
        host = f"{one.memory.host / _GIB:.1f}"
        cells = [one.stage, one.zero.name, one.batch, *sizes, f"**{total:.1f}**", host, fits]
        lines.append([*cells, f"{one.flops / 1e12:.1f}", f"{one.hours:.1f}"])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
