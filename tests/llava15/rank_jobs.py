"""Runs several trainings one after another on the ranks that a launcher started, since imports take most of the time.

    torchrun --nproc-per-node 2 rank_jobs.py JOBS     JOBS: [{"arguments": [...], "start": FOLDER or null}, ...]

A job with "start" begins with a copy of that checkpoint in its output folder. The first job that fails ends the group.
"""

import gc
import json
import shutil
import sys
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.llava15.train import train
from llava_ohd.training.launch import leave


def start_anew() -> None:
    """Forgets what accelerate and transformers keep of a run; the group of ranks stays."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
    gc.collect()


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(job["arguments"][job["arguments"].index("--output_dir") + 1])
        if job["start"] is not None:
            import torch.distributed as dist

            if dist.get_rank() == 0:
                shutil.copytree(job["start"], out / Path(job["start"]).name)
            dist.barrier()
        train(job["arguments"])
        start_anew()
    leave()


if __name__ == "__main__":
    with exit_on_error():
        main()
