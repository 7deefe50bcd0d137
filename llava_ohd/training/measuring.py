"""What the speed measurements of both trainings share: floating-point operations, memory, the machine's own rate."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["CPU_ATTENTION", "machine", "product_rate", "resident"]

CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Operations that torch's `FlopCounterMode` does not know by itself: its `custom_mapping`."""


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


def machine(threads: int, device: str) -> dict[str, Any]:
    """Returns what a measurement ran on: `processor`, `cores`, `threads`, `gpu`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "gpu": gpu}
