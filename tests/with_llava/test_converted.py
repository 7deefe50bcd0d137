"""What was trained, merged and converted here answers in the unmodified original as it does here, token by token."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd.world import MINI_LLAMA

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".venv/bin/python"
SCRIPT = Path(__file__).with_name("convert_here.py")
QUESTION = "<image>\nIs there a ball in the image?"

pytestmark = pytest.mark.skipif(not HERE.exists(), reason=f"no {HERE}; `make setup` makes it")


@pytest.fixture(scope="module")
def language(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model in float16, as the original loads it, with a tokenizer that keeps spaces as Llama's."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("language") / "tiny_vicuna"
    shutil.copytree(tiny_llama_dir, folder)
    weights = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(MINI_LLAMA / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def made(language: Path, tiny_encoder_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made_here")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"LLAVA_OHD_HOME": str(out / "home")}
    command = [str(HERE), str(SCRIPT), *map(str, (language, tiny_encoder_dir, images, out))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out


def answer(folder: Path, base: Path | None, load: Any, images: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens for each image, and the logits of the first, by the original code in float32."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    tokenizer, model, processor = load(folder, base)
    model.float()
    talk = conv_templates["vicuna_v1"].copy()
    talk.append_message(talk.roles[0], QUESTION)
    talk.append_message(talk.roles[1], None)
    ids = tokenizer_image_token(talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    tokens, scores = [], []
    for number in range(4):
        image = Image.open(images / f"{number}.png").convert("RGB")
        pixels = process_images([image], processor, model.config)
        with torch.inference_mode():
            scores.append(model(ids, images=pixels).logits[0, -1])
            tokens.append(model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12)[0].tolist())
    return tokens, torch.stack(scores)


BESIDE_A_BASE = ("llava-projector", "llava-lora", "llava-qlora")
WHOLE = ("llava-full", "llava-unfrozen")
FLOAT16 = ("llava-merged", "llava-quantised-merged", "llava-back", "llava-beside")


@pytest.mark.parametrize("name", [*BESIDE_A_BASE, *WHOLE, *FLOAT16])
def test_the_original_answers_as_here(name: str, made: Path, language: Path, load: Any, images: Path) -> None:
    base = language if name in BESIDE_A_BASE else None
    tokens, scores = answer(made / name, base, load, images)
    here = json.loads((made / "answers.json").read_text())[name]
    expected = torch.tensor(here["scores"])
    # The original rounds what it loads to float16, and adds an adapter in float16.
    tolerance = 1e-5 if name in FLOAT16 else 4 * torch.finfo(torch.float16).eps
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    assert [row[-len(mine) :] for row, mine in zip(tokens, here["tokens"], strict=True)] == here["tokens"]
    assert len({tuple(row) for row in here["tokens"]}) > 1 or not torch.equal(expected[0], expected[1])


def test_all_folders_of_one_model_answer_alike(made: Path) -> None:
    here = json.loads((made / "answers.json").read_text())
    for name in ("llava-back", "llava-beside", "hf"):
        assert here[name]["tokens"] == here["llava-merged"]["tokens"]
