"""Measures one training step in several ways (`ways.py`): loss, gradients, time, memory, floating-point operations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_ohd.errors import StageFailed
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN
from llava_ohd.llava15.mixture import Row
from llava_ohd.llava15.ways import Geometry, Stage, Way
from llava_ohd.training import measuring
from llava_ohd.training.measuring import CPU_ATTENTION, Cost, resident, wait

__all__ = ["Cost", "Equality", "check_equal", "needed_flops", "peak_memory", "timed_step"]

_TOLERANCE = {"loss": 1e-5, "gradients": 1e-4}


def timed_step(stage: Stage, way: Way, number: int) -> Cost:
    """Times zero_grad, forward, loss, backward and AdamW on batch `number`, which is on the device already."""
    batch = stage.batch(number, way)
    wait(stage.device)
    wall, cpu = time.perf_counter(), time.process_time()
    stage.optimizer.zero_grad()
    way.loss(stage, batch).backward()
    stage.optimizer.step()
    wait(stage.device)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Equality:
    """The ways against the first of them, on one batch at the same weights, without dropout.

    Attributes:
        loss: By way, relative difference of the loss.
        gradients: By way, norm of the difference of all gradients, relative to the norm of all gradients.
        flops: By way, counted operations of forward and backward. A causal attention counts as if it were whole.
    """

    loss: dict[str, float]
    gradients: dict[str, float]
    flops: dict[str, float]


def check_equal(stage: Stage, ways: Sequence[Way], number: int) -> Equality:
    """Computes loss and gradients of batch `number` every way and counts operations.

    Raises:
        StageFailed: losses differ by more than 1e-5 or gradients by more than 1e-4.
    """
    losses, gradients, flops = {}, {}, {}
    stage.set_dropout(0.0)
    for way in ways:
        stage.optimizer.zero_grad()
        batch = stage.batch(number, way)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            loss = way.loss(stage, batch)
            loss.backward()
        losses[way.name], flops[way.name] = loss.item(), float(counter.get_total_flops())
        given = [torch.zeros_like(w) if w.grad is None else w.grad for w in stage.weights]
        gradients[way.name] = torch.cat([gradient.flatten() for gradient in given])
    stage.set_dropout(0.05)
    stage.optimizer.zero_grad()
    first = ways[0].name
    norm = gradients[first].norm()
    equality = Equality(
        {name: abs(loss / losses[first] - 1) for name, loss in losses.items()},
        {name: ((other - gradients[first]).norm() / norm).item() for name, other in gradients.items()},
        flops,
    )
    for what, limit in _TOLERANCE.items():
        if not max(getattr(equality, what).values()) <= limit:
            raise StageFailed(f"the ways differ in {what} by more than {limit}: {equality}; see packed_step.py")
    return equality


def peak_memory(way: Way, threads: int, settings: tuple[Any, ...], number: int) -> dict[str, float]:
    """Runs a step of a way and returns peaks in bytes; call it in a process of its own.

    Args:
        way: The way.
        threads: Processor threads.
        settings: Arguments of `Stage`.
        number: The batch.

    Returns:
        As `training.measuring.peak_memory`.
    """
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    stage = Stage(*settings)
    timed_step(stage, way, number)
    state = sum(weight.numel() * weight.element_size() for weight in stage.model.parameters())
    state += 3 * sum(weight.numel() * weight.element_size() for weight in stage.weights)
    return measuring.peak_memory(before, state, stage.device)


def needed_flops(geometry: Geometry, stage: str, rows: Sequence[Row], padded: bool = False) -> float:
    """Counts by hand what a step needs: the floor, under which no exact step gets with these layers.

    That is: every token through every layer and back (input gradients; of adapters and projector also those of
    weights), causal attention within rows, labelled tokens only behind the last attention and in the head, the tower
    once to the layer that is read.

    Args:
        geometry: The sizes.
        stage: `projector` or `lora`.
        rows: A batch.
        padded: Count what the plain step does instead: every row as long as the longest, whole attention, every token
            to the end, the whole tower.
    """
    lengths = [len(ids) for ids, _ in rows]
    images = sum(IMAGE_TOKEN in ids for ids, _ in rows)
    squares = sum(length**2 for length in lengths) / 2
    tokens = sum(lengths)
    ends = sum(label != IGNORE for _, labels in rows for label in labels)
    read = geometry.tower_layers - 1
    if padded:
        tokens = ends = len(rows) * max(lengths)
        squares, read = len(rows) * max(lengths) ** 2, geometry.tower_layers
    width, mlp, layers = geometry.width, 3 * geometry.width * geometry.mlp, geometry.layers
    frozen = tokens * (layers * 4 * width**2 + (layers - 1) * mlp) + ends * (mlp + width * geometry.words)
    total = 4 * frozen + layers * 14 * width * squares
    if stage == "lora":
        half = 3 * (width + geometry.mlp) * geometry.lora_r
        total += 6 * (tokens * (layers * 8 * width * geometry.lora_r + (layers - 1) * half) + ends * half)
    patches, tower = images * geometry.image_tokens, geometry.tower
    total += patches * (4 * tower * width + 6 * width**2)
    seen = images * (geometry.image_tokens + 1)
    total += read * seen * (24 * tower**2 + 4 * tower * (geometry.image_tokens + 1))
    return float(total + 6 * patches * tower * geometry.patch**2)
