"""Dense misalignment: does an encoder point at the word of a caption that is wrong?

Paper:    Nam et al., AAAI 2025, arXiv 2412.18404 (CLIP4DM); naver-ai/clip4dm@cb9e52d.
Rule:     each set's published protocol on float32 attributions (evals/dense.py). FOIL and nocaps-FOIL: the lowest word
          must be the foil word; HAT: the lowest span lies inside the wrong words; Rich-HF: flagged words by place.
Metrics:  localisation, average precision (base_rate is what a constant reaches), pairwise: higher. mean_image/... is
          the same without the image: what the text tower alone says of the words.
          Average precision is over all captions, and by domain; ref_clip_score where there are references.
Quirks:   the published threshold of -5e-5 belongs to ViT-H/14; --flag SHARE finds one. A foil of several words cannot
          be hit: localisation_single_word leaves them out. SeeTRUE's judge (an NLI model) is given in Python only.
Inputs:   --encoder ours|openai|NAME|PATH; --data a file of FOIL, nocaps-FOIL, HAT, SeeTRUE, Rich-HF with --images DIR
          (default: foils of the embedded world).
Outputs:  OUT/results.json, OUT/words.jsonl (every caption with its words' scores).
Command:  python eval/dense.py --encoder ours
Cost:     8 seconds of processor time on the embedded world. Elsewhere mostly that of the images: see eval/pairs.py.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.files import write_jsonl
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.results import print_metrics, write_results
from llava_ohd.training.launch import quiet

RULE = "CLIP4DM protocols (arXiv 2412.18404), float32 attributions, ties wrong"


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    add("--data", type=Path, help="file of a set (default: foils of the embedded world)")
    add("--images", type=Path, default=home() / "world/images", help="folder of its images")
    add("--layers", type=int, default=3, help="last layers of the text tower that are looked at")
    add("--variant", default="clip4dm", help="clip4dm, relu, relu_mean or rollout")
    add("--template", help="stands before each caption (default: the paper's; in the embedded world nothing)")
    add("--threshold", type=float, default=-5e-5, help="words below it count as wrong (default: %(default)s)")
    add("--flag", type=float, metavar="SHARE", help="threshold under which this share of right captions' words lies")
    add("--cut", action="store_true", help="leave words beyond the encoder's length without score")
    add("--out", type=Path, help="default: eval/ENCODER/dense in the home folder")
    add("--seed", type=int, default=0, help="of the embedded world's foils")
    return parser.parse_args()


def main() -> None:
    """Runs the command."""
    given = parse()
    quiet()
    with exit_on_error():
        from llava_ohd import tower
        from llava_ohd.evals.dense_items import read_items
        from llava_ohd.explain.evaluate import evaluate, read_world
        from llava_ohd.explain.explainer import ExplainConfig
        from llava_ohd.explain.words import TEMPLATE

        encoder = tower.check(tower.resolve(given.encoder))
        out = given.out or evaluation_folder(given.encoder, "dense", given.data is not None)
        template = given.template if given.template is not None else TEMPLATE if given.data else ""
        config = ExplainConfig(given.layers, given.variant, template, given.threshold, given.cut)
        name, items = read_items(given.data) if given.data else read_world(home() / "world", given.seed)
        if name == "seetrue":
            raise DataFormatError(f"{given.data}: SeeTRUE needs a judge; call evals.dense.seetrue_entailment with one")
        found = evaluate(encoder.path, name, items, given.images, config, given.flag)
        write_jsonl(out / "words.jsonl", found.rows())
        write_results(
            out / "results.json",
            found.metrics,
            evaluation="dense",
            rule=RULE,
            data_set=from_home(given.data) if given.data else f"world foils, seed {given.seed}",
            n=len(items),
            complete=True,
            encoder={"name": encoder.name, "digest": encoder.digest},
            settings=vars(config) | {"set": name, "threshold": found.threshold, "flag": given.flag},
        )
        print(f"dense misalignment, {name}, encoder {given.encoder}, {len(items):,} captions")
        print_metrics(found.metrics, width=46)
        if given.flag is not None:
            print(f"--threshold={found.threshold:.3e}: {given.flag:.0%} of the words of right captions lie below it")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
