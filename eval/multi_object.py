"""ComCO: what do several objects, their order in a caption and their size in a picture do to an encoder?

Paper:    Abbasi et al., CVPR 2025, arXiv 2502.19842; clip-oscope/clip-oscope@59f5a52.
Rule:     float32 cosines. Retrieval (TOR, IOR, I2T): the nearest object; equal cosines share. Matching: the right
          caption strictly nearer. Orders are balanced, objects known by number (docs/diagnostics_objects.md).
Metrics:  shares with 95 % intervals that count pictures and sets of objects, not trials (Wilson; attention: Student).
          By place and size they describe; accuracies of matching and linear probes: higher is better.
Quirks:   the published TOR and IOR are shares among complete items only (`tor_conditional`, `ior_conditional`).
Inputs:   --encoder ours|openai|NAME|PATH; --data a set in the published form (default: the embedded world's, drawn
          where needed), or --instances and --images of COCO (with --single DIR, a picture per category, IOR);
          --caption_file and its --instances: where the largest object is named; --beside DIR ...: others' results.
Outputs:  OUT/results.json, OUT/details.json (every estimate, by layout, object and cell), OUT/trials.jsonl, OUT/*.svg.
Command:  python eval/multi_object.py --encoder ours
Cost:     a minute and a half per encoder on the embedded world, 2 cores.
"""

import argparse
import math
from pathlib import Path

from llava_ohd.command_line import require_between
from llava_ohd.errors import OptionError, exit_on_error
from llava_ohd.home import evaluation_folder, home
from llava_ohd.training.launch import quiet


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, world = parser.add_argument, home() / "world"
    add("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    add("--data", type=Path, default=home() / "multi_object", help="folder of a set in the published form")
    add("--instances", type=Path, help="COCO instances: pictures in place of --data, areas for --caption_file")
    add("--images", type=Path, help="folder of the images of --instances")
    add("--single", type=Path, help="folder of one picture per category, below --images or absolute")
    add("--caption_file", type=Path, help="COCO captions, or JSON Lines with image and caption")
    named = "how objects are named (default: list; --data: bare, TOC articles, as published)"
    add("--captions", choices=("list", "bare", "articles"), help=named)
    add("--pictures", type=int, default=240, help="pictures for matching, for each number of objects")
    add("--text_captions", type=int, default=12_000, help="captions of TOR and TOC, for each number of objects, about")
    add("--absent", type=int, help="absent objects per picture in scenarios 1 and 2 (default: all, as published)")
    add("--beside", type=Path, nargs="*", default=[], help="results of other encoders, for tables and pictures")
    add("--out", type=Path, help="default: eval/ENCODER/multi_object in the home folder")
    add("--seed", type=int, default=0, help="of every draw")
    given = parser.parse_args()
    given.own_data = given.data != parser.get_default("data") or given.images is not None
    given.form = given.captions or ("bare" if given.own_data else "list")
    given.probe_form = given.captions or ("articles" if given.own_data else "list")
    if not given.own_data and given.caption_file is None:
        given.caption_file = world / "annotations" / "captions_train.json"
        given.instances = given.instances or world / "annotations" / "instances_train.json"
    return given


def main() -> None:
    """Runs the command."""
    given = parse()
    quiet()
    with exit_on_error():
        from llava_ohd.probes.evaluate import Evaluation, evaluate

        for name in ("pictures", "text_captions", "absent"):
            require_between(1, math.inf, name, getattr(given, name))
        if given.instances and not given.images and given.caption_file is None:
            raise OptionError("--instances needs --images, the folder of their images, or --caption_file")
        out = given.out or evaluation_folder(given.encoder, "multi_object", given.own_data)
        names = Evaluation.__dataclass_fields__.keys() - {"out", "scenes"}
        asked = Evaluation(**{name: getattr(given, name) for name in names}, out=out, scenes=not given.own_data)
        print(evaluate(asked), f"results: {out / 'results.json'}", sep="\n")


if __name__ == "__main__":
    main()
