"""The main job: the whole method, end to end, on the embedded world or on a folder of photos.

Inputs:  none (the world and its mini models come with the package), or --photos DIR.
Outputs: below --out (default runs/, with --photos runs/photos): world/ clip/ llava/ eval/ report/report.html;
         commands.txt holds every command, to be typed one by one if you like, or `bash commands.txt`.
Command: python scripts/quickstart.py             (or `make quickstart`)
         python scripts/quickstart.py --seed 1 --out runs/seed1
         python scripts/quickstart.py --photos ../shared/data/photos
Cost:    about 10 minutes on 2 CPU cores, 2 GB. Killed at any moment, it goes on with the same command.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.files import read_json, write_text
from llava_ohd.home import home
from llava_ohd.stages import as_shell, run_stages


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for everything, models and registry included")
    parser.add_argument("--seed", type=int, default=0, help="of negative captions and all trainings")
    parser.add_argument("--loss", choices=("paper", "released"), default="paper", help="form of the fine-grained loss")
    parser.add_argument("--photos", type=Path, help="run on photographs instead of the rendered world")
    parser.add_argument("--tokenizers", type=Path, help="real tokenizers for --photos (default: beside the photos)")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the training steps; 0.1 for a trial run")
    return parser.parse_args()


def main() -> None:
    """Runs the command."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the running stage as Ctrl-C does
    with exit_on_error():
        from llava_ohd.world.main_job import JobConfig, main_job, on_photos, photos_job, register_all

        if given.photos and not given.photos.is_dir():
            print(f"skipped: there is no folder {given.photos}; --photos takes one as llava_ohd/world/photos.py says")
            return
        out = (given.out or (home() / "photos" if given.photos else home())).resolve()
        job = JobConfig(out, given.seed, given.loss).shortened(given.steps)
        if given.photos:
            job = on_photos(job)
            stages = photos_job(job, given.photos, given.tokenizers or given.photos.resolve().parent / "tokenizers")
        else:
            stages = main_job(job)
        # two CPU ranks everywhere: the same job on every machine, and no need of two GPUs
        environment = {"LLAVA_OHD_HOME": str(out), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        write_text(out / "commands.txt", as_shell(stages, environment))
        os.environ.update(environment)
        run_stages(stages, out / "job")
        register_all(job)
        timings = read_json(out / "job" / "timings.json")
        seconds = sum(row["seconds"] for row in timings.values())
        memory = max(row["peak_mib"] for row in timings.values())
        for table in sorted(out.glob("report*/table.md")):
            head, _, _ = table.read_text().partition("\n## All metrics")
            print(f"\n{head.rstrip()}\n\nall metrics: {table}\n")
        if given.photos:
            print(
                "Near chance: the encoder learned from a thousand photos only. What counts here is that all stages ran."
            )
        print(f"stages: {seconds / 60:.1f} minutes as each last ran, largest process {memory / 1024:.1f} GiB")
        print(f"everything: {out}\ncommands:   {out / 'commands.txt'}\nreport:     {out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
