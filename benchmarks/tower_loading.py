"""Times writing, checking, loading and swapping an encoder of the true size, and measures the memory of each.

Input:   none; a random CLIP-L/14-336 (full CLIPModel, 428 million parameters) is made, without its tokenizer.
Output:  benchmarks/results/tower_loading.json: per file type and step the seconds and the peak memory above the model.
Command: python benchmarks/tower_loading.py
Cost:    about 5 minutes, 6 GB of memory, 3 GB of disk.

Memory is the peak resident set of a process of its own (VmHWM), so it counts the mapped file as well. `above_model` is
what a step needs beside what was there before it (a model to write, a LLaVA to swap into) and what it returns (a loaded
model, the tower swapped in): peak - before - returned. The target is 1.2 x the file's size. During `swap` both towers
are there, since the old one is given up only when the new one has been compared with the file.
"""

import argparse
import json
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
STEPS = ("write", "check", "load", "OHDVisionTower", "swap")
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


def _step(step: str, folder: Path, dtype: str, layers: int) -> dict[str, float]:
    """One step in this process, with the libraries already imported."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from llava_ohd.tower import encoder_dir

    torch.set_num_threads(2)
    vision = VISION | {"num_hidden_layers": layers}
    if step == "write":
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=768))
        model = model.to(getattr(torch, dtype))
        files = folder.with_name("files")
        files.mkdir(exist_ok=True)
        (files / "preprocessor_config.json").write_text(json.dumps(PIXELS))
        return _measured(
            lambda: encoder_dir.write(model, folder, files_from=files, name="random", parents=[], config={})
        )
    from llava_ohd import tower

    if step == "check":
        return _measured(lambda: encoder_dir.check(folder))
    if step == "load":
        return _measured(lambda: encoder_dir.load(folder))
    if step == "OHDVisionTower":
        return _measured(lambda: tower.OHDVisionTower.of(folder))
    llava = _llava(vision, dtype)

    def swap() -> Any:
        tower.swap(llava, folder)
        return llava.model.vision_tower

    return _measured(swap)


def _llava(vision: dict[str, int], dtype: str) -> Any:
    """Makes transformers' LLaVA with a tower of the true size and a language model of two small layers."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=text, image_token_index=98)
    return LlavaForConditionalGeneration(config).to(getattr(torch, dtype))


def _run(step: str, folder: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--dtype", dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


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
