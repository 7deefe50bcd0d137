"""The main job end to end, with few steps: through a kill, to a report, and beyond it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_ohd.world.main_job import ENCODERS, JobConfig, main_job, on_photos, photos_job

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = ("--steps", "0.02")


def quickstart(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts/quickstart.py"), "--out", str(out), *STEPS, *arguments]


def test_without_photos_the_photos_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    command = [*quickstart(tmp_path / "runs"), "--photos", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"skipped: there is no folder {tmp_path / 'none'}" in done.stdout
    assert not (tmp_path / "runs").exists()


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the job stopped by itself"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)


@pytest.mark.parametrize("photos", [False, True])
def test_every_stage_comes_after_those_it_needs(tmp_path: Path, photos: bool) -> None:
    job = JobConfig(tmp_path)
    stages = photos_job(on_photos(job), tmp_path, tmp_path) if photos else main_job(job)
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.needs) <= seen
        seen.add(stage.name)
    outputs = [stage.output for stage in stages]
    assert len(set(outputs)) == len(outputs)


def test_nothing_heavy_is_imported_to_see_that_nothing_is_to_do() -> None:
    code = "import sys, llava_ohd.world.main_job; print({'torch', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where the job was killed in the middle of training LLaVA, and then run to its end."""
    out = tmp_path_factory.mktemp("job") / "runs"
    first = subprocess.Popen(quickstart(out), stdout=subprocess.DEVNULL)
    wait_for(out / "job/logs/projector-openai.log", first)
    wait_for(out / "job/logs/projector-openai.progress", first)  # the first step is done, the second under way
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(quickstart(out), capture_output=True, text=True, check=False, timeout=900)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "are complete from an earlier run and are skipped" in second.stdout
    return out


def test_results_of_both_encoders_are_there_and_complete(finished: Path) -> None:
    digests = set()
    for encoder in ENCODERS:
        for name in ("ohd_caps", "zero_shot", "pope", "chair"):
            record = json.loads((finished / "eval" / encoder / name / "results.json").read_text())
            assert record["complete"]
            digests.add((encoder, record["encoder"]["digest"]))
        pope = json.loads((finished / "eval" / encoder / "pope" / "results.json").read_text())
        assert pope["n"] == 9000  # as many as POPE asks about COCO
        assert pope["metrics"].keys() >= {"adversarial/accuracy", "random/f1", "f1_macro"}
    assert len(digests) == 2, "each encoder was measured with its own tower, and the two differ"


def test_the_report_stands_alone(finished: Path) -> None:
    page = (finished / "report/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page
    assert "<link" not in page
    assert page.count("data:image/png;base64") >= 1


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "eval").rglob("*") if path.is_file()}
    headline, _, _ = (finished / "report/table.md").read_text().partition("\n## All metrics")
    again = subprocess.run(quickstart(finished), capture_output=True, text=True, check=True, timeout=120)
    assert "16 of 16 stages are complete" in again.stdout
    assert headline.rstrip() in again.stdout
    assert f"all metrics: {finished / 'report/table.md'}" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "eval").rglob("*") if path.is_file()}


def test_evaluations_work_on_their_own_afterwards(finished: Path) -> None:
    environment = os.environ | {"LLAVA_OHD_HOME": str(finished)}
    command = [sys.executable, str(REPOSITORY / "eval/pope.py"), "--encoder", "ours"]
    stage = json.loads((finished / "eval/ours/pope/results.json").read_text())
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    assert "adversarial/accuracy" in done.stdout
    assert json.loads((finished / "eval/ours/pope/results.json").read_text())["metrics"] == stage["metrics"]


def test_a_lost_register_is_made_again(finished: Path) -> None:
    register = finished / "encoders.json"
    whole = json.loads(register.read_text())
    register.unlink()
    subprocess.run(quickstart(finished), capture_output=True, check=True, timeout=120)
    assert json.loads(register.read_text()) == whole


def test_an_altered_output_is_made_again_with_the_same_result(finished: Path) -> None:
    answers = finished / "eval/openai/chair/answers.jsonl"
    whole = answers.read_bytes()
    answers.write_bytes(whole[: len(whole) // 2])
    subprocess.run(quickstart(finished), capture_output=True, check=True, timeout=300)
    assert answers.read_bytes() == whole


def test_reproduce_tiny_trains_as_the_main_job_does(tmp_path: Path) -> None:
    """The flags that stand in both files have the same values; the first part of the script is the tiny one."""
    tiny = (REPOSITORY / "scripts/reproduce.sh").read_text().split("\nelse\n")[0]
    given = {name: values.split() for name, values in re.findall(r"\b([A-Z]+)=\(([^)]*)\)", tiny)}
    commands = {stage.name: stage.commands[0] for stage in main_job(JobConfig(tmp_path))}
    for name, stage in (("CLIP", "encoder"), ("PROJECTOR", "projector-ours"), ("LORA", "lora-ours")):
        flags = given[name] + (given["COMMON"] if name != "CLIP" else [])
        assert len(flags) >= 8
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            command = commands[stage]
            expected = command[command.index(flag) + 1]
            assert expected == value or float(expected) == float(value), (name, flag)
