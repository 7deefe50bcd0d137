"""Zero-shot recognition: which of all classes does an image show?

Paper:    Radford et al. 2021, arXiv 2103.00020, section 3.1.
Rule:     nearest mean of the class's prompts, cosine, float32; where two classes are equally near nothing is right.
          Class names and templates are OpenAI's (openai/CLIP@d05afc4); for COCO instances (--set world) five
          templates of our own (clip/zero_shot.py). OHD-Caps does not state its templates.
Metrics:  accuracy over images of one class (higher) with its 95 % interval (Wilson); mean_per_class: every class
          weighs the same; accuracy_present over images of several (COCO instances): is the prediction among them?
Quirks:   labels of the data are looked up by name and refused where they are not the set's classes. OpenAI calls two
          pairs of ImageNet classes alike (missile, sunglasses): a prediction of these is a tie, never right, which
          costs up to 0.4 points against a rule that breaks ties. EuroSAT has no official test split: all are used.
Inputs:   --encoder ours|openai|NAME|PATH; --set world, cifar10, cifar100, stl10, eurosat, gtsrb or imagenet;
          --data: their folder as unpacked, class folders, or a folder of `datasets` (clip/image_sets.py lists them).
Outputs:  OUT/results.json, OUT/predictions.jsonl (images of one class), OUT/predictions_several.jsonl (of several).
Command:  python eval/zero_shot.py --encoder ours
Cost:     seconds on the embedded world; 10,000 images with ViT-B/32 about 10 minutes on 2 cores.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.files import write_jsonl
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.results import print_metrics, write_results
from llava_ohd.training.launch import quiet

SETS = ("world", "cifar10", "cifar100", "stl10", "eurosat", "gtsrb", "imagenet")
RULE = "nearest kind by the mean of 5 prompts (arXiv 2103.00020 section 3.1; templates of llava_ohd/clip/zero_shot.py)"
OPENAI_RULE = "nearest class by the mean of OpenAI's prompts, ties wrong (arXiv 2103.00020; openai/CLIP@d05afc4)"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    world = home() / "world"
    parser.add_argument("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    parser.add_argument("--set", default="world", choices=SETS, help="classes and prompts (default: world)")
    parser.add_argument("--data", type=Path, help="folder of the data set, where --set is another than world")
    parser.add_argument(
        "--instances", type=Path, default=world / "annotations" / "instances_zero_shot.json", help="COCO instances json"
    )
    parser.add_argument("--images", type=Path, default=world / "images", help="folder of the images of --instances")
    parser.add_argument("--out", type=Path, help="default: eval/ENCODER/zero_shot in the home folder")
    given = parser.parse_args()
    if (given.data is None) != (given.set == "world"):
        parser.error("--data DIR goes with every --set but world, which takes --instances and --images")
    quiet()
    with exit_on_error():
        from llava_ohd import tower
        from llava_ohd.clip.zero_shot import metrics, predictions, read_set, recognise

        source = given.data or given.instances
        if not source.exists():
            raise DataFormatError(f"{source} does not exist; give the data as --data or --instances")
        encoder = tower.check(tower.resolve(given.encoder))
        out = given.out or evaluation_folder(given.encoder, "zero_shot", source != parser.get_default("instances"))
        data = read_set(given.set, source, given.images, tower.load_processor(encoder.path))
        found = recognise(tower.load(encoder.path), tower.load_tokenizer(encoder.path), data)
        write_jsonl(out / "predictions.jsonl", predictions(found))
        if several := predictions(found, single=False):
            write_jsonl(out / "predictions_several.jsonl", several)
        write_results(
            out / "results.json",
            metrics(found),
            evaluation="zero_shot",
            rule=RULE if given.set == "world" else OPENAI_RULE,
            data_set=from_home(source),
            n=len(data.objects),
            encoder={"name": encoder.name, "digest": encoder.digest},
            settings={"kinds": len(data.classes), "prompts": len(data.prompts[0])},
        )
        print(f"zero-shot recognition, {given.encoder}, {source}, {len(data.classes)} classes")
        print_metrics(metrics(found))
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
