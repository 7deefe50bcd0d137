"""MME, hallucination subset: does the model see that, how many, where and in which colour?

Paper:    Fu et al., 2023, arXiv 2306.13394.
Rule:     official (calculation.py of MME's eval_tool; BradyFU/Awesome-Multimodal-Large-Language-Models).
Metrics:  per task (existence, count, position, color) accuracy, accuracy_plus (both questions of an image) and score
          (their sum in points, to 200); score over all four (to 800): higher is better.
Quirks:   "yes", else "no", in the first four characters counts; a constant answer gets 200 of 800 (always_yes/score).
Inputs:   --answers DIR with existence.txt, count.txt, position.txt, color.txt: lines of image, question, label, answer
          with tabs between; fewer files or images are marked as not complete. MME gives images and labels on request.
Outputs:  OUT/results.json, OUT/counts.jsonl (by image, for scripts/compare.py).
Command:  python eval/mme.py --answers eval_tool/answers/MODEL --out runs/mme
Cost:     a second; no torch.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.evals import mme
from llava_ohd.evals.counted import of_mme
from llava_ohd.evals.given_answers import out_beside, told
from llava_ohd.results import print_metrics, write_results


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, metavar="DIR", help="what the model said")
    parser.add_argument("--out", type=Path, help="default: DIR_scored/ beside the folder")
    given = parser.parse_args()
    with exit_on_error():
        answers = mme.read_answers(given.answers)
        metrics, notes = mme.score(answers), mme.notes(answers)
        images = {task: len({row.image for row in answers.get(task, [])}) for task in mme.TASKS}
        out = given.out or out_beside(given.answers)
        write_results(
            out / "results.json",
            metrics,
            evaluation="mme",
            rule=mme.RULE,
            data_set="hallucination subset",
            n=sum(map(len, answers.values())),
            complete=all(count == mme.IMAGES for count in images.values()),
            settings={"images": images},
            details={
                "answers": told(given.answers / f"{task}.txt" for task in answers),
                "notes": notes,
                "formulas": of_mme(answers).write(out / "counts.jsonl"),
            },
        )
        print(f"MME, hallucination subset, {given.answers}")
        for task, count in images.items():
            if count < mme.IMAGES:
                print(f"  {task}: {count} of {mme.IMAGES} images answered (NOT COMPLETE)")
        print_metrics(metrics)
        for note in notes:
            print(f"  {note}")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
