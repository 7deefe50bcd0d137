"""What speed measurements share: floating-point operations, memory, the machine's own rate, where a number is from."""

import os
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from llava_ohd.files import write_json, write_text
from llava_ohd.results import versions

__all__ = [
    "CPU_ATTENTION",
    "Cost",
    "machine",
    "peak_memory",
    "product_rate",
    "resident",
    "wait",
    "write_result",
]

CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Operations that torch's `FlopCounterMode` does not know by itself: its `custom_mapping`."""


@dataclass(frozen=True)
class Cost:
    """What something takes: seconds on the clock and of processor time (all threads)."""

    wall: float
    cpu: float


def wait(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str, bf16: bool, size: int = 2048) -> float:
    """Returns the FLOP/s of the best of ten plain products of two square matrices."""
    one, other = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    rates = []
    for _ in range(10):
        start = time.perf_counter()
        (one @ other)[0, 0].item()  # waits for the result
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def resident(field: str) -> int:
    """Returns the bytes of `VmRSS` (memory of this process now) or `VmHWM` (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_memory(before: int, state: int, device: torch.device) -> dict[str, float]:
    """Returns the peak of this process in bytes.

    Args:
        before: `resident("VmRSS")` when nothing but libraries was there.
        state: Bytes of weights, gradients and AdamW's moments.
        device: Where they are.

    Returns:
        `peak`: resident set of the process (CUDA: of torch's allocator). `above`: what of it is neither library nor
        state.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        return {"peak": peak, "above": peak - state}
    return {"peak": resident("VmHWM"), "above": resident("VmHWM") - before - state}


def machine(threads: int, device: str) -> dict[str, Any]:
    """Returns what a measurement ran on: `processor`, `cores`, `threads`, `gpu`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "gpu": gpu}


def write_result(given: Namespace, name: str, table: str, record: dict[str, Any]) -> Path:
    """Writes NAME.json and NAME.md into the folder `given.out`, beside each the command, the machine and the versions.

    Args:
        given: The parsed command line of the running program, with `threads`, `device` and `out`.
        name: Of the files.
        table: Markdown.
        record: The numbers.

    Returns:
        The path of NAME.json.
    """
    settings = {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(given).items()}
    settings.pop("out")  # a place of this machine, and so is it in the command
    words = iter(sys.argv[1:])
    kept = [word for word in words if not (word == "--out" and next(words, "")) and not word.startswith("--out=")]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])
    where, libraries = machine(given.threads, given.device), versions()
    on = f"{where['gpu'] or where['processor']}, {where['threads']} threads on {where['cores']} cores"
    origin = f"`{command}`: {on}; torch {libraries['torch']}, transformers {libraries['transformers']}."
    head = {"command": command, "settings": settings, "machine": where, "versions": libraries}
    write_json(given.out / f"{name}.json", head | record)
    write_text(given.out / f"{name}.md", f"{table}\n\n{origin}\n")
    return Path(given.out / f"{name}.json")
