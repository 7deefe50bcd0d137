"""The unmodified original code, haotian-liu/LLaVA @ c121f04, on transformers 4.37.2: `LLAVA_REPO=PATH make test-llava`.

Its training runs in processes of its own, as users start it; loading and answering run in this one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

REPO = os.environ.get("LLAVA_REPO")
ROOT = Path(__file__).resolve().parents[2]

COMMON = """
--image_aspect_ratio pad --mm_vision_select_layer -2 --mm_projector_type mlp2x_gelu --mm_use_im_start_end False
--mm_use_im_patch_token False --max_steps 2 --per_device_train_batch_size 2 --use_cpu True --logging_steps 1
--save_strategy no --report_to none --lazy_preprocess True --learning_rate 1e-2 --model_max_length 256 --seed 0
"""
FLAGS = COMMON.split()
PROJECTOR = ("--version", "plain", "--tune_mm_mlp_adapter", "True")
LORA = ("--version", "v1", "--lora_enable", "True", "--lora_r", "8", "--lora_alpha", "16", "--mm_projector_lr", "1e-3")
FULL = ("--version", "v1")


@pytest.fixture(autouse=True, scope="session")
def _original_code() -> None:
    if not REPO:
        pytest.skip("LLAVA_REPO is not set: give a checkout of haotian-liu/LLaVA @ c121f04 (make test-llava)")
    if version("transformers") != "4.37.2":
        pytest.skip(f"transformers {version('transformers')} is installed; the original code needs 4.37.2")


@pytest.fixture(autouse=True)
def _default_type() -> Iterator[None]:
    """A `from_pretrained` of 4.37 that raises leaves the default type at float16."""
    import torch

    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def other_encoder_dir(_original_code: None, tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder B: the geometry of the tiny one, other weights."""
    import torch
    from transformers import CLIPModel

    from llava_ohd import tower

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(tower.load(tiny_encoder_dir).config)
    folder = tmp_path_factory.mktemp("encoders") / "other"
    tower.write(model, folder, files_from=tiny_encoder_dir, name="other", parents=[], config={"seed": 1})
    return folder


@pytest.fixture(scope="session")
def images(_original_code: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, and `data.json` with a question and an answer for each."""
    import numpy
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = numpy.random.default_rng(0)
    rows = []
    for number in range(4):
        pixels = generator.integers(0, 256, (40, 30 + 10 * number, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [("human", "<image>\nIs there a ball in the image?"), ("gpt", "Yes" if number % 2 else "No")]
        talk = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


class Trainer:
    """Runs the original train.py for two steps."""

    def __init__(self, images: Path) -> None:
        self.images = images

    def __call__(self, base: Path, encoder: Path | str, output: Path, *flags: str) -> dict[str, Any]:
        """Returns config.json of what was trained, and the loss of each step as `losses`."""
        command = [sys.executable, "-m", "llava.train.train", *FLAGS, "--model_name_or_path", str(base)]
        command += ["--vision_tower", str(encoder), "--output_dir", str(output), *flags]
        command += ["--data_path", str(self.images / "data.json"), "--image_folder", str(self.images)]
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        log = json.loads((output / "trainer_state.json").read_text())["log_history"]
        config = json.loads((output / "config.json").read_text())
        return config | {"losses": [row["loss"] for row in log if "loss" in row]}


@pytest.fixture(scope="session")
def train(images: Path) -> Trainer:
    return Trainer(images)


@pytest.fixture(scope="session")
def trained(
    train: Trainer, tiny_llama_dir: Path, tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Both stages and full training from a plain language model, `--vision_tower FOLDER`: folder and record of each."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    projector = root / "llava-tiny-projector"
    made["projector"] = projector, train(tiny_llama_dir, tiny_encoder_dir, projector, *PROJECTOR)
    warm = ("--pretrain_mm_mlp_adapter", str(projector / "mm_projector.bin"))
    for name, flags in (("lora", LORA), ("full", FULL)):
        folder = root / f"llava-tiny-{name}"
        made[name] = folder, train(tiny_llama_dir, tiny_encoder_dir, folder, *flags, *warm)
    return made


@pytest.fixture(scope="session")
def load(_original_code: None) -> Callable[..., tuple[Any, Any, Any]]:
    """Gives tokenizer, model and image processor of a checkpoint by the original loader, on the CPU.

    The language model is in float16 there; the tower stays in float32, but gives its features in the images' type.
    """
    from llava.mm_utils import get_model_name_from_path
    from llava.model import builder

    def load(folder: Path, base: Path | None = None) -> tuple[Any, Any, Any]:
        name = get_model_name_from_path(str(folder))
        return builder.load_pretrained_model(str(folder), str(base) if base else None, name, device="cpu")[:3]

    return load
