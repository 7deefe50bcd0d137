"""A training from a file of flags, messages in JSON Lines, images in a zip, and a faulty row that is left out."""

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """rows.jsonl, images.zip: eight rows, of which one has two images, one none, and one a missing one."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(8):
            file = BytesIO()
            Image.new("RGB", (30 + number, 40), (30 * number, 80, 200)).save(file, "png")
            archive.writestr(f"images/{number}.png", file.getvalue())
    rows = []
    for number in range(8):
        images = [f"{number}.png"] * (2 if number == 2 else 0 if number == 3 else 1)
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": "Is there a ball in the image?"}]}
        rows.append({"id": number, "images": images, "messages": [asked, {"role": "assistant", "content": "Yes"}]})
    rows[5]["images"] = ["none.png"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_training_from_a_file_of_flags(data: Path, tiny_encoder_dir: Path, tiny_llama_dir: Path) -> None:
    flags = {
        "model_name_or_path": str(tiny_llama_dir),
        "vision_tower": str(tiny_encoder_dir),
        "version": "v1",
        "lora_enable": True,
        "lora_r": 4,
        "pretrain_mm_mlp_adapter": "random",
        "data_path": str(data / "rows.jsonl"),
        "image_folder": str(data / "images.zip"),
        "image_aspect_ratio": "pad",
        "group_by_modality_length": True,
        "output_dir": str(data / "out-lora"),
        "max_steps": 50,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.03,
        "model_max_length": 200,
        "save_strategy": "no",
        "dataloader_num_workers": 2,
    }
    (data / "flags.yaml").write_text("".join(f"{name}: {value}\n" for name, value in flags.items()))
    command = [sys.executable, str(CHECKOUT / "scripts/finetune_llava.py"), str(data / "flags.yaml"), "--max_steps=12"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LLAVA_OHD_HOME": str(data / "home")}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, env=environment, timeout=300)

    refused = run()
    assert refused.returncode == 2
    assert "ImageError: row 6: image" in refused.stderr
    done = run("--data_policy", "skip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 rows, 7 images: 1 faulty rows" in done.stdout
    assert "label mask of row 1, template v1" in done.stdout
    assert "[[Yes</s>]]" in done.stdout
    assert "--warmup_ratio: is --warmup_steps in transformers 5" in done.stdout
    manifest = json.loads((data / "out-lora/data_manifest.json").read_text())
    assert [(finding["row"], finding["kind"]) for finding in manifest["findings"]] == [(6, "missing_image")]
    losses = [row["loss"] for row in json.loads((data / "out-lora/curve.json").read_text())]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
