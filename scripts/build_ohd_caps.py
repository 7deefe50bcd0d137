"""Builds OHD-Caps: for each image a caption that fits and 27 that name an object too many, one too few, or a wrong one.

Inputs:  COCO files instances_*.json and captions_*.json; or --source: Flickr30k, NoCaps or JSON Lines
         {"image", "caption", "objects"} (the form is recognised); --objects: a detector's {"image", "objects"}.
Outputs: JSON Lines, one row per image (format: llava_ohd/ohd_caps/readers.py); beside it *.provenance.json (seed,
         sources, exclusions, counts, rewriter, versions); on stdout the counts and what scorers reach that never see
         the image. Judge an encoder by what it has beyond these.
Command: python scripts/build_ohd_caps.py --instances runs/world/annotations/instances_train.json \
             --captions runs/world/annotations/captions_train.json --out runs/world/ohd_caps/train.jsonl
Cost:    about 500 rows a second and process; offline, no GPU. With --rewriter (an OpenAI-compatible server) 27 requests
         a row.

Leave out the images of every test set: --exclude takes files of POPE, OHD-Caps, CHAIR and COCO, and lists of names.
Killed or out of budget, the same command goes on where it stopped; see docs/ohd_caps.md.
Source:  arXiv 2410.03176 section 3; absent objects are chosen as POPE does.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.ohd_caps.build import BuildConfig, build_file, exclusions, provenance_path
from llava_ohd.ohd_caps.by_endpoint import EndpointWriter
from llava_ohd.ohd_caps.by_rule import RuleWriter
from llava_ohd.ohd_caps.controls import accuracies
from llava_ohd.ohd_caps.endpoint import EndpointConfig
from llava_ohd.ohd_caps.planning import make_plans
from llava_ohd.ohd_caps.sources import read_images, read_vocabulary
from llava_ohd.ohd_caps.vocabulary import vocabulary_for

CONTROLLED = 500  # rows on which the image-free scorers are measured


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--instances", type=Path, metavar="JSON", help="COCO instances file; needs --captions")
    source.add_argument("--source", "--rows", type=Path, metavar="FILE", help="Flickr30k, NoCaps, JSON Lines, ...")
    parser.add_argument("--captions", type=Path, metavar="JSON", help="COCO captions file of the same images")
    parser.add_argument("--objects", type=Path, metavar="JSONL", help="a detector's objects, in place of the source's")
    parser.add_argument("--part", metavar="NAME", help="split of Karpathy's file, or domain of NoCaps (out-domain)")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="where the rows go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, metavar="N", help="rows at most (default: all images)")
    parser.add_argument("--caption", choices=("most", "first", "random"), default="most", help="which of an image's")
    parser.add_argument("--altered", type=float, default=0.5, help="share (0 to 1) of removals turned into alterations")
    parser.add_argument("--vocabulary", type=Path, metavar="TXT", help="more object names to find in captions")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], metavar="FILE", help="images to leave out")
    parser.add_argument("--workers", type=int, default=1, help="processes (rewriting by rule)")
    chat = parser.add_argument_group("a language model in place of rules; its key: $LLAVA_OHD_API_KEY")
    chat.add_argument("--rewriter", metavar="URL", help="OpenAI-compatible server, up to and with /v1")
    chat.add_argument("--model", metavar="NAME", help="as the server names it")
    sampling = {"temperature": 1.0, "max_tokens": 200}
    chat.add_argument("--sampling", type=json.loads, default=sampling, metavar="JSON", help="more fields of a request")
    chat.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    chat.add_argument("--timeout", type=float, default=120.0, help="seconds until a request counts as failed")
    chat.add_argument("--retries", type=int, default=6, help="how often the server may fail at one request")
    chat.add_argument("--max_requests", type=int, metavar="N", help="stop this run after so many")
    chat.add_argument("--max_tokens", type=int, metavar="N", help="stop this run after so many, prompts included")
    arguments = parser.parse_args()
    if (arguments.instances is None) != (arguments.captions is None):
        parser.error("--instances and --captions belong together")
    if (arguments.rewriter is None) != (arguments.model is None):
        parser.error("--rewriter and --model belong together")
    if not isinstance(arguments.sampling, dict):
        parser.error('--sampling takes a JSON object, such as {"temperature": 0.7}')
    if min(arguments.concurrency, arguments.workers) < 1 or arguments.retries < 0:
        parser.error("--concurrency and --workers are at least 1, --retries at least 0")
    return arguments


def endpoint(given: argparse.Namespace) -> EndpointConfig:
    """Returns the endpoint of the command line."""
    limits = {"max_requests": given.max_requests, "max_tokens": given.max_tokens}
    manner = {"concurrency": given.concurrency, "timeout": given.timeout, "retries": given.retries}
    return EndpointConfig(given.rewriter, given.model, given.sampling, **manner, **limits)


def main() -> None:
    """Runs the command."""
    given = parse()
    with exit_on_error():
        config = BuildConfig(given.seed, given.limit, given.caption, given.altered, given.workers)
        images = read_images(given.instances, given.captions, given.source, given.part, given.objects)
        left_out = exclusions(given.exclude, images)
        for item in left_out:
            print(f"left out: {item.images} of {len(images)} images, because {item.path} names them")
        names = read_vocabulary(given.vocabulary) if given.vocabulary else vocabulary_for(images)
        excluded = frozenset().union(*(item.keys for item in left_out))
        planned = make_plans(images, config, vocabulary=names, excluded=excluded)
        by_endpoint = EndpointWriter(planned, endpoint(given), given.out) if given.rewriter else None
        files = [path for path in (given.instances, given.captions, given.source, given.objects) if path]
        written = build_file(given.out, planned, by_endpoint or RuleWriter(planned), files, left_out)
        rows = [item.row for item in written]
        strategies = Counter(negative.strategy for row in rows for negative in row.negatives)
        counts = ", ".join(f"{count} {name}" for name, count in strategies.items())
        print(f"{len(rows)} rows of {len(images)} images; negative captions: {counts}")
        if by_endpoint:
            print(f"{by_endpoint.account}; {sum(item.fallbacks for item in written)} negatives written by rule instead")
        reached = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracies(rows[:CONTROLLED]).items())
        print(f"without looking at the image, on the first {min(len(rows), CONTROLLED)} rows: {reached}")
        print(f"rows: {given.out}\norigin: {provenance_path(given.out)}")


if __name__ == "__main__":
    main()
