"""Makes chair/coco2014_gt_objects.json, which `eval/chair.py --set coco` scores with, out of COCO's annotations.

Inputs:  --annotations: {instances,captions}_{train2014,val2014}.json (annotations_trainval2014.zip of cocodataset.org,
         CC BY 4.0); --synonyms: CHAIR's (`python scripts/download_benchmarks.py chair` brings it).
Outputs: --out (default: chair/coco2014_gt_objects.json under $LLAVA_OHD_DATA): which of 80 objects are in each image.
Command: python scripts/prepare_chair.py --annotations coco/annotations
Cost:    a minute or two of one core, 4 GB of memory.

To score with one split alone nothing needs to be prepared: `eval/chair.py --set COCO --split val2014`, COCO being the
folder that holds annotations/.
"""

import argparse
import json
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.files import write_text
from llava_ohd.home import data_folder


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="COCO 2014's json files")
    parser.add_argument("--synonyms", type=Path, help="default: chair/synonyms.txt under $LLAVA_OHD_DATA")
    parser.add_argument("--out", type=Path, help="default: chair/coco2014_gt_objects.json under $LLAVA_OHD_DATA")
    given = parser.parse_args()
    with exit_on_error():
        from llava_ohd.evals.chair_prepare import prepared_objects

        synonyms = given.synonyms or data_folder("CHAIR's synonyms") / "chair/synonyms.txt"
        out = given.out or data_folder("the place of CHAIR's objects") / "chair/coco2014_gt_objects.json"
        record = prepared_objects(given.annotations, synonyms)
        write_text(out, json.dumps(record) + "\n")
        print(f"objects of {len(record['images']):,} images: {out}")


if __name__ == "__main__":
    main()
