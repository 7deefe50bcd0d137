"""Compares the memory that scripts/plan.py plans with that of real training steps.

Inputs:  none; random weights, rows as long as LLaVA's.
Outputs: OUT/GEOMETRY.json and .md: planned and measured peak by stage and recomputation.
Command: python benchmarks/plan.py
Cost:    2 cores, 3 GB and a few minutes for eighth; quarter takes several times as much.

On a CPU, float32, without DeepSpeed. Gradients and activations are compared; weights and moments are known exactly.
"""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_json, write_text
from llava_ohd.llava15.plan_check import Case, compare
from llava_ohd.progress import track
from llava_ohd.results import versions
from llava_ohd.training.measuring import machine

OUT = Path(__file__).resolve().parent / "results" / "plan"
MIB = 2**20


def main() -> None:
    """Runs the command."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--geometry", choices=("eighth", "quarter"), default="eighth", help="sizes of the model")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result")
    given = parser.parse_args()
    stages = ("projector", "lora", "full")
    cases = [Case(given.geometry, s, given.batch, again) for s in stages for again in (False, True)]
    with exit_on_error():
        found = list(track(compare(cases, given.threads), "measuring", len(cases)))
        lines = [
            "| geometry | stage | recomputed | planned (MiB) | measured (MiB) | error | error with weights, moments |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in found:
            geometry, stage, _, again = one.case
            sizes = f"{one.planned / MIB:.0f} | {one.measured / MIB:.0f} | {one.error:+.1%} | {one.total_error:+.1%}"
            lines.append(f"| {geometry} | {stage} | {'yes' if again else 'no'} | {sizes} |")
        where, libraries = machine(given.threads, "cpu"), versions()
        command = f"python benchmarks/plan.py --geometry {given.geometry} --batch {given.batch}"
        origin = f"`{command}`: {given.batch} rows a step, {where['processor']}, {where['threads']} threads; torch "
        origin += f"{libraries['torch']}, transformers {libraries['transformers']}."
        write_text(given.out / f"{given.geometry}.md", "\n".join([*lines, "", origin, ""]))
        record = {"command": command, "machine": where, "versions": libraries}
        write_json(given.out / f"{given.geometry}.json", record | {"comparisons": [asdict(one) for one in found]})
        print("\n".join(lines))


if __name__ == "__main__":
    main()
