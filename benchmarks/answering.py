"""Compares ways to answer POPE's questions in one process: ours, one by one as LLaVA does, plain padded batches.

Inputs:  --data: a data folder laid out as $LLAVA_OHD_DATA (pope/SET, tokenizers/llama), its pope/, or POPE's question
         files themselves. Weights and images are random; the questions of the first images are real, all three splits.
Outputs: OUT/GEOMETRY.json and .md: questions a second, processor time, FLOPs, the floor. The last line printed is
         `speedup X`: seconds one by one / seconds of ours, median over the repetitions.
Command: python benchmarks/answering.py --data "$LLAVA_OHD_DATA"
Cost:    2 cores: 4 minutes, 3 GB.

Every repetition takes other images; all ways get the same questions, one after another. In float32 all answers must be
equal, else it fails; in bfloat16 those that differ are counted. --one_by_one N asks only N of a repetition's questions
one by one, spread over its images; times are compared per question, and answers where there are two.
GPU:     --device cuda --bf16 --geometry 7b --batch_size 64 --peak_tflops 989 (H100); all of POPE: --images 500
         --repetitions 1 --one_by_one 200.
"""

import statistics
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ohd.command_line import HelpFormatter, require
from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.evals.pope import SUFFIX, read_questions
from llava_ohd.records import Question

OUT = Path(__file__).resolve().parent / "results" / "answering"
GEOMETRIES = ("7b", "quarter", "eighth", "tiny")


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder, or folder of POPE's question files")
    parser.add_argument("--set", default="coco_official_08d957b", help="folder in pope/, where it holds several")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="eighth", help="sizes of the model")
    parser.add_argument("--tokenizer", type=Path, help="folder of Llama's (default: tokenizers/llama of the data)")
    parser.add_argument("--images", type=int, default=4, help="images of a repetition; 18 questions on each")
    parser.add_argument("--repetitions", type=int, default=3, help="each with images of its own")
    parser.add_argument("--one_by_one", type=int, metavar="N", help="questions asked one by one (default: all)")
    parser.add_argument("--batch_size", type=int, default=32, help="of ours and of the padded way")
    parser.add_argument("--length", type=int, default=2, help="tokens of an answer; 2 are a word and the end")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16")
    parser.add_argument("--peak_tflops", type=float, help="of the device, to print the share reached (MFU)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result")
    return parser.parse_args()


def _asked(data: Path, name: str) -> Path:
    """Returns the folder of the question files."""
    return next((folder for folder in (data / "pope" / name, data / name) if folder.is_dir()), data)


def _tokenizer(data: Path) -> Path:
    """Returns the folder of Llama's tokenizer in the data folder, which is `data` or above it."""
    above = [data.resolve(), *data.resolve().parents[:3]]
    found = next((folder for root in above if (folder := root / "tokenizers/llama").is_dir()), None)
    if found is None:
        raise DataFormatError(f"{data}: no tokenizers/llama in it or in the folders above it; give --tokenizer")
    return found


def _questions(given: Namespace) -> list[list[Question]]:
    """Returns the questions of each repetition, those of the files with LLaVA's demand for a single word."""
    by_image: dict[str, list[Question]] = {}
    for question in read_questions(_asked(given.data, given.set)):
        by_image.setdefault(question.image, []).append(Question(question.id, question.image, question.prompt + SUFFIX))
    needed = given.images * given.repetitions
    if len(by_image) < needed:
        raise DataFormatError(f"{given.data}: {len(by_image)} images, {needed} are needed; lower --repetitions")
    chosen = list(by_image.values())[:needed]
    starts = range(0, needed, given.images)
    return [[question for rows in chosen[start : start + given.images] for question in rows] for start in starts]


def _measure(given: Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from llava_ohd.answering import speed
    from llava_ohd.progress import track
    from llava_ohd.training.measuring import product_rate

    torch.set_num_threads(given.threads)
    groups = _questions(given)
    few = [question for question in groups[0] if question.image == groups[0][0].image]
    speed.write_images(folder, sorted({question.image for group in groups for question in group}))
    tokenizer = given.tokenizer or _tokenizer(given.data)
    stage = speed.Stage(given.geometry, tokenizer, folder, given.batch_size, given.device, given.bf16)
    flops = {way: speed.count_flops(stage, way, few, given.length) for way in speed.WAYS}  # warms up, too
    costs: dict[str, list[Any]] = {way: [] for way in speed.WAYS}
    differing, texts = dict.fromkeys(speed.WAYS, 0), set()
    for number, group in enumerate(track(groups, "answering")):
        answers = {}
        asked = dict.fromkeys(speed.WAYS, group) | {speed.WAYS[0]: speed.spread(group, given.one_by_one)}
        for way in speed.WAYS[:: 1 if number % 2 else -1]:
            cost, answers[way] = speed.timed_answers(stage, way, asked[way], given.length)
            costs[way].append(asdict(cost) | {"questions": len(asked[way])})
        plain = answers[speed.WAYS[0]]
        for way in speed.WAYS:
            compared = {name: answers[way][name] for name in plain}
            differing[way] += len(speed.differing(plain, compared, exact=not given.bf16))
        texts |= set(answers["ours"].values())
    questions = [question for group in groups for question in group]
    return {
        "questions": len(questions),
        "questions_first_image": len(few),
        "distinct_prompts": len({(question.image, question.prompt) for question in questions}),
        "distinct_answers": len(texts),
        "differing": differing,
        "flops_first_image": flops | {"floor": speed.floor_flops(stage, few, given.length)},
        "costs": costs,
        "product_flops": product_rate(given.device, given.bf16),
    }


def _summary(given: Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns questions a second of each way, and the ratios to ours: median over the repetitions."""
    costs, flops = measured["costs"], measured["flops_first_image"]
    ways = {
        way: {clock: statistics.median(cost[clock] for cost in rows) for clock in ("wall", "cpu", "reading")}
        for way, rows in costs.items()
    }
    speedup = {
        way: {
            clock: statistics.median(
                one[clock] / one["questions"] * other["questions"] / other[clock]
                for one, other in zip(rows, costs["ours"], strict=True)
            )
            for clock in ("wall", "cpu")
        }
        for way, rows in costs.items()
        if way != "ours"
    }
    for way, numbers in ways.items():
        numbers["questions_per_second"] = statistics.median(cost["questions"] / cost["wall"] for cost in costs[way])
        numbers["questions"] = sum(cost["questions"] for cost in costs[way])
    bounds = {name: flops["one by one"] / flops[name] for name in ("padded", "ours", "floor")}
    return {"ways": ways, "speedup": speedup, "bounds": bounds}


def _table(given: Namespace, measured: dict[str, Any], summary: dict[str, Any]) -> str:
    flops, bounds, speedup = measured["flops_first_image"], summary["bounds"], summary["speedup"]
    lines = [
        "| way | questions | questions/s | time (s) | processor time (s) | reading images (s) | GFLOP, one image "
        "| differing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, way in summary["ways"].items():
        lines.append(
            f"| {name} | {way['questions']} | {way['questions_per_second']:.2f} | {way['wall']:.2f} | {way['cpu']:.2f} "
            f"| {way['reading']:.2f} | {flops[name] / 1e9:.1f} | {measured['differing'][name]} |"
        )
    lines += [
        "",
        "Times are medians over the repetitions, of the questions that each asks; ratios are per question. "
        f"{measured['questions']} questions on {given.images * given.repetitions} images, "
        f"{measured['distinct_prompts']} of them distinct, {measured['distinct_answers']} distinct answers. Ours is "
        f"{speedup['one by one']['wall']:.2f} times as fast as one by one "
        f"({speedup['one by one']['cpu']:.2f} in processor time), {speedup['padded']['wall']:.2f} times as fast as "
        f"padded batches ({speedup['padded']['cpu']:.2f}). The ratio of FLOPs to one by one is {bounds['ours']:.2f}; "
        f"the floor is {flops['floor'] / 1e9:.1f} GFLOP, which would be {bounds['floor']:.2f}. A plain matrix product "
        f"runs at {measured['product_flops'] / 1e9:.0f} GFLOP/s.",
    ]
    if given.peak_tflops:
        scale = 1 / measured["questions_first_image"] / given.peak_tflops / 1e12
        shares = (
            f"{name} {flops[name] * scale * way['questions_per_second']:.1%}" for name, way in summary["ways"].items()
        )
        lines.append(f"Of {given.peak_tflops:g} TFLOP/s: {', '.join(shares)}.")
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    given = _arguments()
    with exit_on_error(), tempfile.TemporaryDirectory() as folder:
        for name in ("images", "repetitions", "one_by_one", "batch_size", "length", "threads"):
            value = getattr(given, name)
            require(value is None or value >= 1, name, value, "at least 1")
        from llava_ohd.training.measuring import write_result

        measured = _measure(given, Path(folder))
        summary = _summary(given, measured)
        table = _table(given, measured, summary)
        result = write_result(given, given.geometry, table, summary | measured)
        print(f"{table}\n\nresult: {result}\nspeedup {summary['speedup']['one by one']['wall']:.2f}")


if __name__ == "__main__":
    main()
