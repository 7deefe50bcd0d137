"""OHD-Caps: does an encoder prefer the caption of an image to 27 captions that are wrong about it?

Paper:    Liu et al., EMNLP 2024, arXiv 2410.03176, section 3.
Rule:     cosine of the image with its captions in float32; right if the caption is above all others. The official code
          (Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py) lets ties count as right; here they never do.
Metrics:  accuracy (higher) overall, by strategy, by objects edited, by objects in the image, each with its 95 %
          interval (Wilson) and chance; pairwise (share of negatives below their caption).
Quirks:   a scorer that sees no image reaches 73-87 % on the authors' files, because their negatives are edits of the
          caption and lie around it; so no accuracy means anything without its controls beside it: shortest, style,
          bag of n-grams, medoid (control_*), accuracy_shuffled, accuracy_mean_image. --debias writes a split on which
          none of them is above chance (docs/ohd_caps.md).
Inputs:   --encoder ours|openai|NAME|PATH; --data a file of rows (ours or the authors'), or a folder with test/, dev/.
Outputs:  OUT/results.json, OUT/predictions.jsonl; for a folder OUT/SET/...; --debias DIR: DIR/test/SET.jsonl, DIR/dev/.
Command:  python eval/ohd_caps.py --encoder ours
Cost:     seconds on the embedded world; 500 COCO rows with ViT-L/14-336 about 10 minutes on 2 cores. Controls of the
          authors' three sets 10 seconds of one core; --debias of them 2 minutes.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.home import evaluation_folder, home
from llava_ohd.training.launch import quiet


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    world = home() / "world"
    parser.add_argument("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    parser.add_argument("--data", type=Path, default=world / "ohd_caps" / "test.jsonl", help="rows, or a folder")
    parser.add_argument(
        "--images", type=Path, default=world / "images", help="folder of the images, or of one folder per set"
    )
    parser.add_argument(
        "--fit", type=Path, metavar="FILE", help="rows to fit controls on (default: dev or train rows beside DATA)"
    )
    parser.add_argument("--controls-only", action="store_true", help="print what is reached without image and encoder")
    parser.add_argument("--debias", type=Path, metavar="DIR", help="write a split on which controls are at chance")
    parser.add_argument("--scorer", default="whole", help="how captions are compared (docs/diagnostics_objects.md)")
    parser.add_argument("--out", type=Path, help="default: eval/ENCODER/ohd_caps in the home folder")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled images, and of --debias")
    given = parser.parse_args()
    given.own_data = given.data != parser.get_default("data")
    given.kept_as = "ohd_caps" if given.scorer == "whole" else f"ohd_caps-{given.scorer}"
    return given


def main() -> None:
    """Runs the command."""
    given = parse()
    quiet()
    with exit_on_error():
        from llava_ohd.ohd_caps import blind, sets

        blind_only = given.controls_only or given.debias is not None
        if not blind_only:
            from llava_ohd.clip.accuracy_report import Measurement, measure, table
            from llava_ohd.tower.names import expect

            expect(given.encoder)
        rows = sets.read_test_sets(given.data)
        fitting = blind.fitting_rows(given.data, rows, given.fit)
        out = given.out if given.out or blind_only else evaluation_folder(given.encoder, given.kept_as, given.own_data)
        controls = blind.blind_accuracies(rows, fitting)
        if blind_only:
            print(blind.table(controls, rows, "OHD-Caps, right without looking, %"))
            print(f"(fitted controls: on {fitting.source})")
        if given.debias:
            from llava_ohd.ohd_caps.debias_report import write_split

            print("", write_split(rows, fitting, given.debias, given.seed), f"split: {given.debias}", sep="\n")
        for name, part in rows.items() if not blind_only else ():
            folder, images = (out, given.images) if len(rows) == 1 else (out / name, given.images / name)
            images = images if images.is_dir() else given.images
            asked = Measurement(given.encoder, images, given.data, fitting.source, given.seed, given.scorer)
            found = measure(asked, part, controls[name], folder)
            print(
                f"OHD-Caps {name}, encoder {given.encoder}, scorer {given.scorer}, {len(part):,} rows of {given.data}"
            )
            print(table(found, fitting.source), f"results: {folder / 'results.json'}", sep="\n")


if __name__ == "__main__":
    main()
