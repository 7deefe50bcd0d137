"""Builds OHD-Caps: for each image a caption that fits and 27 that name an object too many, one too few, or a wrong one.

Inputs:  COCO files instances_*.json and captions_*.json, or JSON Lines {"image", "caption", "objects"} (--rows).
Outputs: JSON Lines, one row per image (format: llava_ohd/ohd_caps/readers.py); on stdout the counts and what scorers
         reach that never see the image. Judge an encoder by what it has beyond these.
Command: python scripts/build_ohd_caps.py --instances runs/world/annotations/instances_train.json \
             --captions runs/world/annotations/captions_train.json --out runs/world/ohd_caps/train.jsonl
Cost:    about 400 images a second and process on the world; offline, no GPU.

Leave out the images of every test set: --exclude takes lists of file names, and files of
POPE, OHD-Caps and COCO.
Source:  arXiv 2410.03176 section 3; absent objects are chosen as POPE does.
"""

import argparse
from collections import Counter
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.ohd_caps.build import BuildConfig, build_rows
from llava_ohd.ohd_caps.coco import read_coco
from llava_ohd.ohd_caps.controls import accuracies
from llava_ohd.ohd_caps.readers import write_rows
from llava_ohd.ohd_caps.sources import read_captioned_objects, read_exclusions, read_vocabulary

CONTROLLED = 500  # rows on which the image-free scorers are measured


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--instances", type=Path, metavar="JSON", help="COCO instances file; needs --captions")
    source.add_argument("--rows", type=Path, metavar="JSONL", help="rows of image, caption, objects")
    parser.add_argument("--captions", type=Path, metavar="JSON", help="COCO captions file of the same images")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="where the rows go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, metavar="N", help="rows at most (default: all images)")
    parser.add_argument("--caption", choices=("most", "first", "random"), default="most", help="which of an image's")
    parser.add_argument("--altered", type=float, default=0.5, help="share of removals turned into alterations")
    parser.add_argument("--vocabulary", type=Path, metavar="TXT", help="more object names to find in captions")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], metavar="FILE", help="images to leave out")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    if (arguments.instances is None) != (arguments.captions is None):
        parser.error("--instances and --captions belong together")
    return arguments


def main() -> None:
    """Runs the command."""
    given = parse()
    with exit_on_error():
        images = read_captioned_objects(given.rows) if given.rows else read_coco(given.instances, given.captions)
        config = BuildConfig(given.seed, given.limit, given.caption, given.altered, given.workers)
        excluded = set().union(*(read_exclusions(path) for path in given.exclude))
        vocabulary = read_vocabulary(given.vocabulary) if given.vocabulary else ()
        rows = build_rows(images, config, vocabulary=vocabulary, excluded=excluded)
        write_rows(given.out, rows)
        strategies = Counter(negative.strategy for row in rows for negative in row.negatives)
        counts = ", ".join(f"{count} {name}" for name, count in strategies.items())
        print(f"{len(rows)} rows of {len(images)} images; negative captions: {counts}")
        reached = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracies(rows[:CONTROLLED]).items())
        print(f"without looking at the image, on the first {min(len(rows), CONTROLLED)} rows: {reached}")
        print(f"rows: {given.out}")


if __name__ == "__main__":
    main()
