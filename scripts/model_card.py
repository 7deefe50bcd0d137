"""Writes the model card of an encoder, or writes it anew after evaluations: README.md in its folder.

Inputs:  an encoder (name or folder); its ohd.json and curve.json; results.json files anywhere below --results.
Outputs: README.md in the encoder folder. Only results of this encoder (by digest) are taken; what has none is
         "not measured".
Command: python scripts/model_card.py --encoder ours --results runs/eval
Cost:    a second; reads the weights once, to check them.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.training.launch import quiet


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ours", help="name or folder (default: ours)")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="folders to look for results.json in")
    given = parser.parse_args()
    quiet()
    with exit_on_error():
        from llava_ohd import tower
        from llava_ohd.clip.model_card import write_card

        print(f"card: {write_card(tower.resolve(given.encoder), given.results)}")


if __name__ == "__main__":
    main()
