"""Commands in process groups of their own, of which nothing stays behind: not after an error, not after kill -9.

While a command runs, a note on disk names its group; whoever starts the job again ends what the note still leads to.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llava_ohd.files import write_json

__all__ = ["end_left_over", "free_port", "run_group"]

_POLL = 0.3  # seconds


def run_group(
    command: Sequence[str], environment: dict[str, str], log: Path, note: Path, watch: Callable[[], None]
) -> tuple[int, float]:
    """Runs a command to its end.

    Args:
        command: Program and arguments.
        environment: All of it.
        log: Gets the command and what it prints, appended.
        note: Names the running group; gone when the command has ended.
        watch: Called about three times a second.

    Returns:
        Exit status (negative: minus the signal that ended it), and the largest memory of any of its processes, MiB.
    """
    with log.open("ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        write_json(note, {"group": child.pid, "started": _started(child.pid), "boot": _boot()})
        while True:
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if done:
                child.returncode = os.waitstatus_to_exitcode(status)  # waited for here, for the sake of its memory
                break
            watch()
            time.sleep(_POLL)
    finally:
        _end_group(child.pid)  # a launcher that died leaves its ranks
    note.unlink(missing_ok=True)
    return child.returncode, usage.ru_maxrss / 1024


def end_left_over(note: Path) -> None:
    """Ends the processes of a job that was killed: the group of its command, also where its leader is gone."""
    if note.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError):
            left = json.loads(note.read_text())
            if left["boot"] == _boot() and _started(left["group"]) in (left["started"], None):
                _end_group(left["group"])
        note.unlink(missing_ok=True)


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(process: int) -> str | None:
    """Returns the start time of a process, which tells it from a later one with the same number; None: it is gone.

    While a group has members, its number is not given to another process.
    """
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def free_port() -> int:
    """Returns the number of a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
