"""What does the new encoder contribute, and how much must be trained again? The stock LLaVA, and four ways up.

Inputs:  a LLaVA trained on the stock encoder, and one trained alike on the new one (default: those registered in the
         home folder; on the embedded world they are trained first where there are none). --untrained True needs only
         the first.
Outputs: OUT/results.json, OUT/table.md, OUT/ladder.svg; OUT/models (the rungs), OUT/eval (their answers).
         Rungs: stock model; new encoder put in; projector re-fitted by least squares; stage 1 alone; both stages.
Command: python scripts/ladder.py                                   # after `make quickstart`, or instead of it
         python scripts/ladder.py --stock_model checkpoints/llava-v1.5-7b-stock-lora \\
             --model checkpoints/llava-v1.5-7b-ohd-lora --data data --split val2014 --pope "--set data --suffix" \\
             --chair "--set data --split val2014" --out runs/ladder-7b
Cost:    on the embedded world two minutes after the quickstart, eight without. 7B: a GPU, an hour per rung (POPE and
         CHAIR), beside the trainings themselves. Killed at any moment, it goes on with the same command.
Refuses  models that differ in more than the encoder, encoders that are not the recorded ones.
"""

import os

from transformers import HfArgumentParser

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.files import read_json, write_json, write_text
from llava_ohd.home import home
from llava_ohd.report import benchmarks, figures, ladder
from llava_ohd.stages import run_stages
from llava_ohd.world.ladder_job import RUNGS, LadderConfig, find_rungs, ladder_stages, trainings
from llava_ohd.world.main_job import JobConfig, register_all


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([LadderConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    [config] = parser.parse_args_into_dataclasses()
    with exit_on_error():
        if first := trainings(config):
            # as scripts/quickstart.py, which takes these stages for done then
            os.environ.update(LLAVA_OHD_HOME=str(home()), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
            run_stages(first, home() / "job")
            register_all(JobConfig(home()))
        rungs, differing = find_rungs(config)
        stages = ladder_stages(config, rungs)
        run_stages(stages, config.out / "job")
        refit = next(stage.output for stage in stages if stage.name == "make-refit")
        spent = ladder.costs(rungs.projector, rungs.both, refit)
        truth = benchmarks.read_truth(config.data, config.split, config.questions)
        record = ladder.summarise([config.out, *config.also], truth, RUNGS, spent, config.resamples)
        record |= {"differing": differing, "refit": read_json(refit / "refit.json")}
        write_json(config.out / "results.json", record)
        write_text(config.out / "table.md", ladder.markdown(record))
        figures.estimates(ladder.drawn(record), ladder.PANELS, config.out / "ladder.svg")
        print(ladder.markdown(record))
        print(f"table: {config.out / 'table.md'}, {config.out / 'results.json'}, {config.out / 'ladder.svg'}")


if __name__ == "__main__":
    main()
