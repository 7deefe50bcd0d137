"""POPE: does the model say that an object is there which is not?

Paper:    Li et al., EMNLP 2023, arXiv 2305.10355; RePOPE: arXiv 2504.15707.
Rule:     --rule official (AoiDragon/POPE@08d957b evaluate.py; the same in LLaVA eval_pope.py @ c121f04), strict,
          vlmevalkit, lmms-eval, repope (sources: llava_ohd/evals/yes_no.py); --all-rules prints them side by side.
Metrics:  per split accuracy, precision, recall, f1 (higher), yes_ratio (describes); f1_macro (mean of the three F1:
          LLaVA's "POPE"), accuracy_macro, f1_pooled (lmms-eval's, VLMEvalKit's); for coco repope/*, the corrected
          labels. undecided (the rule reads nothing), unparsed (no plain yes or no), not_bare (more than the word: the
          rules may differ), label_yes_ratio, always_yes/*, always_no/* describe.
Quirks:   by the official rule an answer without "no" or "not" in its first sentence is a yes, even an empty one. LLaVA
          appends "Answer the question using a single word or phrase.": --suffix does, the world asks the bare question.
Inputs:   --encoder ours|openai|NAME|PATH (its LLaVA model, or --model); --set NAME (under $LLAVA_OHD_DATA) or DIR;
          --answers FILE ... scores only: ours, LLaVA's, POPE's or OHD-Caps' form, one file or one per split.
Outputs:  OUT/answers.jsonl (of a model, or as they were joined to the questions), OUT/results.json.
Command:  python eval/pope.py --encoder ours
Cost:     ten seconds on the embedded world; scoring alone needs no torch and a second. torchrun shares it over ranks.
"""

import argparse
from pathlib import Path
from typing import Any

from llava_ohd.answering.options import add_flags, ask_with, settle_encoder
from llava_ohd.errors import exit_on_error
from llava_ohd.evals import pope, pope_sets
from llava_ohd.evals.answers import read_answers
from llava_ohd.evals.given_answers import flags_of, keep, out_beside, refuse_idle, stated
from llava_ohd.home import evaluation_folder, from_home
from llava_ohd.results import write_results


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(parser, max_new_tokens=32)
    add("--set", default="world", help=f"{', '.join(pope_sets.SETS)}, or a folder with pope/, images/ (default: world)")
    add("--prefix", default="", help="how the question files begin, where pope/ holds several sets")
    add("--suffix", action="store_true", help="append LLaVA's demand for a single word or phrase")
    add("--rule", choices=sorted(pope.RULES), default="official", help="how answers are read (default: official)")
    add("--all-rules", action="store_true", help="score by the other rules too, and print them side by side")
    add("--partial", action="store_true", help="RePOPE from answers to coco-2910, which lack 87 of its questions")
    add("--answers", type=Path, nargs="+", metavar="FILE", help="score these answers instead of answering")
    add("--probabilities", action="store_true", help="keep those of yes and no with each answer")
    add("--out", type=Path, help="default: eval/ENCODER/pope in the home folder; with --answers FILE, FILE_scored/")
    given = parser.parse_args()
    if given.answers:
        idle = {*flags_of(add_flags), "probabilities", "suffix"}
        with exit_on_error():
            refuse_idle(stated(parser, given), idle, "with --answers, where no model is asked")
    return given


def main() -> None:
    """Runs the command."""
    given = parse()
    with exit_on_error():
        if given.answers is None:
            settle_encoder(given)  # what is wrong with it is said first
        folder, questions = pope_sets.locate(given.set), pope_sets.read_set(given.set, given.prefix)
        beside = out_beside(given.answers[0]) if given.answers else None
        out = given.out or beside or evaluation_folder(given.encoder, "pope", given.set != "world")
        source, asked = dict[str, Any](), dict[str, Any]()  # how answers of others came about is not known
        if given.answers is None:
            suffix = pope.SUFFIX if given.suffix else ""
            source = ask_with(given, pope_sets.images_of(folder), questions, out, suffix)
            asked = {"suffix": given.suffix, "max_new_tokens": given.max_new_tokens}
        rows = [row for file in given.answers or [out / "answers.jsonl"] for row in read_answers(file)]
        scored = pope.evaluate(questions, rows, given.set, given.rule, given.all_rules, given.partial)
        source |= {"data_set": given.set if given.set in pope_sets.SETS else from_home(folder), "evaluation": "pope"}
        source |= {"settings": {"prefix": given.prefix} | asked, "rule": str(pope.RULES[given.rule])}
        source["details"] = {"notes": scored.notes} if scored.notes else {}
        if given.answers:
            source["details"]["answers"] = keep(out / "answers.jsonl", scored.rows(questions), given.answers)
        write_results(out / "results.json", scored.metrics, n=len(scored.answers), complete=scored.complete, **source)
        print(f"POPE, {', '.join(map(str, given.answers or [given.encoder]))}, {given.set}, rule {given.rule}")
        print(scored)
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
