"""Says what memory and how many hours a LLaVA-1.5 training takes, before it is started.

Inputs:  sizes only: --model 7b, 13b or a Llama folder, --vision_tower, stages, ZeRO files, batches, GPUs. No weights.
Outputs: per stage, ZeRO file and batch: GiB of each part on a GPU, which cards it fits (24, 40, 48, 80 GB), hours; and
         per stage the cheapest that fits --gpu_memory.
Command: python scripts/plan.py --gpus 8 --gpu A100 --gpu_memory 40
         python scripts/plan.py --model 13b --stages lora --zero zero2 zero3 --batch 16 --tokens 2048
Cost:    1 core, a few minutes for the whole table, seconds for a line; 0.6 GB of memory, no GPU.

The real training step is run on tensors without memory, and counted (benchmarks/plan.py compares it with
measurements). Batches are those of LLaVA's data, a long one among 64; --tokens 2048 plans for the longest possible.
--zero none is training without DeepSpeed. Offload and communication between GPUs cost time that is not counted.
"""

from pathlib import Path

from transformers import HfArgumentParser

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.progress import track
from llava_ohd.training.launch import quiet


def main() -> None:
    """Runs the command."""
    quiet()  # before libraries are loaded
    from llava_ohd.llava15.plan import PlanConfig, Planner, accumulation, cheapest, table

    parser = HfArgumentParser([PlanConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    with exit_on_error():
        [config] = parser.parse_args_into_dataclasses()
        planner = Planner(config, Path(__file__).resolve().parent.parent / "zero_configs")
        choices = [planner.choice(*line) for line in track(planner.lines, "planning")]
        print(table(choices))
        print(f"\nCheapest on {config.gpus} GPUs of {config.gpu_memory:g} GiB:")
        chosen = cheapest(choices, config.gpu_memory, config.gpus)
        for stage in config.stages:
            if stage not in chosen:
                print(f"{stage}: nothing fits; give more --gpus, a smaller --batch, or --zero zero3_offload")
                continue
            one = chosen[stage]
            how = f"--per_device_train_batch_size {one.batch} {accumulation(one, config.gpus)}"
            how += "" if one.zero.name == "none" else f" --deepspeed zero_configs/{one.zero.name}.json"
            print(f"{stage}: {how}: {one.memory.total / 2**30:.1f} GiB, {one.hours:.1f} hours")


if __name__ == "__main__":
    main()
