"""The planned memory of a step beside the measured one: real training steps, each in a process of its own.

The peak of the resident set is measured, on a CPU in float32, without DeepSpeed. What the process holds before there is
a model is taken off: libraries, and the code that a first, toy step loads.
"""

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llava_ohd.llava15.mixture import draw
from llava_ohd.llava15.plan_memory import RESERVE, Weights, Zero, memory
from llava_ohd.llava15.plan_trace import Step, traced
from llava_ohd.llava15.speed import peak_memory
from llava_ohd.llava15.ways import GEOMETRIES, OURS

__all__ = ["Case", "Comparison", "compare"]

_MMAP = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18)}


class Case(NamedTuple):
    """A training step: name of a geometry, stage, rows of a batch, and whether layers are recomputed."""

    geometry: str
    stage: str
    batch: int
    checkpointing: bool


@dataclass(frozen=True)
class Comparison:
    """Bytes, planned and measured.

    Attributes:
        case: The step.
        state: Weights and the optimiser's moments, the same in both.
        planned: Peak of activations and gradients.
        measured: The same.
    """

    case: Case
    state: float
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """Error of what is planned: activations and gradients alone, as a fraction."""
        return self.planned / self.measured - 1

    @property
    def total_error(self) -> float:
        """Error of the whole, with weights and moments."""
        return (self.planned + self.state) / (self.measured + self.state) - 1


def compare(cases: Sequence[Case], threads: int = 2) -> Iterator[Comparison]:
    """Plans and measures steps, one after the other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    kept = {name: os.environ.get(name) for name in _MMAP}
    os.environ |= _MMAP  # freed memory goes back at once: the peak is then that of tensors, not of the allocator
    try:
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as child:
            for case in cases:
                yield _compared(case, child.submit(_measured, threads, case).result())
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _measured(threads: int, case: Case) -> dict[str, float]:
    peak_memory(OURS, threads, _settings(case._replace(geometry="tiny")), 0)
    gc.collect()
    return peak_memory(OURS, threads, _settings(case), 0)


def _settings(case: Case) -> tuple[Any, ...]:
    patches = GEOMETRIES[case.geometry].image_tokens
    return case.geometry, case.stage, [draw(case.stage, case.batch, patches)], "cpu", False, case.checkpointing


def _compared(case: Case, found: dict[str, float]) -> Comparison:
    sizes, [rows] = GEOMETRIES[case.geometry], _settings(case)[2]
    how: dict[str, Any] = {"checkpointing": case.checkpointing, "lora_r": sizes.lora_r, "keep_gradients": True}
    step = Step(sizes.config(), case.stage, torch.float32, **how)
    weights = Weights.of(step.model())
    plan = memory(weights, Zero(), 1, traced(step, rows), sizes.width, fused=True)
    state = plan.weights + plan.optimizer
    # `above` is beside weights, moments and gradients
    return Comparison(case, state, plan.total - RESERVE - state, found["above"] + weights.trained_size)
