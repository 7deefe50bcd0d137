"""Encoders that were made known under a name: `encoders.json` in `home()`.

{NAME: {"path", "digest": of the vision tower, "files": {NAME: SHA-256 of every other file that a loader reads},
        "model": LLaVA model folder trained on it, or null}}

Older rows have no "files"; of those only the digest is compared.
"""

from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError, EncoderFormatError, EncoderNotFound, ModelNotFound
from llava_ohd.files import locked, read_json, write_json
from llava_ohd.home import home
from llava_ohd.tower.record import compare_files, file_sums

__all__ = ["COMMANDS", "model_for", "register", "registered", "registered_folder"]

COMMANDS = ("check", "diff", "import", "list", "path", "register")
"""Of `python -m llava_ohd.tower`; no encoder can have such a name."""


def registered() -> dict[str, dict[str, Any]]:
    """Returns the rows of encoders.json: `{NAME: {"path", "digest", "model"}}`, empty where nothing is registered.

    Raises:
        DataFormatError: the file is damaged.
    """
    file = _file()
    if not file.is_file():
        return {}
    again = "move it away and register your encoders again (`python -m llava_ohd.tower register NAME PATH`)"
    try:
        rows = read_json(file)
    except DataFormatError as error:
        raise DataFormatError(f"damaged register of encoders: {error}; {again}") from None
    if not isinstance(rows, dict) or not all(
        isinstance(r, dict) and {"path", "digest"} <= r.keys() for r in rows.values()
    ):
        raise DataFormatError(f"{file} is not a register of encoders; {again}")
    return rows


def register(name: str, path: str | Path, model: str | Path | None = None) -> None:
    """Makes an encoder known under a name, after checking it; an earlier row of that name is replaced.

    Args:
        name: Any word but a command of `python -m llava_ohd.tower`.
        path: The encoder folder.
        model: LLaVA model folder trained on it. Left out, a model registered earlier stays if the tower is the same.

    Raises:
        EncoderFormatError: the encoder does not pass `check`, or the name cannot be used.
        EncoderNotFound: there is no such folder.
        ModelNotFound: there is no such model folder.
    """
    from llava_ohd.tower.encoder_dir import check  # here and below: it needs torch, which the list does not

    if not name or name != Path(name).name or name.startswith(("-", ".")) or name in COMMANDS:
        raise EncoderFormatError(f"{name!r} cannot be the name of an encoder; take a plain word such as 'ours'")
    if model is not None and not Path(model).is_dir():
        raise ModelNotFound(f"{model} is not a folder; give the model folder that scripts/finetune_llava.py wrote")
    sums = file_sums(Path(path))
    encoder = check(path)
    with locked(_file()):
        rows = registered()
        old = rows.get(name, {})
        kept = old.get("model") if old.get("digest") == encoder.digest else None
        row: dict[str, Any] = {"path": str(encoder.path), "digest": encoder.digest, "files": sums}
        rows[name] = row | {"model": str(Path(model).resolve()) if model is not None else kept}
        write_json(_file(), rows)


def model_for(name: str) -> Path:
    """Returns the LLaVA model folder that was registered for an encoder.

    Args:
        name: Registered name, or the path of a registered encoder.

    Raises:
        ModelNotFound: none is registered, or its folder is gone.
    """
    rows = registered()
    path = str(Path(name).expanduser().resolve())
    row = rows.get(name) or next((row for row in rows.values() if row["path"] == path), {})
    model = row.get("model")
    if not model:
        raise ModelNotFound(
            f"no LLaVA model is registered for encoder {name!r}; train one with `make quickstart` or with "
            f"scripts/finetune_llava.py --vision_tower {name}, or give its folder"
        )
    if not Path(model).is_dir():
        raise ModelNotFound(f"the LLaVA model of encoder {name!r} was {model}, which is gone; train it again")
    return Path(model)


def registered_folder(name: str, row: dict[str, Any]) -> Path:
    """Returns the folder of a row, after comparing it with what was registered.

    Raises:
        EncoderNotFound: the folder is gone.
        EncoderFormatError: it holds another vision tower, or a file beside it was altered.
    """
    from llava_ohd.tower.weights import read_weights, tower_digest, weights_file

    folder, again = Path(row["path"]), f"`python -m llava_ohd.tower register {name} PATH`"
    if not folder.is_dir():
        raise EncoderNotFound(
            f"encoder {name!r} was registered at {folder}, which is gone; bring it back, train it again, or {again}"
        )
    digest = tower_digest(read_weights(weights_file(folder)))
    if digest != row["digest"]:
        raise EncoderFormatError(
            f"encoder {name!r} was registered with digest {row['digest'][:12]}, but {folder} now holds {digest[:12]}; "
            f"restore it, or accept the new one by {again}"
        )
    if row.get("files"):
        compare_files(folder, file_sums(folder), row["files"], f"the register ({again} accepts what is there now)")
    return folder


def _file() -> Path:
    return home() / "encoders.json"
