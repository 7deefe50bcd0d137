"""Kill -9 in the middle of every stage of the main job, each time started again: the same numbers at the end.

With few steps by default (about six minutes); `LLAVA_OHD_TEST_STEPS=1 pytest -m slow tests/test_kill.py` kills the job
as users run it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_ohd.files import COMPLETE
from llava_ohd.stages import Stage
from llava_ohd.world.main_job import JobConfig, main_job

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = os.environ.get("LLAVA_OHD_TEST_STEPS", "0.02")


def quickstart(out: Path) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts/quickstart.py"), "--out", str(out), "--steps", STEPS]


def kill_in_the_middle(out: Path, stage: Stage, seconds: float) -> None:
    """Starts the job, kills it half-way through a stage, and leaves what the stage had started."""
    begun = out / "job/logs" / f"{stage.name}.log"
    job = subprocess.Popen(quickstart(out), stdout=subprocess.DEVNULL)
    while not begun.exists():
        assert job.poll() is None, f"the job stopped before stage {stage.name}"
        time.sleep(0.05)
    time.sleep(seconds / 2)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (stage.output / COMPLETE).exists(), f"stage {stage.name} was over before it could be killed"


@pytest.mark.slow
def test_killed_in_every_stage_the_job_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(quickstart(whole), check=True, stdout=subprocess.DEVNULL)
    timings = json.loads((whole / "job/timings.json").read_text())
    for stage in main_job(JobConfig(killed)):
        kill_in_the_middle(killed, stage, timings[stage.name]["seconds"])
    subprocess.run(quickstart(killed), check=True, stdout=subprocess.DEVNULL)

    assert (killed / "report/table.md").read_text() == (whole / "report/table.md").read_text()
    results = sorted(path.relative_to(whole) for path in (whole / "eval").rglob("results.json"))
    assert len(results) == 8
    for name in results:
        metrics = [json.loads((home / name).read_text())["metrics"] for home in (whole, killed)]
        assert metrics[0] == metrics[1], name
