"""CHAIR: how many of the objects that the model mentions are not in the image?

Paper:    Rohrbach et al., EMNLP 2018, arXiv 1809.02156.
Rule:     exact: words as they stand, no singularisation (LisaAnne/Hallucination@6e4d33c utils/chair.py otherwise).
Metrics:  chair_i (share of mentioned objects that are not there), chair_s (share of captions with such a one): lower is
          better; recall: higher; length (words) describes.
Quirks:   a model that says little hallucinates little: read recall and length beside it. Ground truth counts what the
          reference captions mention, too.
Inputs:   --encoder ours|openai|NAME|PATH (its LLaVA model, or --model), --set world|DIR; --answers FILE scores only.
Outputs:  OUT/answers.jsonl, OUT/results.json.
Command:  python eval/chair.py --encoder ours
Cost:     half a minute on the embedded world; scoring alone needs no torch and a second.
"""

import argparse
from pathlib import Path
from typing import Any

from llava_ohd.errors import exit_on_error
from llava_ohd.evals import chair
from llava_ohd.files import read_json
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.records import Question
from llava_ohd.results import print_metrics, write_results


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", default="ours", help="name or folder of the encoder (default: ours); a folder needs --out"
    )
    parser.add_argument("--model", type=Path, help="LLaVA model folder (default: the one registered for the encoder)")
    parser.add_argument("--set", default="world", help="world, or a folder with annotations/, images/, synonyms.txt")
    parser.add_argument("--split", default="test", help="of annotations/{instances,captions}_SPLIT.json")
    parser.add_argument("--images", type=Path, help="folder of the images (default: images/ of the set)")
    parser.add_argument("--limit", type=int, default=500, help="number of images, the first ones")
    parser.add_argument("--prompt", default="Describe this image.", help="what is asked about every image")
    parser.add_argument("--answers", type=Path, help="score these captions instead of making them")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens at which a caption is cut")
    parser.add_argument("--verify", type=int, default=0, metavar="N", help="also answer N one by one, and compare")
    parser.add_argument(
        "--out", type=Path, help="default: eval/ENCODER/chair in the home folder; with --answers FILE, FILE_scored/"
    )
    given = parser.parse_args()
    with exit_on_error():
        if given.answers is None:
            from llava_ohd.tower.names import expect

            expect(given.encoder)  # what is wrong with the encoder is said first
        folder = home() / "world" if given.set == "world" else Path(given.set)
        instances, captions = (folder / f"annotations/{kind}_{given.split}.json" for kind in ("instances", "captions"))
        vocabulary = chair.read_synonyms(folder / "synonyms.txt")
        truth = chair.read_ground_truth(instances, captions, vocabulary)
        beside = given.answers.with_name(f"{given.answers.stem}_scored") if given.answers else None
        out = given.out or beside or evaluation_folder(given.encoder, "chair", given.set != "world")
        source: dict[str, Any] = {}
        asked: dict[str, Any] = {}  # how captions of others came about is not known
        if given.answers is None:
            from llava_ohd.answering.session import Session, ask

            rows = read_json(instances)["images"][: given.limit]
            questions = [Question(str(row["id"]), row["file_name"], given.prompt) for row in rows]
            images = given.images or folder / "images"
            session = Session(given.encoder, given.model, images, given.max_new_tokens, given.verify)
            source = ask(session, questions, out / "answers.jsonl")
            asked = {"prompt": given.prompt, "max_new_tokens": given.max_new_tokens}
        expected = min(given.limit, len(read_json(instances)["images"]))
        said = chair.read_captions(given.answers or out / "answers.jsonl")
        metrics = chair.score(said, truth, vocabulary)
        write_results(
            out / "results.json",
            metrics,
            evaluation="chair",
            rule=chair.RULES["exact"],
            data_set=from_home(folder),
            n=len(said),
            complete=len(said) == expected,
            settings={"limit": given.limit, "split": given.split} | asked,
            **source,
        )
        print(f"CHAIR, {given.answers or given.encoder}, {folder}, {len(said)} captions")
        print_metrics(metrics)
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
