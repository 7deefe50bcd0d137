"""One exported HF folder under transformers 4.37.2, 4.57.6 and 5: whole, the same logits, the same answer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.llava15.convert import ConvertConfig, convert
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.world import MINI_CLIP, MINI_LLAMA

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("export_io.py")
PYTHONS = {
    "4.37": ROOT / ".venv-4.37" / "bin" / "python",
    "4.57": ROOT / ".venv-4.57" / "bin" / "python",
    "now": Path(sys.executable),
}
MISSING = [str(python) for python in PYTHONS.values() if not python.exists()]
KINDS = ("tiny", "world")  # untied in float32, tied in float16

pytestmark = [
    pytest.mark.old_transformers,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}; `make test-old` makes them"),
]


class Found(NamedTuple):
    """What one version made of one folder."""

    said: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_llava(folder: Path, base: Path, encoder: Path) -> Path:
    """A whole LLaVA of a language model and an encoder, with a random projector."""
    folder.mkdir()
    eyes = tower.check(encoder)
    flags = {"image_aspect_ratio": "pad", "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False}
    config = llava_config(base, eyes, flags | {"model_max_length": 256})
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    dtype, random = weights["model.norm.weight"].dtype, torch.Generator().manual_seed(0)
    width = config["hidden_size"]
    for layer, shape in ((0, (width, eyes.hidden_size)), (2, (width, width))):
        weights[f"model.mm_projector.{layer}.weight"] = (torch.randn(shape, generator=random) * 0.2).to(dtype)
        weights[f"model.mm_projector.{layer}.bias"] = torch.randn(width, generator=random).to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(MINI_LLAMA / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def found(
    tiny_llama_dir: Path, tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Found]:
    place = tmp_path_factory.mktemp("exports")
    parts = {"tiny": (tiny_llama_dir, tiny_encoder_dir), "world": (MINI_LLAMA, MINI_CLIP)}
    for kind, (base, encoder) in parts.items():
        source = write_llava(place / f"llava-{kind}", base, encoder)
        convert(ConvertConfig(source, place / kind, max_shard_size="2MB"))
    made = {}
    for version, python in PYTHONS.items():
        out = place / f"read_by_{version}"
        out.mkdir()
        command = [str(python), str(SCRIPT), str(out), *(str(place / kind) for kind in KINDS)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{version}: {done.stderr[-3000:]}"
        for number, kind in enumerate(KINDS):
            said = json.loads((out / f"{number}.json").read_text())
            made[version, kind] = Found(said, load_file(out / f"{number}.safetensors"))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", PYTHONS)
def test_no_weight_is_missing_or_unexpected(found: dict[tuple[str, str], Found], version: str, kind: str) -> None:
    said = found[version, kind].said
    tied = {"language_model.lm_head.weight"} if kind == "world" and version == "4.37" else set()
    assert set(said["missing_keys"]) <= tied  # 4.37 reports a tied head, and ties it
    assert said["unexpected_keys"] == []
    assert said["transformers"].startswith({"4.37": "4.37.2", "4.57": "4.57.6", "now": "5."}[version])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["4.37", "4.57"])
def test_logits_and_answers_are_the_same(found: dict[tuple[str, str], Found], version: str, kind: str) -> None:
    old, now = found[version, kind], found["now", kind]
    torch.testing.assert_close(old.tensors["logits"], now.tensors["logits"], rtol=1e-5, atol=1e-5)
    assert now.tensors["logits"].std() > 0.01
    for key in ("tokens", "prompt", "ids"):
        assert old.said[key] == now.said[key], key


@pytest.mark.parametrize("kind", KINDS)
def test_pixels(found: dict[tuple[str, str], Found], kind: str) -> None:
    """4.37 has no LlavaImageProcessor: it ignores do_pad, and its user pads the image as LLaVA does."""
    now = found["now", kind].tensors
    for version in ("4.37", "4.57"):
        assert torch.equal(found[version, kind].tensors["pixels"], now["pixels"])
    assert torch.equal(now["raw"], now["pixels"])
    assert torch.equal(found["4.57", kind].tensors["raw"], now["raw"])
    assert not torch.equal(found["4.37", kind].tensors["raw"], now["raw"])


@pytest.mark.parametrize("kind", KINDS)
def test_who_expands_the_image(found: dict[tuple[str, str], Found], kind: str) -> None:
    """4.37 wants one `<image>` and makes room in the model; later versions make it in the processor."""
    assert found["4.37", kind].said["images"] == 1
    assert found["4.57", kind].said["images"] == found["now", kind].said["images"] > 1
