"""Counts what is wrong in files of OHD-Caps, and writes copies without it.

Inputs:  --data, files or a folder of them: the authors' *_annotations.json, *_out_label.json, dev_data.json,
         all_train.zip, or ours. --encoder counts the tokens of its text tower; without it, captions of more than 60
         words and marks count as long.
Outputs: a table on stdout; OUT/audit.json with every count, and OUT/FOLDER/FILE.jsonl without repeated negatives,
         negatives equal to the caption, chatter, objects missing or named already, long negatives, newlines. Of dev
         and train files also the images of the test files go.
Command: python scripts/audit_ohd_caps.py --data ../shared/data/ohd_caps --out runs/ohd_caps_clean
Cost:    seconds, no GPU.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="PATH", help="files, or a folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the cleaned copies go (default: none are made)")
    parser.add_argument("--encoder", help="name or folder of the encoder whose tokens are counted")
    given = parser.parse_args()
    with exit_on_error():
        from llava_ohd.ohd_caps.audit_report import length_rule, read_files, table, write_clean

        too_long, rule = length_rule(given.encoder)
        files = read_files(given.data)
        print(table(files, too_long, rule))
        if given.out:
            for path, rows, negatives in write_clean(files, given.out, too_long):
                print(f"{path}: {rows} rows, {negatives} negatives")
            print(f"audit: {given.out / 'audit.json'}")


if __name__ == "__main__":
    main()
