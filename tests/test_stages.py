"""The runner of stages: what is skipped, what runs again, what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llava_ohd.code_digest import _parsed
from llava_ohd.errors import StageFailed
from llava_ohd.files import is_complete
from llava_ohd.stages import PORT, Stage, as_shell, fingerprints, run_stages

COUNT = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); (p / 'n').write_text('whole'); "
COUNT += "f = p.with_suffix('.runs'); f.write_text(str(int(f.read_text()) + 1 if f.exists() else 1))"


def counting(folder: Path, name: str, needs: tuple[str, ...] = (), mark: str = "") -> Stage:
    """A stage whose output says how often it ran."""
    command = (sys.executable, "-c", COUNT, str(folder / name), mark)
    return Stage(name, name, (command,), folder / name, needs, seconds=1)


def runs(folder: Path, *names: str) -> list[int]:
    return [int((folder / f"{name}.runs").read_text()) for name in names]


def test_complete_stages_are_skipped(tmp_path: Path) -> None:
    stages = [counting(tmp_path, "a"), counting(tmp_path, "b", ("a",))]
    run_stages(stages, tmp_path / "job")
    run_stages(stages, tmp_path / "job")
    assert runs(tmp_path, "a", "b") == [1, 1]


def test_a_changed_command_runs_again_with_all_that_rests_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stages(mark: str) -> list[Stage]:
        return [
            counting(tmp_path, "a", mark=mark),
            counting(tmp_path, "b", ("a",)),
            counting(tmp_path, "c"),
        ]

    run_stages(stages("x"), tmp_path / "job")
    assert "made again" not in capsys.readouterr().out
    run_stages(stages("y"), tmp_path / "job")
    assert "a: made again, since its command, its code or what it reads has changed" in capsys.readouterr().out
    assert runs(tmp_path, "a", "b", "c") == [2, 2, 1]


def test_what_rests_on_an_incomplete_stage_is_not_called_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [counting(tmp_path, "a"), counting(tmp_path, "b", ("a",)), counting(tmp_path, "c")]
    run_stages(stages, tmp_path / "job")
    (tmp_path / "a" / "complete.json").unlink()
    capsys.readouterr()
    run_stages(stages, tmp_path / "job")
    printed = capsys.readouterr().out
    assert "1 of 3 stages are complete" in printed
    assert "[1/3] a (about 0:02 left)" in printed


def test_the_name_of_the_interpreter_does_not_make_a_stage_stale(tmp_path: Path) -> None:
    stages = [Stage("a", "a", ((program, "x.py"),), tmp_path) for program in ("/v/bin/python", "/usr/bin/python3.11")]
    assert fingerprints(stages[:1]) == fingerprints(stages[1:])


def test_a_file_that_is_read_and_a_script_that_is_run_make_a_stage_stale(tmp_path: Path) -> None:
    read, script = tmp_path / "weights", tmp_path / "run.py"
    read.write_text("1")
    script.write_text("print(1)")
    stage = Stage("a", "a", ((sys.executable, str(script)),), tmp_path / "a", reads=(tmp_path / "weights",))
    before = fingerprints([stage])["a"]
    read.write_text("2")
    assert fingerprints([stage])["a"] != before
    read.write_text("1")
    assert fingerprints([stage])["a"] == before
    script.write_text("print(2)")
    _parsed.cache_clear()
    assert fingerprints([stage])["a"] != before


def test_all_stages_can_be_run_by_hand(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import os, sys; print(os.environ['A'], sys.argv[1:])", "--port", PORT, "it's")
    text = as_shell([Stage("a", "making it", (command,), tmp_path / "a")], {"A": "x y"})
    done = subprocess.run(["bash", "-e"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == 'x y ["it\'s"]\n'
    assert "# making it" in text


def test_what_rests_on_a_stage_that_ran_again_runs_again(tmp_path: Path) -> None:
    stages = [counting(tmp_path, "a"), counting(tmp_path, "b", ("a",)), counting(tmp_path, "c")]
    run_stages(stages, tmp_path / "job")
    (tmp_path / "a" / "n").unlink()
    run_stages(stages, tmp_path / "job")
    assert runs(tmp_path, "a", "b", "c") == [2, 2, 1]


@pytest.mark.parametrize("damage", ["shorten", "remove", "marker"])
def test_a_damaged_output_is_not_taken_for_whole(tmp_path: Path, damage: str) -> None:
    stages = [counting(tmp_path, "a")]
    run_stages(stages, tmp_path / "job")
    output = tmp_path / "a"
    if damage == "shorten":
        (output / "n").write_text("")
    elif damage == "remove":
        (output / "n").unlink()
    else:
        (output / "complete.json").write_text('{"fingerprint": "')
    assert not is_complete(output, fingerprints(stages)["a"])


def test_a_failing_command_is_named_with_its_error_and_its_log(tmp_path: Path) -> None:
    program = "import sys; print('error: DataFormatError: x.json is empty'); sys.exit(2)"
    stage = Stage("bad", "reading x", ((sys.executable, "-c", program),), tmp_path / "bad")
    with pytest.raises(StageFailed, match=r"reading x: error: DataFormatError: x\.json is empty") as caught:
        run_stages([stage], tmp_path / "job")
    assert str(tmp_path / "job" / "logs" / "bad.log") in str(caught.value)
    assert not is_complete(tmp_path / "bad", fingerprints([stage])["bad"])


def test_a_command_that_ends_well_without_its_output_is_not_done(tmp_path: Path) -> None:
    """As DeepSpeed's launcher does when its child was killed."""
    stage = Stage("a", "making a", ((sys.executable, "-c", "print('fine')"),), tmp_path / "a", proof="ohd.json")
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"ended without an error, but did not write .*a/ohd\.json"):
            run_stages([stage], tmp_path / "job")
    assert not is_complete(tmp_path / "a", fingerprints([stage])["a"])


def test_the_children_of_a_killed_command_end_with_it(tmp_path: Path) -> None:
    child = "import pathlib, sys, time; time.sleep(2); pathlib.Path(sys.argv[1]).write_text('late')"
    leader = "import os, signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); "
    leader += "os.kill(os.getpid(), signal.SIGKILL)"
    stage = Stage("a", "a", ((sys.executable, "-c", leader, child, str(tmp_path / "late")),), tmp_path / "a")
    with pytest.raises(StageFailed, match="was killed by signal 9"):
        run_stages([stage], tmp_path / "job")
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_half_done_work_goes_when_what_it_rests_on_is_made_again(tmp_path: Path) -> None:
    fails = (
        sys.executable,
        "-c",
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'half').touch(); sys.exit(1)",
        str(tmp_path / "b"),
    )
    stages = [counting(tmp_path, "a"), Stage("b", "b", (fails,), tmp_path / "b", ("a",))]
    with pytest.raises(StageFailed):
        run_stages(stages, tmp_path / "job")
    assert (tmp_path / "b/half").exists()
    (tmp_path / "a/n").unlink()
    with pytest.raises(StageFailed):  # mkdir of what was not removed would raise FileExistsError
        run_stages(stages, tmp_path / "job")
    assert "FileExistsError" not in (tmp_path / "job/logs/b.log").read_text()


def test_a_port_is_chosen_anew_and_does_not_make_a_stage_stale(tmp_path: Path) -> None:
    program = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'port').write_text(sys.argv[2])"
    stage = Stage("p", "p", ((sys.executable, "-c", program, str(tmp_path / "p"), PORT),), tmp_path / "p")
    run_stages([stage], tmp_path / "job")
    run_stages([stage], tmp_path / "job")
    assert 1024 < int((tmp_path / "p" / "port").read_text()) < 65536


def test_peak_memory_and_seconds_are_kept(tmp_path: Path) -> None:
    program = f"import pathlib; x = b'1' * 200 * 2**20; pathlib.Path({str(tmp_path / 'm')!r}).mkdir()"
    run_stages([Stage("m", "m", ((sys.executable, "-c", program),), tmp_path / "m")], tmp_path / "job")
    timing = json.loads((tmp_path / "job" / "timings.json").read_text())["m"]
    assert timing["peak_mib"] > 200  # no less than this process, from which it was forked
    assert timing["seconds"] > 0


def test_a_killed_job_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    """Kill -9 of the job: its command lives on until the job is started again, which ends it and runs the stage."""
    job = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from llava_ohd.stages import Stage, run_stages
        out = Path({str(tmp_path)!r})
        slow = "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); "
        slow += "(p / 'pid').write_text(str(os.getpid())); "
        slow += "time.sleep(0 if (p / 'quick').exists() else 60); (p / 'done').write_text('1')"
        (out / "s").mkdir(exist_ok=True)
        run_stages([Stage("s", "s", ((sys.executable, "-c", slow, str(out / "s")),), out / "s")], out / "job")
    """)
    first = subprocess.Popen([sys.executable, "-c", job])
    pid = tmp_path / "s" / "pid"
    deadline = time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = int(pid.read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    os.kill(left, 0)  # still there
    (tmp_path / "s" / "quick").touch()
    subprocess.run([sys.executable, "-c", job], check=True, timeout=60)
    assert (tmp_path / "s" / "done").is_file()
    state = Path(f"/proc/{left}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_two_jobs_in_one_folder_are_refused(tmp_path: Path) -> None:
    from llava_ohd.stages import _locked

    (tmp_path / "job").mkdir()
    with _locked(tmp_path / "job"), pytest.raises(StageFailed, match="another run works in"):
        run_stages([counting(tmp_path, "a")], tmp_path / "job")
