"""Measures one optimiser step on OHD-Caps both ways (`clip/ways.py`): loss, gradients, time, memory, FLOPs."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_ohd.clip.ways import WAYS, Stage, Way
from llava_ohd.errors import StageFailed
from llava_ohd.training import measuring
from llava_ohd.training.measuring import CPU_ATTENTION, Cost, resident, wait

__all__ = ["Cost", "Equality", "check_equal", "peak_memory", "timed_step"]

_TOLERANCE = 1e-4


def timed_step(stage: Stage, way: Way, number: int) -> Cost:
    """Times zero_grad, forward, loss, backward and AdamW on batch `number`; ours with the making of its tree."""
    batch = stage.tree(number) | (stage.padded(number) if way.name == "released" else {})
    wait(stage.device)
    wall, cpu = time.perf_counter(), time.process_time()
    if way.name == "ours":
        batch = stage.tree(number)
    batch = stage.to_device(batch)
    stage.optimizer.zero_grad()
    with torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.bf16):
        features = way.images(stage.model, batch), way.texts(stage.model, batch)
    stage.loss(*features, batch["valid"]).backward()
    stage.optimizer.step()
    wait(stage.device)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Equality:
    """Released against ours at the same weights and batch, float32.

    Attributes:
        loss: Relative difference of the loss.
        gradients: Norm of the difference of all gradients, relative to the norm of all gradients.
        worst: The same for the parameter where it is largest. The gradient of the key biases is zero in exact
            arithmetic (softmax ignores them), so a parameter's norm counts as at least 1e-2 of the mean norm.
        flops: By way, of forward and backward an image.
        vision: By way, the part of `flops` that the vision tower takes.
    """

    loss: float
    gradients: float
    worst: float
    flops: dict[str, float]
    vision: dict[str, float]


def check_equal(stage: Stage, number: int = 0) -> Equality:
    """Computes loss and gradients of batch `number` both ways and counts their FLOPs.

    Raises:
        StageFailed: they differ by more than 1e-4.
    """
    batch = stage.to_device(stage.tree(number) | stage.padded(number))
    losses, grads, flops, vision = [], [], {}, {}
    for way in WAYS:
        stage.model.zero_grad()
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            images = way.images(stage.model, batch)
            looked = counter.get_total_flops()
            loss = stage.loss(images, way.texts(stage.model, batch), batch["valid"])
            forward = counter.get_total_flops()
            loss.backward()
        flops[way.name] = counter.get_total_flops() / stage.batch_size
        vision[way.name] = flops[way.name] * looked / forward
        losses.append(loss.item())
        grads.append([p.grad for p in stage.model.parameters() if p.grad is not None])
    [expected, found] = grads
    norms = torch.stack([one.norm() for one in expected])
    differences = torch.stack([(one - other).norm() for one, other in zip(expected, found, strict=True)])
    worst = (differences / norms.clamp(min=1e-2 * float(norms.mean()))).max().item()
    equality = Equality(
        abs(losses[1] / losses[0] - 1), (differences.norm() / norms.norm()).item(), worst, flops, vision
    )
    if not max(equality.loss, equality.gradients, equality.worst) <= _TOLERANCE:
        raise StageFailed(f"the two ways differ by more than {_TOLERANCE}: {equality}; clip/captions.py is at fault")
    return equality


def peak_memory(way: Way, threads: int, settings: tuple[Any, ...]) -> dict[str, float]:
    """Runs two steps of a way and returns peaks in bytes; call it in a process of its own.

    Args:
        way: The way.
        threads: Processor threads.
        settings: Arguments of `Stage`.

    Returns:
        As `training.measuring.peak_memory`.
    """
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    stage = Stage(*settings)
    for _ in range(2):  # AdamW's moments are there from the second on
        timed_step(stage, way, 0)
    state = sum(4 * weight.numel() * weight.element_size() for weight in stage.model.parameters())
    return measuring.peak_memory(before, state, stage.device)
