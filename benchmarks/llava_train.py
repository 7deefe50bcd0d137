"""Compares one optimiser step of LLaVA-1.5 training with plain transformers and with the original code, in one process.

Inputs:  --repo: a checkout of haotian-liu/LLaVA @ c121f04 for the third way ($LLAVA_REPO; without it only two are
         compared). --data with --tokenizer: a real training json; without, rows as long as LLaVA's (mixture.py).
Outputs: OUT/GEOMETRY-STAGE.json and .md: tokens a second, processor time, FLOPs, memory, and how far the floor is. The
         last line printed is `speedup X`: seconds of the step of the original code (without it: of transformers) /
         seconds of ours, median over the batches.
Command: LLAVA_REPO=../LLaVA python benchmarks/llava_train.py --geometry quarter --stage lora
Cost:    2 cores: quarter about 6 minutes and 6 GB a stage, tiny seconds.

A step is zero_grad, forward, loss, backward, fused AdamW. All ways train the same weights on the same batches. Before
anything is timed, losses must agree within 1e-5 and gradients within 1e-4 (float32), else it fails.
Geometry quarter is LLaVA-1.5-7B with every width, depth and rank divided by 4; image tokens (576), vocabulary (32,000)
and lengths of rows are as they are, so that image, text, padding and head stand in a step side by side as in the 7B's.
GPU:     --device cuda --bf16 --geometry 7b --checkpointing --batch_size 16 --peak_tflops 989 (H100): prints MFU.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import StageFailed, exit_on_error

OUT = Path(__file__).resolve().parent / "results" / "llava_train"
BATCH = {"7b": 16, "quarter": 4, "eighth": 4, "tiny": 4}
GIB = 2**30


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--geometry", choices=BATCH, default="quarter", help="sizes of the model")
    parser.add_argument("--stage", choices=("projector", "lora"), default="lora", help="what trains")
    parser.add_argument("--repo", type=Path, default=os.environ.get("LLAVA_REPO"), help="checkout of LLaVA")
    parser.add_argument("--data", type=Path, help="training json in LLaVA's format, instead of rows like LLaVA's")
    parser.add_argument("--tokenizer", type=Path, help="folder of a Llama tokenizer; with --data")
    parser.add_argument("--batch_size", type=int, help=f"rows a step; default {BATCH}")
    parser.add_argument("--repetitions", type=int, default=5, help="batches timed, each every way")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16; equality is then not checked")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward, every way")
    parser.add_argument("--peak_tflops", type=float, help="of the device, to print the share reached (MFU)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result")
    given = parser.parse_args()
    given.batch_size = given.batch_size or BATCH[given.geometry]
    return given


# --- the original code, on the same modules


def _original_batch(stage: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Rebuilds what LLaVA's data loader makes: one token per image, and a black image for every row of text only."""
    import torch

    from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN

    rows, images, pixels = [], [], iter(batch["pixel_values"])
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        patch = ids == IMAGE_TOKEN
        first = patch & ~torch.cat([patch.new_zeros(1), patch[:-1]])
        images.append(next(pixels) if patch.any() else torch.zeros(3, stage.geometry.image, stage.geometry.image))
        rows.append((ids[~patch | first], labels[~patch | first]))
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([row for row, _ in rows], batch_first=True)
    mask = pad([torch.ones_like(row) for row, _ in rows], batch_first=True).bool()
    labels = pad([row for _, row in rows], batch_first=True, padding_value=IGNORE)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "images": torch.stack(images)}


def _original_loss(stage: Any, batch: dict[str, Any]) -> Any:
    if not hasattr(stage, "original"):
        stage.original = _original(stage)
    return stage.original(**batch).loss


def _original(stage: Any) -> Any:
    """Returns LLaVA's own model around the modules of the stage's model."""
    import torch
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    ours = stage.model
    text = ours.config.text_config.to_dict() | {"pretraining_tp": 1, "model_type": "llava_llama"}
    config = LlavaConfig(**text)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        original = LlavaLlamaForCausalLM(config)
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        setattr(original.model, name, getattr(ours.model.language_model, name))
    original.lm_head = ours.lm_head
    projector = ours.model.multi_modal_projector
    original.model.mm_projector = torch.nn.Sequential(projector.linear_1, projector.act, projector.linear_2)
    with tempfile.TemporaryDirectory() as folder:
        ours.config.vision_config.save_pretrained(folder)
        tower = CLIPVisionTower(folder, SimpleNamespace(mm_vision_select_layer=-2), delay_load=True)
    tower.vision_tower, tower.is_loaded = ours.model.vision_tower, True
    original.model.vision_tower = tower
    return original.train()


def _ways(given: Namespace) -> list[Any]:
    from llava_ohd.llava15.ways import OURS, TRANSFORMERS, Way

    if given.repo is None:
        return [TRANSFORMERS, OURS]
    if not (given.repo / "llava/model/llava_arch.py").is_file():
        raise StageFailed(f"--repo {given.repo} is no checkout of haotian-liu/LLaVA; leave it out to compare without")
    return [Way("original", _original_batch, _original_loss), TRANSFORMERS, OURS]


def _import_original(repo: Path | None) -> None:
    """Makes the checkout importable, here and in the processes that measure memory."""
    if repo is not None:
        sys.path.insert(0, str(repo))
        import llava.model.language_model.llava_llama  # noqa: F401  # before memory is measured


# --- measuring


def _measure(given: Namespace) -> dict[str, Any]:
    """Memory first, in processes of their own, then everything else here."""
    import torch

    from llava_ohd.llava15.speed import check_equal, needed_flops, peak_memory, timed_step
    from llava_ohd.llava15.ways import GEOMETRIES, Stage
    from llava_ohd.progress import track
    from llava_ohd.training.measuring import product_rate

    torch.set_num_threads(given.threads)
    rows, ways = _rows(given), _ways(given)
    settings = (given.geometry, given.stage, rows, given.device, given.bf16, given.checkpointing)
    memory = {}
    for way in track(ways, "memory of each way"):
        start: Any = {"initializer": _import_original, "initargs": (given.repo if way.name == "original" else None,)}
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **start) as child:
            memory[way.name] = child.submit(peak_memory, way, given.threads, settings, 0).result()
    _import_original(given.repo)
    stage = Stage(*settings)
    equal = [] if given.bf16 else [asdict(check_equal(stage, ways, number)) for number in {0, len(rows) - 1}]
    costs: dict[str, list[Any]] = {way.name: [] for way in ways}
    for number in track(range(len(rows)), "steps"):
        for way in ways[:: 1 if number % 2 else -1]:
            costs[way.name].append(asdict(timed_step(stage, way, number)))
    flops = {
        f"{geometry}{' plain' if plain else ''}": [
            needed_flops(GEOMETRIES[geometry], given.stage, r, plain) for r in rows
        ]
        for geometry in {given.geometry, "7b"}
        for plain in (False, True)
    }
    return {
        "batches": [_counts(batch) for batch in rows],
        "equality": equal,
        "steps": costs,
        "memory": memory,
        "needed_flops": flops,
        "product_flops": product_rate(given.device, given.bf16),
    }


def _rows(given: Namespace) -> list[list[Any]]:
    from llava_ohd.llava15.mixture import draw, read
    from llava_ohd.llava15.ways import GEOMETRIES, batches

    count, patches = 32 * given.batch_size, GEOMETRIES[given.geometry].image_tokens
    if given.data is None:
        rows = draw(given.stage, count, patches)
    else:
        from llava_ohd.llava15.tokenizer import load_tokenizer

        rows = read(given.data, given.stage, count, load_tokenizer(given.tokenizer), patches)
    made = batches(rows, given.batch_size, given.repetitions)
    if len(made) < given.repetitions:
        raise StageFailed(
            f"{len(rows)} rows make {len(made)} batches; give fewer --repetitions or a smaller --batch_size"
        )
    return made


def _counts(batch: list[Any]) -> dict[str, Any]:
    """Returns what decides about the work of a batch: lengths of its rows, tokens that train, images."""
    from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN

    lengths = [len(ids) for ids, _ in batch]
    trained = sum(label != IGNORE for _, labels in batch for label in labels)
    return {"lengths": lengths, "trained": trained, "images": sum(IMAGE_TOKEN in ids for ids, _ in batch)}


def _summary(given: Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns medians over the batches, per way and of the ratios, and what floors and padding say."""
    steps, flops = measured["steps"], measured["needed_flops"]
    tokens = [sum(batch["lengths"]) for batch in measured["batches"]]
    ways = {}
    for name, costs in steps.items():
        seconds = [cost["wall"] for cost in costs]
        floor = [
            needed / measured["product_flops"] / s for needed, s in zip(flops[given.geometry], seconds, strict=True)
        ]
        ways[name] = {
            "tokens_per_second": statistics.median(count / s for count, s in zip(tokens, seconds, strict=True)),
            "wall": statistics.median(seconds),
            "cpu": statistics.median(cost["cpu"] for cost in costs),
            "floor_reached": statistics.median(floor),
            "useful_flops_per_second": statistics.median(floor) * measured["product_flops"],
        }
    first = next(iter(steps))
    ratios = {
        name: {
            clock: [one[clock] / ours[clock] for one, ours in zip(steps[name], steps["ours"], strict=True)]
            for clock in ("wall", "cpu")
        }
        for name in steps
        if name != "ours"
    }
    padded = [len(b["lengths"]) * max(b["lengths"]) for b in measured["batches"]]
    bounds = {
        geometry: statistics.median(
            plain / short for plain, short in zip(flops[f"{geometry} plain"], flops[geometry], strict=True)
        )
        for geometry in {given.geometry, "7b"}
    }
    return {
        "ways": ways,
        "ratios": ratios,
        "speedup": {
            name: {clock: statistics.median(of) for clock, of in both.items()} for name, both in ratios.items()
        },
        "against": first,
        "padding": 1 - sum(tokens) / sum(padded),
        "flops_ratio": bounds,
    }


def _table(given: Namespace, measured: dict[str, Any], summary: dict[str, Any]) -> str:
    lines = [
        "| way | tokens/s | step (s) | processor time (s) | speed-up of ours | peak (GiB) | above weights (GiB) "
        "| of the floor's speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, way in summary["ways"].items():
        memory = measured["memory"][name]
        speedup = f"{summary['speedup'][name]['wall']:.2f}" if name in summary["speedup"] else ""
        lines.append(
            f"| {name} | {way['tokens_per_second']:.0f} | {way['wall']:.2f} | {way['cpu']:.2f} | {speedup} "
            f"| {memory['peak'] / GIB:.2f} | {memory['above'] / GIB:.2f} | {way['floor_reached']:.0%} |"
        )
    batch = measured["batches"]
    trained = sum(b["trained"] for b in batch) / sum(sum(b["lengths"]) for b in batch)
    ratios = summary["ratios"][summary["against"]]["wall"]
    flops = statistics.median(measured["needed_flops"][given.geometry])
    lines += [
        "",
        f"{len(batch)} batches of {given.batch_size} rows, {min(min(b['lengths']) for b in batch)} to "
        f"{max(max(b['lengths']) for b in batch)} tokens, {summary['padding']:.0%} padding in the plain ways, "
        f"{trained:.0%} of the tokens trained. Against {summary['against']} by batch: "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}"
        f"{' (the last is of text only)' if not batch[-1]['images'] else ''}. "
        f"A step needs {flops / 1e12:.2f} TFLOP (the floor: no padding, causal attention, labelled tokens only at the "
        f"end); a plain matrix product runs at {measured['product_flops'] / 1e9:.0f} GFLOP/s. FLOPs of a plain step "
        f"are {summary['flops_ratio'][given.geometry]:.2f} times the floor, at the true 7B shape, with the same rows, "
        f"{summary['flops_ratio']['7b']:.2f} times.",
    ]
    if measured["equality"]:
        worst = {key: max(v for e in measured["equality"] for v in e[key].values()) for key in ("loss", "gradients")}
        lines.append(f"Between the ways losses differ by {worst['loss']:.1e}, gradients by {worst['gradients']:.1e}.")
    if given.peak_tflops:
        shares = (
            f"{name} {way['useful_flops_per_second'] / given.peak_tflops / 1e12:.1%}"
            for name, way in summary["ways"].items()
        )
        lines.append(f"Needed FLOPs per second, of {given.peak_tflops:g} TFLOP/s (MFU): {', '.join(shares)}.")
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    given = _arguments()
    with exit_on_error():
        from llava_ohd.training.measuring import write_result

        measured = _measure(given)
        summary = _summary(given, measured)
        table = _table(given, measured, summary)
        given.repo = given.repo and "haotian-liu/LLaVA"  # not the place of the checkout
        name = f"{given.geometry}-{given.stage}{'-checkpointing' if given.checkpointing else ''}"
        result = write_result(given, name, table, summary | measured)
        print(f"{table}\n\nresult: {result}\nspeedup {summary['speedup'][summary['against']]['wall']:.2f}")


if __name__ == "__main__":
    main()
