"""Two processes: the curve of one process with twice the batch, resume after kill -9 in a later epoch, ZeRO-2."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llava_ohd import tower

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


class Runs:
    """Starts scripts/finetune_clip.py; 24 rows, 2 x 4 a step: 3 steps an epoch."""

    def __init__(self, folder: Path, encoder: Path, data: tuple[Path, Path]) -> None:
        self.folder = folder
        flags = {"encoder": encoder, "data": data[0], "images": data[1], "learning_rate": 1e-3, "max_steps": 9}
        flags |= {"warmup_steps": 1, "save_steps": 4}
        self._flags = [part for name, value in flags.items() for part in (f"--{name}", str(value))]

    def start(self, out: str, ranks: int, *more: str, launcher: str = "torchrun") -> subprocess.Popen[bytes]:
        binary = Path(sys.executable).parent
        start = {
            "python": [sys.executable],
            "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)],
            "deepspeed": [str(binary / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())],
        }[launcher if ranks > 1 else "python"]
        command = [*start, str(ROOT / "scripts/finetune_clip.py"), *self._flags, "--out", str(self.folder / out)]
        command += ["--batch_size", str(8 // ranks), "--name", out, *more]
        home = {"LLAVA_OHD_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        home |= {"PATH": str(binary), "TORCH_EXTENSIONS_DIR": str(self.folder / "compiled")}  # there is no compiler
        with (self.folder / f"{out}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | home, cwd=ROOT, start_new_session=True
            )

    def __call__(self, out: str, ranks: int, *more: str, launcher: str = "torchrun") -> list[float]:
        running = self.start(out, ranks, *more, launcher=launcher)
        try:
            status = running.wait(timeout=300)
        finally:
            self.end(running)
        assert status == 0, (self.folder / f"{out}.log").read_text()
        return self.losses(out)

    @staticmethod
    def end(running: subprocess.Popen[bytes]) -> None:
        """Ends the launcher and its ranks, each of which has a session of its own, where they still run."""
        if running.poll() is None:
            for process in [running.pid, *children(running.pid)]:
                os.kill(process, signal.SIGKILL)
            running.wait()

    def losses(self, out: str) -> list[float]:
        return [row["loss"] for row in json.loads((self.folder / out / "curve.json").read_text())]


@pytest.fixture
def runs(tmp_path: Path, tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> Runs:
    return Runs(tmp_path, tiny_encoder_dir, ohd)


@pytest.mark.slow
def test_two_ranks_are_one_and_go_on_after_kill_9(runs: Runs, tmp_path: Path) -> None:
    whole = runs("two", 2)
    assert runs("one", 1) == pytest.approx(whole, rel=1e-4)
    for name, weight in tower.load(tmp_path / "one" / "encoder").state_dict().items():
        torch.testing.assert_close(
            weight, tower.load(tmp_path / "two" / "encoder").state_dict()[name], atol=1e-3, rtol=0
        )

    running = runs.start("resumed", 2)
    marker = tmp_path / "resumed" / "checkpoint-4" / "complete.json"  # in the middle of the second epoch
    while not marker.is_file():
        assert running.poll() is None, (tmp_path / "resumed.log").read_text()
        time.sleep(0.01)
    runs.end(running)
    assert not (tmp_path / "resumed" / "curve.json").exists()
    assert runs("resumed", 2) == whole
    assert tower.check(tmp_path / "resumed" / "encoder").digest == tower.check(tmp_path / "two" / "encoder").digest


@pytest.mark.slow
def test_zero_2_has_the_same_curve(runs: Runs, tmp_path: Path) -> None:
    zero2 = ("--deepspeed", str(ROOT / "zero_configs/zero2.json"))
    zero = runs("zero", 2, *zero2, launcher="deepspeed")
    assert runs("two", 2) == pytest.approx(zero, rel=1e-4)
    assert not (tmp_path / "compiled").exists()


def test_the_flag_of_deepspeeds_launcher_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "scripts/finetune_clip.py")
    monkeypatch.setattr(sys, "argv", [script, "--local_rank=0", "--data", "nothing.jsonl"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(script, run_name="__main__")
    assert "error: DataFormatError: nothing.jsonl does not exist" in capsys.readouterr().err
