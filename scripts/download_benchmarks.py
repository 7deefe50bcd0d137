"""Brings the question and annotation files of POPE, RePOPE, AMBER, CHAIR, HallusionBench and SugarCrepe.

Inputs   WHAT: folders of the data folder (pope, pope/gqa_seem, repope, amber, chair ...; default: all, 28 MB), from
         their repositories at pinned commits; or --from DIR, a folder that has them in the same layout.
Outputs  the files under --out (default: $LLAVA_OHD_DATA), verified by the sums in llava_ohd/evals/benchmark_files.json.
Licences are those of the origin and are shown; "none stated" means that the repository has no licence file: for
research, not for passing on. Images are not brought: those of COCO, GQA, Flickr30k, OpenImages and AMBER have terms of
their own.

    python scripts/download_benchmarks.py pope repope --out DIR

Cost: a minute; what is there with the right sum is not fetched again.
"""

import argparse
import os
from pathlib import Path

from llava_ohd.downloads import ORIGIN, bring, choose, read_manifest
from llava_ohd.errors import exit_on_error
from llava_ohd.progress import track


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="folders of the data folder (default: all)")
    home = os.environ.get("LLAVA_OHD_DATA")
    parser.add_argument("--out", type=Path, default=home, required=not home, help="default: $LLAVA_OHD_DATA")
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR", help="a folder that has the files")
    parser.add_argument("--mirror", default=ORIGIN, metavar="URL", help=f"instead of {ORIGIN}")
    parser.add_argument("--list", action="store_true", help="only say what would be brought")
    given = parser.parse_args()
    with exit_on_error():
        files = choose(read_manifest(), given.what)
        for repository, commit, licence in dict.fromkeys((f.repository, f.commit, f.licence) for f in files):
            own = [file for file in files if (file.repository, file.commit) == (repository, commit)]
            size = sum(file.bytes for file in own) / 1e6
            print(f"{repository}@{commit[:8]}: {len(own)} files, {size:.1f} MB; licence: {licence}")
        if given.list:
            print(*(f"  {file.path}  {file.url(given.mirror)}" for file in files), sep="\n")
            return
        done = [bring(f, given.out, source=given.source, base=given.mirror) for f in track(files, "Bringing files")]
        counts = ", ".join(f"{done.count(kind)} {kind}" for kind in dict.fromkeys(done))
        print(f"{given.out}: {len(files)} files verified ({counts})")


if __name__ == "__main__":
    main()
