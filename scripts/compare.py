"""Compares two encoders (or the models on them) on everything that both were measured on.

Inputs   per side one folder per seed, as the evaluations write them:
         pope/ and chair/ with answers.jsonl and results.json, ohd_caps/ and
         zero_shot/ with predictions.jsonl and results.json; amber/ and mme/ with counts.jsonl; hallusionbench/ and
         dense/ (values alone); what is missing is said. Labels come from the data folder.
Outputs  OUT/results.json (every number), OUT/table.md and .tex, OUT/breakdown.md (by object and by what is beside it),
         OUT/report.html (one file, nothing is loaded from elsewhere).
Refuses  other rules, sets, settings, images; incomplete runs; metrics that do not follow from the answers beside them.

    python scripts/compare.py --ours runs/eval/ours --stock runs/eval/openai --out runs/compare

Cost: seconds, no GPU.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.files import read_json, write_json, write_text
from llava_ohd.home import home

_FEWEST = 100


def parse() -> argparse.Namespace:
    """Parses the command line."""
    world = home() / "world"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, nargs="+", required=True, metavar="DIR", help="one folder per seed")
    parser.add_argument(
        "--stock", type=Path, nargs="+", required=True, metavar="DIR", help="as many, in the same order"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--data",
        type=Path,
        default=world,
        help=f"folder with pope/, annotations/, synonyms.txt, images/, or coco (default: {world})",
    )
    parser.add_argument("--split", default="test", help="annotations that CHAIR is scored with")
    parser.add_argument("--questions", help="POPE's questions: coco, ..., or a folder (default: DATA/pope)")
    parser.add_argument("--images", type=Path, help="folder of the images for the gallery (default: DATA/images)")
    parser.add_argument("--curves", nargs="*", default=[], metavar="PANEL/LABEL=FILE", help="curve.json of trainings")
    parser.add_argument("--commands", type=Path, help="text file with the commands that made it, shown in the report")
    parser.add_argument("--resamples", type=int, default=5_000, help="of the bootstrap")
    return parser.parse_args()


def main() -> None:
    """Compares, prints the table, writes the files."""
    options = parse()
    with exit_on_error():
        from llava_ohd.report import benchmarks, breakdown, comparison, gallery, latex, page, table

        if same := {a.resolve() for a in options.ours} & {b.resolve() for b in options.stock}:
            raise DataFormatError(f"{min(same)} is given on both sides; give the folder of another encoder as --stock")
        if options.resamples < _FEWEST:
            raise DataFormatError(f"--resamples {options.resamples}: give at least {_FEWEST}, 5,000 for a paper")
        before = options.out / "results.json"
        if before.is_file() and read_json(before).get("kind") != "comparison":
            raise DataFormatError(f"{before} is the result of an evaluation and would be lost; give another --out")
        truth = benchmarks.read_truth(options.data, options.split, options.questions)
        pairs = comparison.read_pairs(options.ours, options.stock, truth)
        record = comparison.compare(pairs, resamples=options.resamples)
        record["flips"] = gallery.count_flips(pairs, truth)
        record["breakdown"] = breakdown.breakdown(pairs, truth)
        images = options.images or options.data / "images"
        if not images.is_dir():
            record["missing"].append(f"gallery: there is no folder {images}; --images names that of the photos")
        extras = page.Extras(
            gallery=gallery.cards(pairs, truth, images),
            curves=page.read_curves(options.curves),
            commands=page.read_commands(options.commands) if options.commands else (),
        )
        write_json(options.out / "results.json", record)
        write_text(options.out / "table.md", table.markdown(record))
        write_text(options.out / "breakdown.md", breakdown.markdown(record["breakdown"]))
        write_text(options.out / "table.tex", latex.latex(record))
        page.write_page(options.out / "report.html", record, extras)
        print(table.plain(record), end="\n\n")
        print(*[f"missing: {text}" for text in record["missing"]], table.headline(record), sep="\n")
        print(f"\nresults: {options.out / 'results.json'}\nreport:  {options.out / 'report.html'}")


if __name__ == "__main__":
    main()
