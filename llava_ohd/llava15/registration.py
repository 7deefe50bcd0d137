"""Which LLaVA model `--encoder NAME` answers with: a trained one, which takes no other's place unasked."""

from pathlib import Path

from llava_ohd import tower
from llava_ohd.files import read_json
from llava_ohd.home import from_home
from llava_ohd.llava15.model import without_zero3

__all__ = ["register_model"]


def register_model(folder: Path, given: str, encoder: tower.Encoder, choice: str = "new") -> str:
    """Makes a model known as that of its encoder, under the name that the encoder was given by.

    Args:
        folder: The finished model, absolute. A tower that was trained lies inside, and takes the folder's name.
        given: `--vision_tower`.
        encoder: What that led to.
        choice: `--register`: `new` where the encoder has no model yet (one whose folder is gone counts as none),
            `replace` also in place of another, `no`.

    Returns:
        The line to print: what was registered, or why nothing was and how to evaluate the model nevertheless.
    """
    known = tower.registered()
    name = given if given in known or not Path(given).is_dir() else encoder.name
    path, digest = encoder.path, encoder.digest
    inside = folder / "encoder" / "ohd.json"
    if inside.is_file():
        name, path, digest = folder.name, inside.parent, read_json(inside)["digest"]
    by_hand = f"evaluate it with --model {folder}"
    if choice == "no":
        return f"not registered, as asked; {by_hand}"
    row = known.get(name, {})
    if row.get("digest", digest) != digest:
        return f"not registered: {name!r} is another encoder; evaluate with --encoder {path} --model {folder}"
    before = str(row.get("model") or "")
    other = bool(before) and Path(before).is_dir() and Path(before).resolve() != folder
    if other and choice == "new":
        return (
            f"not registered: the model of encoder {name!r} is {from_home(before)}; {by_hand} and an --out of its own, "
            "or repeat this command with --register replace"
        )
    with without_zero3():
        tower.register(name, path, model=folder)
    instead = f", in place of {from_home(before)}" if other else ""
    return f"registered as the model of encoder {name!r}{instead}"
