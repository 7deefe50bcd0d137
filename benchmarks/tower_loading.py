"""Times writing, checking, loading and swapping an encoder of the true size, and measures the memory that each needs.

Input:   none; a random CLIP-L/14-336 (full CLIPModel, 428 million parameters) is made, without its tokenizer.
Output:  benchmarks/results/tower_loading.json: per file type and step the seconds and the peak memory above the model.
Command: python benchmarks/tower_loading.py
Cost:    about 6 minutes, 6 GB of memory, 3 GB of disk.

Steps: `write`, `check`, `load` (the whole CLIPModel, float32), `tower` (OHDVisionTower, float32), `swap` by name into
transformers' LLaVA, whose tower is of the file's type and whose language model is tiny.

Memory is the peak resident set of a process of its own (VmHWM), so it counts the mapped file as well. `above_model` is
what a step needs beside what was there before it (a model to write; for `swap` the LLaVA with its old tower) and what
it returns (the new weights): peak - before - returned. The target is 1.2 x the size of the file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "tower_loading.json"
TARGET = 1.2
STEPS = ("write", "check", "load", "tower", "swap")
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
VISION |= {"image_size": 336, "patch_size": 14, "projection_dim": 768}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
TEXT |= {"projection_dim": 768, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
PIXELS = {
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}


def _memory(field: str) -> int:
    """Returns VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _measured(action: Callable[[], Any]) -> dict[str, float]:
    """Runs one step; a model that it gives back is not counted as above the model."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from what is resident now
    before, start = _memory("VmRSS"), time.perf_counter()
    result = action()
    seconds, peak = time.perf_counter() - start, _memory("VmHWM")
    weights = result.parameters() if hasattr(result, "parameters") else ()
    returned = sum(weight.numel() * weight.element_size() for weight in weights)
    return {"seconds": round(seconds, 2), "peak": peak, "above_model": peak - before - returned}


def _llava(folder: Path, dtype: str) -> Any:
    """Transformers' LLaVA with a random tower of the encoder's geometry in one type, and a tiny language model."""
    import torch
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from llava_ohd.tower.checks import read_config

    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    words = LlamaConfig(vocab_size=64, num_hidden_layers=1, pad_token_id=0, **width)
    vision = read_config(folder).vision_config
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=words, image_token_index=63))
    return model.to(getattr(torch, dtype)).eval()


def _step(step: str, folder: Path, dtype: str, layers: int) -> dict[str, float]:
    """One step in this process, with the libraries already imported."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from llava_ohd import tower
    from llava_ohd.tower import encoder_dir

    torch.set_num_threads(2)
    with torch.device("meta"):
        CLIPModel(CLIPConfig())  # the first model without storage makes torch import what it needs for that
    if step == "write":
        torch.manual_seed(0)
        vision = VISION | {"num_hidden_layers": layers}
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=768))
        model = model.to(getattr(torch, dtype))
        files = folder.with_name("files")
        files.mkdir(exist_ok=True)
        (files / "preprocessor_config.json").write_text(json.dumps(PIXELS))
        return _measured(
            lambda: encoder_dir.write(model, folder, files_from=files, name="random", parents=[], config={})
        )
    if step == "check":
        return _measured(lambda: encoder_dir.check(folder))
    if step == "load":
        return _measured(lambda: encoder_dir.load(folder))
    tower.load_processor(folder)  # imports the rest
    if step == "tower":
        return _measured(lambda: tower.OHDVisionTower.of(folder))
    tower.register("random", folder)
    llava = _llava(folder, dtype)
    inner = getattr(llava, "model", llava)

    def swap() -> Any:
        tower.swap(llava, "random")
        return inner.vision_tower

    return _measured(swap)


def _run(step: str, folder: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--dtype", dtype]
    environment = os.environ | {"LLAVA_OHD_HOME": str(folder.parent / "home")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures all steps and writes the result, or, called by itself, measures one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=VISION["num_hidden_layers"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(_step(given.step, given.folder, given.dtype, given.layers)))
        return
    from llava_ohd.files import write_json
    from llava_ohd.results import versions

    rows = {}
    for dtype in ("float16", "float32"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "encoder"
            for step in STEPS:
                row = _run(step, folder, dtype)
                size = (folder / "model.safetensors").stat().st_size
                rows[f"{dtype}/{step}"] = row | {"file": size, "share": round(row["above_model"] / size, 3)}
                print(f"{dtype} {step}: {row['seconds']} s, {row['above_model'] / size:.2f} x the file above the model")
    machine = {"processor": platform.processor() or platform.machine(), "threads": 2}
    record = {"command": "python benchmarks/tower_loading.py", "target": TARGET, "machine": machine}
    write_json(OUT, record | {"versions": versions(), "steps": rows})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
