"""`python -m llava_ohd.tower`: checks an encoder and prints its path, for any program that takes a path.

The whole plug-in for the original LLaVA: --vision_tower "$(python -m llava_ohd.tower ours)"
"""

import argparse
import json
import sys

from llava_ohd.errors import exit_on_error
from llava_ohd.tower import names

_EXAMPLES = """\
python -m llava_ohd.tower ours               check the encoder `ours` and print its path
python -m llava_ohd.tower check PATH         say what a folder holds, or what is wrong with it
python -m llava_ohd.tower list               all names and where they lead
python -m llava_ohd.tower register mine PATH make an encoder known as `mine`
python -m llava_ohd.tower diff openai ours --images photos/
                                             what changes for LLaVA; must its projector be trained again?
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_ohd.tower",
        usage="python -m llava_ohd.tower {NAME | check NAME | list | register NAME PATH [--model DIR] | diff A B}",
        description="Encoders by name: find, check, list, register, compare.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="all names and where they lead")
    for command, text in (
        ("path", "check an encoder and print its path (the word `path` can be left out)"),
        ("check", "say what a folder holds, or what is wrong with it"),
    ):
        commands.add_parser(command, help=text).add_argument("encoder", metavar="NAME_OR_PATH")
    row = commands.add_parser("register", help="make an encoder known under a name")
    row.add_argument("encoder", metavar="NAME")
    row.add_argument("path", metavar="PATH", help="encoder folder")
    row.add_argument("--model", metavar="DIR", help="LLaVA model folder trained on it")
    _add_diff(commands)
    return parser


def _add_diff(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    diff = commands.add_parser("diff", help="compare two encoders: must the projector be trained again?")
    diff.add_argument("a", metavar="A", help="name or folder of the encoder that the projector was trained on")
    diff.add_argument("b", metavar="B", help="name or folder of the one that is to take its place")
    diff.add_argument(
        "--images", nargs="+", metavar="PLACE", help="folders or files; without them no drift is measured"
    )
    diff.add_argument(
        "--layer", type=int, default=-2, help="layer whose patch tokens LLaVA reads (default %(default)s)"
    )
    diff.add_argument("--limit", type=int, default=64, help="number of images, spread evenly (default %(default)s)")
    diff.add_argument("--json", action="store_true", help="print JSON")


def _diff(given: argparse.Namespace) -> None:
    for name in (given.a, given.b):
        names.resolve(name)  # here, so that a wrong name is answered at once
    from llava_ohd.tower.comparing import compare
    from llava_ohd.tower.images import find_images

    images = find_images(given.images, given.limit) if given.images else None
    difference = compare(given.a, given.b, images, given.layer)
    print(json.dumps(difference.record(), indent=2) if given.json else "\n".join(difference.lines()))


def _list() -> None:
    rows = names.registered()
    for name, place in names.choices().items():
        model = rows.get(name, {}).get("model")
        print(
            f"{name:14} {place}" + (f"  (LLaVA: {model})" if model else "") + ("" if name in rows else "  (built in)")
        )


def main(arguments: list[str]) -> None:
    """Runs one command; `NAME` alone is short for `path NAME`."""
    if arguments and arguments[0] not in (*names.COMMANDS, "-h", "--help"):
        arguments = ["path", *arguments]
    given = _parser().parse_args(arguments)
    with exit_on_error():
        if given.command == "list":
            _list()
            return
        if given.command == "diff":
            _diff(given)
            return
        if given.command == "register":
            names.register(given.encoder, given.path, given.model)
        folder = names.resolve(given.encoder)
        from llava_ohd.tower.encoder_dir import check  # here, so that a wrong name is answered at once

        encoder = check(folder)
        if given.command == "path":
            print(encoder.path)
        else:
            print(f"{encoder.name}: {encoder.path}\n  digest {encoder.digest}")
            print(
                f"  image {encoder.image_size} px, patch {encoder.patch_size} px, patch token of {encoder.hidden_size}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
