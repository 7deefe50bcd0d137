"""`python -m llava_ohd.tower`: checks an encoder and prints its path, for any program that takes a path.

The whole plug-in for the original LLaVA: --vision_tower "$(python -m llava_ohd.tower ours)"
"""

import argparse
import contextlib
import json
import sys
from typing import Any

from llava_ohd.errors import LlavaOhdError, exit_on_error
from llava_ohd.tower import names, registry

_DESCRIPTION = """\
Encoders by name: find, check, list, register, import, compare.

The whole plug-in for the original LLaVA, whose code stays as it is:
  --vision_tower "$(python -m llava_ohd.tower ours)"
"""
_EPILOG = """\
examples:
  python -m llava_ohd.tower ours               check the encoder `ours` and print its path
  python -m llava_ohd.tower check PATH         say what a folder holds, or what is wrong with it
  python -m llava_ohd.tower list               all names and where they lead
  python -m llava_ohd.tower register mine PATH make an encoder known as `mine`
  python -m llava_ohd.tower import SRC DST     make an encoder folder of a CLIP from elsewhere
  python -m llava_ohd.tower diff openai ours --images photos/
                                               what changes for LLaVA; must its projector be trained again?

exit codes:
  0  done; NAME printed the path of a sound encoder, and nothing else, on stdout
  2  refused; one line on stderr says what is wrong and what mends it, and stdout stays empty
"""
_IMPORT_USAGE = (
    "python -m llava_ohd.tower import SRC DST [--name N] [--files-from DIR] [--base DIR] [--revision R] "
    "[--quick-gelu true|false] [--overwrite]"
)
_SOURCES = (
    "folder of a CLIPModel, CLIPVisionModel, LLaVA or LoRA, file of OpenAI or open_clip (.pt, .bin, .safetensors), or "
    "Hub repository org/name"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_ohd.tower",
        usage="python -m llava_ohd.tower {NAME_OR_PATH | COMMAND ...}",
        description=_DESCRIPTION,
        epilog=_EPILOG,
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
    _add_import(commands)
    _add_diff(commands)
    return parser


def _add_import(commands: Any) -> None:
    row = commands.add_parser("import", help="make an encoder folder of a CLIP from elsewhere", usage=_IMPORT_USAGE)
    row.add_argument("source", metavar="SRC", help=_SOURCES)
    row.add_argument("destination", metavar="DST", help="encoder folder to write")
    row.add_argument("--name", help="its name in results; left out, that of the folder")
    row.add_argument("--files-from", metavar="DIR", help="gives tokenizer and preprocessor where SRC has none")
    row.add_argument("--base", metavar="DIR", help="encoder that gives the text tower, or the weights under a LoRA")
    row.add_argument("--revision", metavar="R", help="commit, tag or branch of a Hub repository")
    row.add_argument("--overwrite", action="store_true", help="replace another encoder that is at DST")
    row.add_argument(
        "--quick-gelu",
        choices=("true", "false"),
        help="activation of an OpenAI or open_clip file that does not say it; left out, --base decides by its features",
    )


def _import(given: argparse.Namespace) -> Any:
    from llava_ohd.tower.importing import import_encoder

    return import_encoder(
        given.source,
        given.destination,
        name=given.name,
        files_from=given.files_from,
        revision=given.revision,
        base=given.base,
        quick_gelu=None if given.quick_gelu is None else given.quick_gelu == "true",
        overwrite=given.overwrite,
    )


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
    with contextlib.redirect_stdout(sys.stderr):  # as in `main`
        from llava_ohd.tower.comparing import compare
        from llava_ohd.tower.images import find_images

    images = find_images(given.images, given.limit) if given.images else None
    try:
        difference = compare(given.a, given.b, images, given.layer)
    except ValueError as error:
        raise LlavaOhdError(f"--layer cannot be taken: {error}") from None
    print(json.dumps(difference.record(), indent=2) if given.json else "\n".join(difference.lines()))


def _list() -> None:
    rows = registry.registered()
    for name, place in names.choices().items():
        model = rows.get(name, {}).get("model")
        print(
            f"{name:14} {place}" + (f"  (LLaVA: {model})" if model else "") + ("" if name in rows else "  (built in)")
        )


def main(arguments: list[str]) -> None:
    """Runs one command; `NAME` alone is short for `path NAME`."""
    if arguments and arguments[0] not in (*registry.COMMANDS, "-h", "--help"):
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
            registry.register(given.encoder, given.path, given.model)
        # Where deepspeed is installed, transformers imports it, and it logs to stdout: stdout is for the path alone.
        with contextlib.redirect_stdout(sys.stderr):
            if given.command == "import":
                encoder = _import(given)
            else:
                folder = names.resolve(given.encoder)
                from llava_ohd.tower.encoder_dir import check  # here, so that a wrong name is answered at once

                encoder = check(folder)
        if given.command == "path":
            print(encoder.path)
        else:
            name = given.encoder if given.command == "register" else encoder.name
            print(f"{name}: {encoder.path}\n  digest {encoder.digest}")
            print(
                f"  image {encoder.image_size} px, patch {encoder.patch_size} px, patch token of {encoder.hidden_size}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
