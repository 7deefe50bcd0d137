"""Runs commands as stages that survive a kill: each is skipped when its output is there and complete.

A stage's output folder is complete when `complete.json` in it carries the stage's fingerprint (its commands, the code
that they run, the files that they read, and the fingerprints of the stages before it) and every file still has the size
noted there. So a stage runs again when any of these has changed, and never because the job was interrupted elsewhere.
"""

import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd import __version__
from llava_ohd.code_digest import PACKAGE, code_digest
from llava_ohd.errors import DataFormatError, StageFailed
from llava_ohd.files import (
    COMPLETE,
    is_complete,
    mark_complete,
    read_json,
    remove_folder,
    sha256_file,
    sha256_json,
    storage_errors,
    write_json,
)
from llava_ohd.processes import end_left_over, free_port, run_group
from llava_ohd.stage_bar import StageBar

__all__ = ["PORT", "Stage", "as_shell", "fingerprints", "run_stages"]

PORT = "{port}"  # stands in a command for a free TCP port, chosen when it starts
_OWN = f"{PACKAGE.name}."


@dataclass(frozen=True)
class Stage:
    """One step of a job.

    Attributes:
        name: Unique, fit for a file name.
        label: What it does, in a few words, for the progress bar.
        commands: Programs with arguments, run one after the other; an argument `PORT` becomes a free port.
        output: Folder that this stage alone writes.
        needs: Names of earlier stages whose output it reads.
        reads: Files and folders that it reads beside these; their content counts.
        seconds: Expected wall time on two idle cores; only weighs the progress bar.
        threads: CPU threads of each of its processes.
        proof: File or folder that must lie in the output at the end: a launcher may be killed and report no error.
    """

    name: str
    label: str
    commands: tuple[tuple[str, ...], ...]
    output: Path
    needs: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()
    seconds: float = 10.0
    threads: int = 2
    proof: str = ""


def fingerprints(stages: Sequence[Stage]) -> dict[str, str]:
    """Returns for each stage the hash of its command and of all that it rests on."""
    found: dict[str, str] = {}
    for stage in stages:
        # one interpreter has several names: .venv/bin/python, python3
        commands = [[Path(program).name.rstrip("0123456789."), *rest] for program, *rest in stage.commands]
        code = [code_digest(file) for command in stage.commands for file in _code(command)]
        read = [[sha256_file(file) for file in _files(place)] for place in stage.reads]
        found[stage.name] = sha256_json([__version__, commands, code, read, [found[name] for name in stage.needs]])
    return found


def _code(command: tuple[str, ...]) -> list[Path]:
    """Returns the Python files that a command starts: its scripts, and the main file of `-m package`."""
    modules = [PACKAGE.parent.joinpath(*name.split("."), "__main__.py") for name in command if name.startswith(_OWN)]
    scripts = [Path(part) for part in command if part.endswith(".py")]
    return [file for file in (*scripts, *modules) if file.is_file()]


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise DataFormatError(f"{place} does not exist; give the path of an existing file or folder")
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def as_shell(stages: Sequence[Stage], environment: dict[str, str]) -> str:
    """Returns what to type in a shell to run all stages by hand, one line per command."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    for stage in stages:
        lines += [f"# {stage.label}", *(shlex.join(_without_port(command)) for command in stage.commands)]
    return "".join(f"{line}\n" for line in lines)


def _without_port(command: tuple[str, ...]) -> list[str]:
    """Leaves out a port and its flag: by hand the launcher's own will do."""
    kept = [i for i in range(len(command)) if PORT not in command[i : i + 2]]
    return [command[i] for i in kept]


def run_stages(stages: Sequence[Stage], folder: Path) -> None:
    """Runs what is not complete yet, in order, with one progress bar over all.

    Args:
        stages: In an order in which every stage comes after those it needs.
        folder: Logs, timings and the lock of the job go here.

    Raises:
        StageFailed: a command failed, or the same job is running already.
        StorageError: the disk is full or not writable.
    """
    prints = fingerprints(stages)
    with storage_errors(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        complete: set[str] = set()
        for stage in stages:
            if complete.issuperset(stage.needs) and is_complete(stage.output, prints[stage.name]):
                complete.add(stage.name)
        done = [stage.name in complete for stage in stages]
        bar = StageBar([stage.label for stage in stages], [stage.seconds for stage in stages], done)
        made: set[str] = set()
        for number, stage in enumerate(stages):
            # asked anew: an earlier stage may have replaced what this one rests on, or its very folder
            if not made & set(stage.needs) and is_complete(stage.output, prints[stage.name]):
                continue
            bar.start(number)
            _clear_stale(stage, prints[stage.name], folder, rests_on_new=bool(made & set(stage.needs)))
            made.add(stage.name)
            spent = _run(stage, folder, bar)
            mark_complete(stage.output, prints[stage.name])
            _note(folder, stage, spent)
            bar.finish(spent["seconds"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the job's lock; ends what an earlier, killed run of it left running."""
    with storage_errors(folder), (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageFailed(f"another run works in {folder}; wait for it, stop it, or choose another --out") from None
        end_left_over(folder / "running.json")
        yield


def _clear_stale(stage: Stage, fingerprint: str, folder: Path, rests_on_new: bool) -> None:
    """Removes output that was begun with other commands or inputs, or finished and then damaged or outdated.

    Half-done work of this very stage stays, unless something that it rests on was made again.
    """
    file = folder / "begun.json"
    begun = read_json(file) if file.is_file() else {}
    if not rests_on_new and (stage.output / COMPLETE).is_file():
        print(f"{stage.label}: made again, since its command, its code or what it reads has changed", flush=True)
    if rests_on_new or begun.get(stage.name, fingerprint) != fingerprint or (stage.output / COMPLETE).is_file():
        remove_folder(stage.output)
    write_json(file, begun | {stage.name: fingerprint})


def _run(stage: Stage, folder: Path, bar: StageBar) -> dict[str, float]:
    """Runs the commands of a stage, their output into a log; returns seconds and the peak memory of any process."""
    progress = folder / "logs" / f"{stage.name}.progress"
    variables = os.environ | {"LLAVA_OHD_PROGRESS": str(progress), "OMP_NUM_THREADS": str(stage.threads)}
    log, started, peak = folder / "logs" / f"{stage.name}.log", time.monotonic(), 0.0
    for command in stage.commands:
        progress.unlink(missing_ok=True)
        command = tuple(str(free_port()) if part == PORT else part for part in command)
        note = folder / "running.json"
        status, memory = run_group(command, variables, log, note, watch=lambda: bar.show(progress))
        peak = max(peak, memory)
        if status != 0:
            raise StageFailed(
                f"{stage.label}: {_reason(log, status)}\n  log: {log}\n  The same command goes on from here."
            )
    progress.unlink(missing_ok=True)
    if not (stage.output / stage.proof).exists():
        raise StageFailed(
            f"{stage.label}: ended without an error, but did not write {stage.output / stage.proof}; a process of it "
            f"may have been killed\n  log: {log}\n  The same command goes on from here."
        )
    return {"seconds": time.monotonic() - started, "peak_mib": peak}


def _reason(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last_start = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=0)
    errors = [line for line in lines[last_start:] if line.startswith("error: ") or "Error: " in line]
    if errors:
        return next((line for line in errors if line.startswith("error: ")), errors[-1])
    return f"was killed by signal {-status}" if status < 0 else f"stopped with exit code {status}: {lines[-1][:300]}"


def _note(folder: Path, stage: Stage, spent: dict[str, float]) -> None:
    """Keeps the cost of each stage; a stage that was interrupted counts only its last run."""
    file = folder / "timings.json"
    timings = read_json(file) if file.is_file() else {}
    timings[stage.name] = {name: round(value, 1) for name, value in spent.items()}
    write_json(file, timings)
