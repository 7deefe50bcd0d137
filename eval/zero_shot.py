"""Zero-shot object recognition: which of all kinds does an image show?

Paper:    Radford et al. 2021, arXiv 2103.00020, section 3.1.
Rule:     nearest mean of five prompts per kind, cosine, float32. Templates of our own (clip/zero_shot.py): OHD-Caps
          does not state its.
Metrics:  accuracy over images of one kind (higher) with its 95 % interval; accuracy_present over images of several
          (higher): is the prediction among them?
Quirks:   an image counts as of one kind when its annotations name one, however often.
Inputs:   --encoder ours|openai|NAME|PATH, --instances COCO instances json, --images.
Outputs:  OUT/results.json, OUT/predictions.jsonl (images of one kind), OUT/predictions_several.jsonl (of several).
Command:  python eval/zero_shot.py --encoder ours
Cost:     seconds on the embedded world.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_jsonl
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.results import write_results

RULE = "nearest kind by the mean of 5 prompts (arXiv 2103.00020 section 3.1; templates of llava_ohd/clip/zero_shot.py)"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    world = home() / "world"
    parser.add_argument("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    parser.add_argument(
        "--instances", type=Path, default=world / "annotations" / "instances_zero_shot.json", help="COCO instances json"
    )
    parser.add_argument("--images", type=Path, default=world / "images", help="folder of the images")
    parser.add_argument("--out", type=Path, help="default: eval/ENCODER/zero_shot in the home folder")
    given = parser.parse_args()
    with exit_on_error():
        from llava_ohd import tower
        from llava_ohd.clip.embedding import Images
        from llava_ohd.clip.zero_shot import metrics, predictions, read_kinds, recognise

        objects, kinds = read_kinds(given.instances)
        own_data = given.instances != parser.get_default("instances")
        out = given.out or evaluation_folder(given.encoder, "zero_shot", own_data)
        encoder = tower.check(tower.resolve(given.encoder))
        images = Images(given.images, [image.image for image in objects], tower.load_processor(encoder.path))
        found = recognise(tower.load(encoder.path), tower.load_tokenizer(encoder.path), images, objects, kinds)
        write_jsonl(out / "predictions.jsonl", predictions(found))
        if several := predictions(found, single=False):
            write_jsonl(out / "predictions_several.jsonl", several)
        write_results(
            out / "results.json",
            metrics(found),
            evaluation="zero_shot",
            rule=RULE,
            data_set=from_home(given.instances),
            n=len(objects),
            encoder={"name": encoder.name, "digest": encoder.digest},
            settings={"kinds": len(kinds)},
        )
        print(f"zero-shot recognition, {encoder.name}, {given.instances}, {len(kinds)} kinds")
        for metric in metrics(found):
            print(f"  {metric.name:24} {100 * metric.value:6.1f} %   n {metric.n}")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
