"""Loading and swapping need at most 1.2 x the size of the file beside the model, at a sixth of the true size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tower_loading.py"
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)


def measure(step: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, str(SCRIPT), "--step", step, "--folder", str(folder), "--dtype", "float16"]
    done = subprocess.run(
        [*command, "--layers", "4"], capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_peak_memory(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    measure("write", folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 100_000_000  # large beside what a process needs anyway
    for step in ("tower", "swap"):
        assert measure(step, folder)["above_model"] < 1.2 * size, step
