"""POPE: does the model say that an object is there which is not?

Paper:    Li et al., EMNLP 2023, arXiv 2305.10355.
Rule:     official (AoiDragon/POPE@08d957b evaluate.py; the same in LLaVA eval_pope.py @ c121f04).
Metrics:  per split (random, popular, adversarial) accuracy, precision, recall, f1 (higher), yes_ratio (describes);
          f1_macro (mean of the three F1: LLaVA's "POPE"), accuracy_macro, f1_pooled.
Quirks:   an answer without the words "no" or "not" in its first sentence counts as yes, even an empty one. LLaVA
          appends "Answer the question using a single word or phrase.": --suffix does, the world asks the bare question.
Inputs:   --encoder ours|openai|NAME|PATH (its LLaVA model, or --model), --set world|DIR; --answers FILE scores only.
Outputs:  OUT/answers.jsonl, OUT/results.json.
Command:  python eval/pope.py --encoder ours
Cost:     half a minute on the embedded world; scoring alone needs no torch and a second.
"""

import argparse
from pathlib import Path
from typing import Any

from llava_ohd.errors import exit_on_error
from llava_ohd.evals import pope
from llava_ohd.evals.answers import read_answers
from llava_ohd.home import evaluation_folder, from_home, home
from llava_ohd.results import print_metrics, write_results


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", default="ours", help="name or folder of the encoder (default: ours); a folder needs --out"
    )
    parser.add_argument("--model", type=Path, help="LLaVA model folder (default: the one registered for the encoder)")
    parser.add_argument("--set", default="world", help="world, or a folder with pope/ and images/ (default: world)")
    parser.add_argument("--prefix", default="", help="how the question files begin, where pope/ holds several sets")
    parser.add_argument("--images", type=Path, help="folder of the images (default: images/ of the set)")
    parser.add_argument("--suffix", action="store_true", help="append LLaVA's demand for a single word or phrase")
    parser.add_argument("--answers", type=Path, help="score these answers instead of answering")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="tokens at which an answer is cut")
    parser.add_argument("--verify", type=int, default=0, metavar="N", help="also answer N one by one, and compare")
    parser.add_argument("--probabilities", action="store_true", help="keep those of yes and no with each answer")
    parser.add_argument(
        "--out", type=Path, help="default: eval/ENCODER/pope in the home folder; with --answers FILE, FILE_scored/"
    )
    given = parser.parse_args()
    with exit_on_error():
        if given.answers is None:
            from llava_ohd.tower.names import expect

            expect(given.encoder)  # what is wrong with the encoder is said first
        folder = home() / "world" if given.set == "world" else Path(given.set)
        questions = pope.read_questions(folder / "pope" if (folder / "pope").is_dir() else folder, given.prefix)
        beside = given.answers.with_name(f"{given.answers.stem}_scored") if given.answers else None
        out = given.out or beside or evaluation_folder(given.encoder, "pope", given.set != "world")
        source: dict[str, Any] = {}
        asked: dict[str, Any] = {}  # how answers of others came about is not known
        if given.answers is None:
            from llava_ohd.answering.session import Session, ask

            images = given.images or folder / "images"
            session = Session(
                given.encoder, given.model, images, given.max_new_tokens, given.verify, given.probabilities
            )
            source = ask(session, questions, out / "answers.jsonl", pope.SUFFIX if given.suffix else "")
            asked = {"suffix": given.suffix, "max_new_tokens": given.max_new_tokens}
        metrics = pope.score(questions, read_answers(given.answers or out / "answers.jsonl"))
        write_results(
            out / "results.json",
            metrics,
            evaluation="pope",
            rule=pope.RULE,
            data_set=from_home(folder),
            n=len(questions),
            settings={"prefix": given.prefix} | asked,
            **source,
        )
        print(f"POPE, {given.answers or given.encoder}, {folder}")
        print_metrics(metrics)
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
