"""HallusionBench: does the model answer what the figure shows, also when the figure was altered?

Paper:    Guan et al., CVPR 2024, arXiv 2310.14566.
Rule:     --rule vlmevalkit (open-compass/VLMEvalKit@e8e78f0 yorn.py, no judge: the 951 questions with an image) or
          official (tianyi-lab/HallusionBench@744007c utils.py: all 1129, the answer's first word in place of GPT-4).
Metrics:  a_acc (questions), f_acc (figures with all questions right), q_acc (questions right in all figures), also for
          VD and VS: higher is better. always_yes/*, always_no/* are what constant answers get.
Quirks:   the two rules are over different questions; by the official one "not sure" is right where no figure is shown.
Inputs:   --answers FILE: HallusionBench.json with model_prediction (a text, or 0, 1, 2), or rows of question_id
          (VD_chart_1_0_1_0: category, subcategory, visual_input, set, figure, question) and text; --data FILE.
Outputs:  OUT/results.json.
Command:  python eval/hallusionbench.py --answers answers.jsonl --out runs/hallusionbench
Cost:     a second; no torch.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.evals import hallusionbench
from llava_ohd.evals.given_answers import out_beside, told
from llava_ohd.home import data_folder
from llava_ohd.results import print_metrics, write_results


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="what the model said")
    parser.add_argument(
        "--data", type=Path, help="HallusionBench.json (default: in hallusionbench/ of $LLAVA_OHD_DATA)"
    )
    parser.add_argument("--rule", choices=sorted(hallusionbench.RULES), default="vlmevalkit")
    parser.add_argument("--out", type=Path, help="default: FILE_scored/ beside the file")
    given = parser.parse_args()
    with exit_on_error():
        data = (
            given.data
            or data_folder("HallusionBench.json; give another with --data") / "hallusionbench/HallusionBench.json"
        )
        questions = hallusionbench.read_questions(data)
        answers = hallusionbench.read_answers(given.answers)
        metrics, notes = hallusionbench.score(questions, answers, given.rule), hallusionbench.notes(answers, given.rule)
        out = given.out or out_beside(given.answers)
        write_results(
            out / "results.json",
            metrics,
            evaluation="hallusionbench",
            rule=hallusionbench.RULES[given.rule],
            data_set="hallusionbench",
            n=metrics[0].n,
            details={"answers": told([given.answers]), "notes": notes},
        )
        print(f"HallusionBench, {given.answers}, rule {given.rule}")
        print_metrics(metrics)
        for note in notes:
            print(f"  {note}")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
