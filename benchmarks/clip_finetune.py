"""Compares one optimiser step of encoder fine-tuning with the way of the released code, in one process.

Inputs:  --data: the folder of the authors' OHD-Caps files; --tokenizer: CLIP's. Weights and pixels are random.
Outputs: OUT/GEOMETRY.json and .md: images a second, processor time, FLOPs, memory, and how far the floor is. The last
         line printed is `speedup X`: seconds of the released step / seconds of ours, median over the batches.
Command: python benchmarks/clip_finetune.py --geometry vit-b-32 --data ../shared/data/ohd_caps
Cost:    2 idle cores: vit-b-32 about 5 minutes and 10.8 GiB, vit-l-14-336 about 6 minutes and 11.4 GiB.

A step is zero_grad, forward, loss (that of the released code), backward, fused AdamW; of ours also building the tree of
captions. Before anything is timed, loss and gradients of both ways must agree within 1e-4 (float32), else it fails.
Every repetition takes another batch, from the four files with 27 negatives a row in turn; both ways get the same one.
GPU:     --device cuda --bf16 --batch_size 56 (the paper's; 14 for vit-l-14-336) --peak_tflops 989 (H100): prints MFU.
"""

import math
import multiprocessing
import statistics
from argparse import ArgumentParser, Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ohd.command_line import HelpFormatter, require, require_between
from llava_ohd.errors import exit_on_error

OUT = Path(__file__).resolve().parent / "results" / "clip_finetune"
TOKENIZER = Path("../shared/data/tokenizers/clip_vitb32_no_weights")
BATCH = {"vit-b-32": 8, "vit-l-14-336": 2, "tiny": 4}
GIB = 2**30


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--geometry", choices=BATCH, default="vit-b-32", help="sizes of the towers")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ohd_caps"), help="OHD-Caps: dev/, test/")
    parser.add_argument("--file", help="one file of DATA instead of the four; dev/dev_data.json is compositional")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of CLIP's tokenizer")
    parser.add_argument("--batch_size", type=int, help=f"images a step; default {BATCH}")
    parser.add_argument("--repetitions", type=int, default=3, help="batches timed, each both ways")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="towers in bfloat16 autocast, after the check in float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward, both ways")
    parser.add_argument("--peak_tflops", type=float, help="of the device, to print the share reached (MFU)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result")
    given = parser.parse_args()
    given.batch_size = BATCH[given.geometry] if given.batch_size is None else given.batch_size
    return given


def _check(given: Namespace) -> None:
    """Refuses what cannot be measured, before anything is."""
    for name in ("batch_size", "repetitions", "threads"):
        require_between(1, math.inf, name, getattr(given, name))
    require(given.peak_tflops is None or given.peak_tflops > 0, "peak_tflops", given.peak_tflops, "a number above 0")
    folder = "the folder of CLIP's tokenizer (tokenizer.json, or vocab.json and merges.txt)"
    there = any((given.tokenizer / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    require(there, "tokenizer", given.tokenizer, folder, "the folder of any encoder")
    if given.device == "cuda":
        import torch

        require(torch.cuda.is_available(), "device", "cuda", "a GPU that torch sees", "measure on --device cpu")


def _measure(given: Namespace) -> dict[str, Any]:
    """Memory first, in processes of their own, then everything else here."""
    import torch
    from transformers import AutoTokenizer

    from llava_ohd.clip.speed import check_equal, peak_memory, timed_step
    from llava_ohd.clip.ways import WAYS, Stage, read_mixture
    from llava_ohd.progress import track
    from llava_ohd.training.measuring import product_rate

    torch.set_num_threads(given.threads)
    rows = read_mixture(given.data, given.file, given.batch_size * given.repetitions)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    settings = (given.geometry, rows, tokenizer, given.batch_size, given.device, given.bf16, given.checkpointing)
    memory = {}
    for way in track(WAYS, "memory of each way"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
            memory[way.name] = child.submit(peak_memory, way, given.threads, settings).result()
    stage = Stage(*settings)
    equality = check_equal(stage)
    stage.optimizer.step()  # allocates its moments
    costs: dict[str, list[Any]] = {way.name: [] for way in WAYS}
    for number in track(range(given.repetitions), "steps"):
        for way in WAYS[:: 1 if number % 2 else -1]:
            costs[way.name].append(asdict(timed_step(stage, way, number)))
    return {
        "equality": asdict(equality),
        "steps": costs,
        "memory": memory,
        "product_flops": product_rate(given.device, given.bf16),
    }


def _summary(given: Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns medians over the batches, per way and of the ratios, and the two bounds that FLOPs set."""
    steps, flops, vision = measured["steps"], measured["equality"]["flops"], measured["equality"]["vision"]
    ways = {}
    for name, costs in steps.items():
        wall, cpu = (statistics.median(cost[clock] for cost in costs) for clock in ("wall", "cpu"))
        rate = flops[name] * given.batch_size / wall
        ways[name] = {"images_per_second": given.batch_size / wall, "wall": wall, "cpu": cpu, "flops_per_second": rate}
    ratios = {
        clock: statistics.median(
            one[clock] / other[clock] for one, other in zip(steps["released"], steps["ours"], strict=True)
        )
        for clock in ("wall", "cpu")
    }
    bounds = {
        "same_rate": flops["released"] / flops["ours"],
        "vision_only": flops["released"] / vision["ours"],
    }
    return {"ways": ways, "speedup": ratios, "bounds": bounds}


def _table(given: Namespace, measured: dict[str, Any], summary: dict[str, Any]) -> str:
    equality, bounds = measured["equality"], summary["bounds"]
    lines = [
        "| way | images/s | step (s) | processor time (s) | GFLOP an image | of it vision | GFLOP/s | peak (GiB) "
        "| above weights (GiB) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, way in summary["ways"].items():
        flops, memory = equality["flops"][name], measured["memory"][name]
        lines.append(
            f"| {name} | {way['images_per_second']:.3f} | {way['wall']:.2f} | {way['cpu']:.2f} | {flops / 1e9:.0f} "
            f"| {equality['vision'][name] / flops:.0%} | {way['flops_per_second'] / 1e9:.0f} "
            f"| {memory['peak'] / GIB:.2f} | {memory['above'] / GIB:.2f} |"
        )
    speedup = summary["speedup"]
    lines += [
        "",
        f"Speed-up {speedup['wall']:.2f} ({speedup['cpu']:.2f} in processor time). The ratio of FLOPs is "
        f"{bounds['same_rate']:.2f}; were captions for nothing, the vision tower would bound it to "
        f"{bounds['vision_only']:.2f}. A plain matrix product runs at {measured['product_flops'] / 1e9:.0f} GFLOP/s. "
        f"Between the ways the loss differs by {equality['loss']:.1e}, the gradients by {equality['gradients']:.1e} "
        f"(worst parameter {equality['worst']:.1e}).",
    ]
    if given.peak_tflops:
        shares = (f"{n} {w['flops_per_second'] / given.peak_tflops / 1e12:.1%}" for n, w in summary["ways"].items())
        lines.append(f"Of {given.peak_tflops:g} TFLOP/s: {', '.join(shares)}.")
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    given = _arguments()
    with exit_on_error():
        from llava_ohd.training.measuring import write_result

        _check(given)
        measured = _measure(given)
        summary = _summary(given, measured)
        table = _table(given, measured, summary)
        name = "-".join(filter(None, [given.geometry, given.file and Path(given.file).stem]))
        result = write_result(given, name, table, summary | measured)
        print(f"{table}\n\nresult: {result}\nspeedup {summary['speedup']['wall']:.2f}")


if __name__ == "__main__":
    main()
