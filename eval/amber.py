"""AMBER: what does a model name that is not there, and what does it say of it when asked?

Paper:    Wang et al., 2023, arXiv 2311.07397.
Rule:     official (junyangwang0410/AMBER@534babf inference.py). --similarity exact compares words by their letters,
          where the original asks spaCy's en_core_web_lg; --similarity spacy does as the original.
Metrics:  chair (imagined mentions), hal (descriptions with one), cog (imagined as people would): lower is better; cover
          (share of the image's objects named): higher. accuracy, precision, recall, f1: higher; "No" is the positive
          class. amber = (1 - chair + f1) / 2: higher.
Quirks:   exactly "Yes" and "No" count ("yes", "No." are wrong): tolerant/* reads the first word. Always "No" gets F1
          79.7 %, more than LLaVA-1.5: always_no/* stands beside. Id 13193 asks for a chair in one query file and for a
          computer in another.
Inputs:   --responses FILE, an array of {"id", "response"} as AMBER's, or our answers.jsonl; a part of the ids will do,
          and is then marked as not complete. --data DIR with annotations.json, relation.json, safe_words.txt, and
          query/query_*.json, which what was asked is compared with where the file says it.
Outputs:  OUT/results.json, OUT/counts.jsonl (by image, for scripts/compare.py).
Command:  python eval/amber.py --responses answers.json --data amber/data --similarity exact --out runs/amber
Cost:     seconds; no torch. Descriptions need NLTK and its data (NLTK_DATA=DIR).
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.evals import amber, amber_generative, amber_run
from llava_ohd.evals.given_answers import out_beside, told
from llava_ohd.home import data_folder
from llava_ohd.results import print_metrics, write_results


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=Path, required=True, help="what the model said")
    parser.add_argument("--data", type=Path, help="AMBER's data folder (default: amber/ of $LLAVA_OHD_DATA)")
    parser.add_argument("--similarity", choices=sorted(amber_generative.SIMILARITIES), default="exact")
    parser.add_argument("--out", type=Path, help="default: RESPONSES_scored/ beside the file")
    given = parser.parse_args()
    with exit_on_error():
        data = given.data or data_folder("AMBER's data; give another folder with --data") / "amber"
        items = amber.read_items(data)
        queries = amber.read_queries(data)
        responses = amber.read_responses(given.responses, items, queries)
        scored = amber_run.evaluate(responses, items, data, given.similarity, queries=queries)
        out = given.out or out_beside(given.responses)
        write_results(
            out / "results.json",
            scored.metrics,
            evaluation="amber",
            rule=amber.RULE,
            data_set="amber",
            n=len(responses),
            complete=scored.complete,
            settings={"similarity": given.similarity, "answered": scored.parts},
            details={
                "answers": told([given.responses]),
                "notes": scored.notes,
                "formulas": scored.counted.write(out / "counts.jsonl"),
            },
        )
        print(f"AMBER, {given.responses}, words compared: {given.similarity}")
        print("\n".join(scored.lines()))
        print_metrics(scored.metrics)
        for note in scored.notes:
            print(f"  {note}")
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
