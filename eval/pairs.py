"""SugarCrepe, FOIL, nocaps-FOIL, COLA: does an encoder prefer the right one of two captions?

Papers:   Hsieh et al. 2023 (arXiv 2306.14610); Shekhar et al. 2017 (FOIL), Parcalabescu et al. 2022 (VALSE, arXiv
          2112.07566); Petryk et al. 2024 (ALOHa, arXiv 2404.02904); Ray et al. 2023 (COLA, arXiv 2305.03689).
Rule:     float32 cosine with the caption strictly above that with the wrong one; COLA: each of two captions strictly
          prefers its own image (scripts/eval.py@1fa52fb). Ties are never right.
Metrics:  accuracy (higher) with its 95 % interval, by category; COLA also the other direction and both. Beside it what
          needs no image: accuracy_shuffled (other images of the file), control_shortest, control_chance.
Quirks:   FOIL in VALSE: only rows where at least 2 of 3 people agreed count (943 of 1000). SugarCrepe wants COCO
          val2017, FOIL val2014, nocaps-FOIL OpenImages, COLA Visual Genome images, under the names that the file gives.
Inputs:   --encoder ours|openai|NAME|PATH, --data FILE ... (several of one benchmark: categories), --images DIR.
Outputs:  OUT/results.json, OUT/predictions.jsonl.
Command:  python eval/pairs.py --encoder ours --data sugarcrepe/*.json --images coco/val2017 --out runs/eval/sugarcrepe
Cost:     7,511 SugarCrepe pairs with ViT-B/32 about 10 minutes on 2 cores.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_jsonl
from llava_ohd.home import from_home
from llava_ohd.results import print_metrics, write_results
from llava_ohd.training.launch import quiet

RULE = "float32 cosine, ties wrong (sugar-crepe@0047054, VALSE@2152d90, aloha@7da6b90, COLA@1fa52fb)"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="pair files of one kind")
    parser.add_argument("--images", type=Path, required=True, help="folder of their images")
    parser.add_argument("--limit_to_existing", action="store_true", help="measure only rows whose images are there")
    parser.add_argument("--scorer", default="whole", help="how captions are compared (docs/diagnostics_objects.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled images")
    given = parser.parse_args()
    quiet()
    with exit_on_error():
        from llava_ohd import tower
        from llava_ohd.clip.embedding import Images
        from llava_ohd.clip.pairs import existing, image_names, metrics, predictions, read_all, score
        from llava_ohd.clip.scorers import cost_settings, make_scorer
        from llava_ohd.ohd_caps.vocabulary import PHOTO_VOCABULARY

        encoder = tower.check(tower.resolve(given.encoder))
        scorer = make_scorer(given.scorer, PHOTO_VOCABULARY)
        read, excluded = read_all(given.data)
        items = existing(read, given.images, given.limit_to_existing)
        images = Images(given.images, image_names(items), tower.load_processor(encoder.path))
        model, tokenizer = tower.load(encoder.path), tower.load_tokenizer(encoder.path)
        scores = score(model, tokenizer, images, items, given.seed, scorer)
        write_jsonl(given.out / "predictions.jsonl", predictions(scores))
        write_results(
            given.out / "results.json",
            metrics(scores),
            evaluation="pairs",
            rule=RULE,
            data_set=" ".join(from_home(file) for file in given.data),
            n=len(items),
            complete=len(items) == len(read),
            encoder={"name": encoder.name, "digest": encoder.digest},
            settings={"rows_without_image": len(read) - len(items), "not_valid": excluded, "shuffle_seed": given.seed}
            | cost_settings(scorer, scores.cost),
        )
        what = f"{len(given.data)} files, {len(items)} of {len(read)} rows with their images"
        print(f"pairs, {given.encoder}, scorer {given.scorer}, {what}")
        print_metrics(metrics(scores), width=28)
        print(f"results: {given.out / 'results.json'}")


if __name__ == "__main__":
    main()
