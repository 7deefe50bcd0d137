"""A conversion holds one tensor at a time: its memory stays below one shard, at a scaled-down 7B shape."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_ohd import tower
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.world import MINI_LLAMA

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
SHARD = 80_000_000
MEASURE = """
import sys
from pathlib import Path
from llava_ohd.llava15.convert import ConvertConfig, convert

def kilobytes(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

small, large, base, out = sys.argv[1:]
convert(ConvertConfig(Path(small), Path(out) / "warm", base=base))  # everything is imported and allocated once
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
convert(ConvertConfig(Path(large), Path(out) / "hf", max_shard_size="80MB"))
print((kilobytes("VmHWM") - before) * 1024)
"""


def write_large(folder: Path, encoder: tower.Encoder) -> int:
    """A whole LLaVA of 240 MB in float16, in tensors of up to 8 MB; returns its bytes."""
    folder.mkdir()
    text = json.loads((MINI_LLAMA / "config.json").read_text())
    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 7}
    shape |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "tie_word_embeddings": False}
    flags = {"image_aspect_ratio": "pad", "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False}
    flags |= {"model_max_length": 256}
    config = llava_config(MINI_LLAMA, encoder, flags) | shape
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes((MINI_LLAMA / "tokenizer.model").read_bytes())
    width, wide, words = 1024, 4096, text["vocab_size"]
    shapes = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    shapes |= {"lm_head.weight": (words, width)}
    shapes |= {"model.mm_projector.0.weight": (width, encoder.hidden_size), "model.mm_projector.0.bias": (width,)}
    shapes |= {"model.mm_projector.2.weight": (width, width), "model.mm_projector.2.bias": (width,)}
    for layer in range(7):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        shapes |= {f"{start}mlp.{x}_proj.weight": (wide, width) for x in ("gate", "up")}
        shapes |= {f"{start}mlp.down_proj.weight": (width, wide)}
        shapes |= {f"{start}{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    save_file(
        {name: torch.full(size, 0.01, dtype=torch.float16) for name, size in shapes.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return (folder / "model.safetensors").stat().st_size


def test_peak_memory(tiny_encoder_dir: Path, source: Any, tmp_path: Path) -> None:
    size = write_large(tmp_path / "llava-large", tower.check(tiny_encoder_dir))
    assert size > 2.5 * SHARD
    made = source("ours-lora")
    command = [sys.executable, "-c", MEASURE, made.folder, tmp_path / "llava-large", made.base, tmp_path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    peak = int(done.stdout.splitlines()[-1])
    print(f"{size / 1e6:.0f} MB converted with {peak / 1e6:.0f} MB above what the process had")
    assert peak < SHARD
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
