"""What the README says is there, runs, and stands in the measured results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.world.dataset import WorldConfig

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PROGRAMS = sorted(path for folder in ("scripts", "eval") for path in (REPOSITORY / folder).glob("*.py"))


def test_every_path_in_the_readme_exists() -> None:
    named = set(re.findall(r"`((?:scripts|eval|llava_ohd|zero_configs|benchmarks|tests)/[\w./-]*)", README))
    named |= set(re.findall(r"((?:scripts|eval)/\w+\.(?:py|sh))", README))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_every_program_is_in_the_readme_or_named_by_one_that_is() -> None:
    known = README + (REPOSITORY / "llava_ohd/world/main_job.py").read_text() + (REPOSITORY / "Makefile").read_text()
    assert [path.name for path in PROGRAMS if f"{path.parent.name}/{path.name}" not in known] == []


def test_the_table_is_the_measured_one() -> None:
    shown = README.split("<!-- table -->")[1].split("<!-- /table -->")[0].strip()
    assert shown == (REPOSITORY / "benchmarks/results/world/table.md").read_text().strip()


def test_the_sizes_are_those_of_the_world_and_of_the_measured_run() -> None:
    measured = json.loads((REPOSITORY / "benchmarks/results/world/seed0.json").read_text())["benchmarks"]
    world = WorldConfig()
    assert f"{world.test} test images for OHD-Caps, {world.zero_shot} for zero-shot" in README
    assert f"{world.pope_images} with {18 * world.pope_images:,} questions" in " ".join(README.split())
    sizes = {name: benchmark["n"] for name, benchmark in measured.items()}
    assert sizes == {"ohd_caps": world.test, "zero_shot": world.zero_shot, "pope": 18 * world.pope_images, "chair": 500}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_help_says_inputs_outputs_command_and_cost(program: Path) -> None:
    shown = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("Inputs", "Outputs", "Cost"):
        assert re.search(rf"{word}\b", shown), word
    assert "Command" in shown or f"python scripts/{program.name}" in shown
