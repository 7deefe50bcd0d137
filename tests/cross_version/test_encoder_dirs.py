"""A folder written under one transformers version is the same under every other, or refused; never random weights.

Three environments (`make test-old` makes the old two): 4.37.2, the version of LLaVA; 4.57.6, the last of 4.x; and the
one that runs the tests. Each writes folders, each reads all of them: nine pairs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("encoder_io.py")
PYTHONS = {
    "4.37": ROOT / ".venv-4.37" / "bin" / "python",
    "4.57": ROOT / ".venv-4.57" / "bin" / "python",
    "now": Path(sys.executable),
}
MISSING = [str(python) for python in PYTHONS.values() if not python.exists()]

pytestmark = [
    pytest.mark.old_transformers,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}; `make test-old` makes them"),
]
PAIRS = [(writer, reader) for writer in PYTHONS for reader in PYTHONS]


class Found(NamedTuple):
    """What one environment found in the folders of another."""

    said: dict[str, str]
    tensors: dict[str, torch.Tensor]


class Runs(NamedTuple):
    """Writer to the tokens of its model in memory; (writer, reader) to what was found."""

    truth: dict[str, torch.Tensor]
    found: dict[tuple[str, str], Found]


def run(version: str, *arguments: Any) -> None:
    """Runs the script in one environment; warnings of old libraries are not our business, errors are."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHONS[version]), str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{version}: {done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def runs(tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("cross_version")
    for version in PYTHONS:
        (place / version).mkdir()
        run(version, "write", place / version, tiny_encoder_dir)
    found = {}
    for reader in PYTHONS:
        out = place / f"read_by_{reader}"
        out.mkdir()
        run(reader, "read", out, *(place / writer for writer in PYTHONS))
        for number, writer in enumerate(PYTHONS):
            said = json.loads((out / f"{number}.json").read_text())
            found[writer, reader] = Found(said, load_file(out / f"{number}.safetensors"))
    truth = {version: load_file(place / version / "truth.safetensors")["tokens"] for version in PYTHONS}
    return Runs(truth, found)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_three_versions_ran(runs: Runs) -> None:
    versions = [runs.found["now", reader].said["transformers"] for reader in PYTHONS]
    assert versions[:2] == ["4.37.2", "4.57.6"]
    assert int(versions[2].split(".")[0]) >= 5
    different = {tokens.numpy().tobytes() for tokens in runs.truth.values()}
    assert len(different) == 3  # so that no folder can be taken for another


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_features_are_the_same(runs: Runs, writer: str, reader: str) -> None:
    """By our `load`, and by the call that the original LLaVA makes."""
    said, tensors = runs.found[writer, reader]
    assert "ours" not in said
    close(tensors["ours/tokens"], runs.truth[writer])
    close(tensors["llava/ours"], runs.truth[writer])
    assert said["ours/digest"] == runs.found[writer, writer].said["ours/digest"]


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_pixels_are_the_same_bits(runs: Runs, writer: str, reader: str) -> None:
    expected, found = runs.found["4.37", "4.37"].tensors, runs.found[writer, reader].tensors
    for name in ("pixels/pad", "pixels/square"):
        assert torch.equal(found[name], expected[name])
        assert found[name].shape == (9, 3, 32, 32)


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_save_pretrained_of_a_full_model_is_right_or_refused(runs: Runs, writer: str, reader: str) -> None:
    said, tensors = runs.found[writer, reader]
    assert ("stock_full" in said) != ("stock_full/tokens" in tensors)
    if "stock_full" not in said:
        close(tensors["stock_full/tokens"], runs.truth[writer])


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_save_pretrained_of_a_vision_model_is_refused(runs: Runs, writer: str, reader: str) -> None:
    said, tensors = runs.found[writer, reader]
    assert "clip_vision_model" in said["stock_vision"]
    assert said["flat"].startswith("EncoderFormatError: ")
    assert ("saved by transformers >= 5.6" in said["flat"]) == (writer == "now")
    assert not {"stock_vision/tokens", "flat/tokens"} & tensors.keys()


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
@pytest.mark.parametrize("kind", ["stock_full", "stock_vision", "flat"])
def test_what_save_pretrained_wrote_is_repaired(runs: Runs, writer: str, reader: str, kind: str) -> None:
    """By `import`, into a folder that the call of the original LLaVA loads right."""
    close(runs.found[writer, reader].tensors[f"imported/{kind}"], runs.truth[writer])


def test_the_danger_is_real(runs: Runs) -> None:
    """Without a check, old versions make a random tower of what a new one saved (the reason for all of this)."""
    for reader in ("4.37", "4.57"):
        assert (runs.found["now", reader].tensors["llava/stock_vision"] - runs.truth["now"]).abs().max() > 0.1
    close(runs.found["now", "now"].tensors["llava/stock_vision"], runs.truth["now"])
