"""Compares the attribution of words to captions with the loop of the released code, in one process.

Inputs:  --data: OHD-Caps rows (28 captions an image), or a set of eval/dense.py, such as nocaps-FOIL (2 an image);
         --tokenizer: CLIP's. Weights and pixels are random.
Outputs: OUT/GEOMETRY-FILE.json and .md: pairs a second, processor time. The last line printed is `speedup X`: seconds
         of the released loop / seconds of ours, median over the repetitions.
Command: python benchmarks/explain.py --data ../shared/data/ohd_caps/test/coco_annotations.json
Cost:    2 cores: vit-b-32 one minute, 2 GB.

Both ways are float32 and must agree within 1e-6. The released loop takes a pair at a time, fills its caption up to 77
tokens, encodes its image again, and keeps the graph of both towers.
"""

import statistics
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import DataFormatError, exit_on_error

OUT = Path(__file__).resolve().parent / "results" / "explain"
DATA = Path("../shared/data")


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--geometry", choices=("vit-b-32", "vit-l-14-336", "tiny"), default="vit-b-32")
    parser.add_argument("--data", type=Path, default=DATA / "ohd_caps/test/coco_annotations.json", help="captions")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizers/clip_vitb32_no_weights", help="CLIP's")
    parser.add_argument("--pairs", type=int, default=112, help="captions of a repetition")
    parser.add_argument("--repetitions", type=int, default=3, help="each with captions of its own")
    parser.add_argument("--batch_size", type=int, default=32, help="captions at a time, of ours")
    parser.add_argument("--layers", type=int, default=3, help="last layers of the text tower that are looked at")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result")
    return parser.parse_args()


def _captions(path: Path) -> list[tuple[str, str]]:
    """Returns images and captions."""
    from llava_ohd.evals.dense_items import read_items
    from llava_ohd.ohd_caps.readers import read_rows

    try:
        return [(item.image, item.caption) for item in read_items(path)[1]]
    except DataFormatError:
        return [(row.image, caption) for row in read_rows(path) for caption in row.captions]


def _measure(given: Namespace) -> dict[str, Any]:
    import torch

    from llava_ohd import tower
    from llava_ohd.explain import speed
    from llava_ohd.explain.words import prepare
    from llava_ohd.progress import track

    torch.set_num_threads(given.threads)
    tokenizer = tower.load_tokenizer(given.tokenizer)
    model = speed.make_model(given.geometry, tokenizer)
    items = _captions(given.data)
    size = model.config.vision_config.image_size
    costs: dict[str, list[Any]] = {"released": [], "ours": []}
    worst = 0.0
    for number in track(range(given.repetitions), "attributing"):
        rows = items[number * given.pairs : (number + 1) * given.pairs]
        names = list(dict.fromkeys(image for image, _ in rows))
        which = [names.index(image) for image, _ in rows]
        captions = [prepare(tokenizer, caption, 77).tokens for _, caption in rows]
        pixels = torch.randn(len(names), 3, size, size, generator=torch.Generator().manual_seed(number))
        one, expected = speed.timed(speed.released, model, captions, pixels[which], given.layers)
        other, found = speed.timed(speed.ours, model, captions, pixels, which, given.layers, given.batch_size)
        worst = max(worst, speed.check_equal(expected, found))
        costs["released"].append(asdict(one))
        costs["ours"].append(asdict(other))
    images = len({image for image, _ in items[: given.repetitions * given.pairs]})
    return {"costs": costs, "images": images, "largest_difference": worst}


def main() -> None:
    """Runs the command."""
    given = _arguments()
    with exit_on_error():
        from llava_ohd.training.measuring import write_result

        measured = _measure(given)
        costs = measured["costs"]
        ratios = {
            clock: [one[clock] / other[clock] for one, other in zip(costs["released"], costs["ours"], strict=True)]
            for clock in ("wall", "cpu")
        }
        speedup = {clock: statistics.median(values) for clock, values in ratios.items()}
        lines = ["| way | pairs/s | time (s) | processor time (s) |", "| --- | --- | --- | --- |"]
        for name, rows in costs.items():
            wall, cpu = (statistics.median(row[clock] for row in rows) for clock in ("wall", "cpu"))
            lines.append(f"| {name} | {given.pairs / wall:.1f} | {wall:.2f} | {cpu:.2f} |")
        lines += [
            "",
            f"{given.repetitions} times {given.pairs} captions, of {measured['images']} images in all; {given.layers} "
            f"layers, {given.geometry}, random weights. Attributions differ by at most "
            f"{measured['largest_difference']:.1e}. Ours is {speedup['wall']:.2f} times as fast "
            f"({speedup['cpu']:.2f} in processor time).",
        ]
        result = write_result(
            given, f"{given.geometry}-{given.data.stem}", "\n".join(lines), measured | {"speedup": speedup}
        )
        print("\n".join(lines), f"\nresult: {result}", f"speedup {speedup['wall']:.2f}", sep="\n")


if __name__ == "__main__":
    main()
