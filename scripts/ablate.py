"""Ablates the loss: terms, signs of L_2, margins and weights, both modes, over seeds, by short fine-tunings.

Inputs:  an encoder, OHD-Caps rows to train and to measure on, COCO instances for zero-shot recognition, images.
Outputs: OUT/table.md, OUT/ablation.json (every run and the summary), OUT/ablation.svg; OUT/runs (encoders, curves).
Command: python scripts/ablate.py                               # terms and signs, both modes: 12 losses x 3 seeds
         python scripts/ablate.py --plan grid --taus 2 5 --lambdas 0.1 1
Cost:    about half a minute a run on the embedded world (2 idle cores), 8 MB each; terms 20 minutes, grid 30.

Runs that are finished are kept: a plan that was stopped goes on, one with more seeds trains only the new ones.
Source:  arXiv 2410.03176 table 9.
"""

from typing import Any

from transformers import HfArgumentParser

from llava_ohd.clip.ablation import AblationConfig, run
from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_json, write_text
from llava_ohd.report.ablation import markdown, summarise
from llava_ohd.report.figures import estimates
from llava_ohd.training.launch import quiet

PANELS = {"accuracy": "OHD-Caps accuracy, %", "zero_shot": "zero-shot accuracy, %"}


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([AblationConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    [config] = parser.parse_args_into_dataclasses()

    def report(rows: list[dict[str, Any]]) -> None:
        summary = summarise(rows)
        write_json(config.out / "ablation.json", {"summary": summary, "runs": rows})
        write_text(config.out / "table.md", markdown(summary))

    quiet()
    with exit_on_error():
        summary = summarise(run(config, report))
        estimates(summary, PANELS, config.out / "ablation.svg")
        print(markdown(summary))
        print(f"table: {config.out / 'table.md'}, {config.out / 'ablation.json'}, {config.out / 'ablation.svg'}")


if __name__ == "__main__":
    main()
