"""One page that says why an encoder is better, and where it is not: `report --diagnostics`.

Inputs:  the results of eval/multi_object.py, eval/dense.py, eval/pope.py, eval/chair.py for two encoders, in the home
         folder or below --ours and --stock; what is missing is said on the page, with the command that makes it.
Outputs: OUT/diagnostics.html (one file, nothing is loaded from elsewhere), diagnostics.json (its numbers),
         by_object.svg, localisation.svg, scores.svg.
Command: python -m llava_ohd.report --diagnostics --out runs/diagnostics
Cost:    seconds; the drift of 64 images and the attention of 4 are computed here.
"""

import argparse
from pathlib import Path

from llava_ohd.command_line import HelpFormatter, require
from llava_ohd.errors import exit_on_error
from llava_ohd.home import home
from llava_ohd.training.launch import quiet


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python -m llava_ohd.report", description=__doc__, formatter_class=HelpFormatter)
    world = home() / "world"
    parser.add_argument("--diagnostics", action="store_true", required=True, help="the page that is made")
    parser.add_argument("--encoders", nargs=2, default=["openai", "ours"], metavar=("STOCK", "OURS"), help="names")
    parser.add_argument("--stock", type=Path, help="folder of the stock encoder's results (default: eval/STOCK)")
    parser.add_argument("--ours", type=Path, help="folder of the other's (default: eval/OURS)")
    parser.add_argument("--data", type=Path, default=world, help="labels and annotations, as for scripts/compare.py")
    parser.add_argument("--images", type=Path, default=world / "images", help="folder of the images of eval/dense.py")
    parser.add_argument("--scenes", type=Path, default=home() / "multi_object", help="set of eval/multi_object.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    given = parser.parse_args(arguments)
    quiet()
    with exit_on_error():
        from llava_ohd.report.diagnostics import Sources, diagnose, write

        stock, ours = given.encoders
        require(stock != ours, "encoders", f"{stock} {ours}", "two names, stock first", "give another one")
        folders = (given.stock or home() / "eval" / stock, given.ours or home() / "eval" / ours)
        sources = Sources((stock, ours), folders, given.data, given.images, given.scenes)
        record = diagnose(sources)
        write(record, given.out)
        print(*(f"missing: {line}" for line in record["missing"]), f"page: {given.out / 'diagnostics.html'}", sep="\n")


if __name__ == "__main__":
    main()
