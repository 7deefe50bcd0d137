"""OHD-Caps: does an encoder prefer the caption of an image to 27 captions that are wrong about it?

Paper:    Liu et al., EMNLP 2024, arXiv 2410.03176, section 3.
Rule:     cosine of the image with its captions in float32; right if the caption is above all others. The official code
          (Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py) lets ties count as right; here they never do.
Metrics:  accuracy (higher), its 95 % interval, accuracy_shuffled (with another row's image: what the captions alone
          give away), pairwise (share of negatives below their caption), per strategy and number of objects.
Quirks:   a scorer that sees no image reaches 73-87 % on the authors' files, because their negatives are edits of the
          caption and lie around it (control_medoid); so no accuracy means anything without its controls beside it.
Inputs:   --encoder ours|openai|NAME|PATH, --data rows (ours or the authors' *_annotations.json, *_out_label.json).
Outputs:  OUT/results.json, OUT/predictions.jsonl.
Command:  python eval/ohd_caps.py --encoder ours
Cost:     seconds on the embedded world; 500 COCO rows with ViT-L/14-336 about 10 minutes on 2 cores.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_jsonl
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.records import Metric
from llava_ohd.results import write_results

RULE = "argmax of float32 cosines, ties wrong (arXiv 2410.03176; Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py)"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    world = home() / "world"
    parser.add_argument("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    parser.add_argument("--data", type=Path, default=world / "ohd_caps" / "test.jsonl", help="OHD-Caps rows")
    parser.add_argument("--images", type=Path, default=world / "images", help="folder that the rows' images lie in")
    parser.add_argument("--out", type=Path, help="default: eval/ENCODER/ohd_caps in the home folder")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled images")
    given = parser.parse_args()
    with exit_on_error():
        from llava_ohd.ohd_caps import controls
        from llava_ohd.ohd_caps.readers import read_rows

        rows = read_rows(given.data)
        own_data = given.data != parser.get_default("data")
        out = given.out or evaluation_folder(given.encoder, "ohd_caps", own_data)

        from llava_ohd import tower
        from llava_ohd.clip.accuracy import metrics, predictions, score
        from llava_ohd.clip.batching import image_names
        from llava_ohd.clip.embedding import Images

        encoder = tower.check(tower.resolve(given.encoder))
        images = Images(given.images, image_names(rows), tower.load_processor(encoder.path))
        scores = score(tower.load(encoder.path), tower.load_tokenizer(encoder.path), images, rows, given.seed)
        blind = controls.accuracies(rows)
        found = metrics(scores) + [Metric(f"control_{name}", blind[name], len(rows), "none") for name in blind]
        write_jsonl(out / "predictions.jsonl", predictions(scores))
        write_results(
            out / "results.json",
            found,
            evaluation="ohd_caps",
            rule=RULE,
            data_set=from_home(given.data),
            n=len(rows),
            encoder={"name": encoder.name, "digest": encoder.digest},
            settings={"shuffle_seed": given.seed},
        )
        print(f"OHD-Caps, {encoder.name}, {given.data}")
        for metric in found:
            print(f"  {metric.name:24} {100 * metric.value:6.1f} %   n {metric.n}")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
