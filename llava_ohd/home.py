"""Where trained encoders and models are looked for.

`$LLAVA_OHD_HOME` if set; else `runs/` of the checkout that the package is imported from, so that two checkouts never
mix their encoders; else (installed from a wheel) `~/.cache/llava_ohd`. Benchmark files: `$LLAVA_OHD_DATA`.
"""

import os
from pathlib import Path

from llava_ohd.errors import LlavaOhdError

__all__ = ["data_folder", "evaluation_folder", "from_home", "home"]


def home() -> Path:
    """Returns the folder of the registry of encoders and models (it may not exist yet)."""
    if os.environ.get("LLAVA_OHD_HOME"):
        return Path(os.environ["LLAVA_OHD_HOME"]).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout / "runs"
    return Path.home() / ".cache" / "llava_ohd"


def data_folder(wanted: str) -> Path:
    """Returns the folder of benchmark files, `$LLAVA_OHD_DATA`.

    Args:
        wanted: What is looked for in it, for the message.

    Raises:
        LlavaOhdError: the variable is not set, or names no folder.
    """
    given = os.environ.get("LLAVA_OHD_DATA")
    if not given:
        raise LlavaOhdError(
            f"{wanted} is looked for in $LLAVA_OHD_DATA, which is not set; set it to a folder that "
            "`python scripts/download_benchmarks.py` has filled"
        )
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise LlavaOhdError(f"{wanted}: $LLAVA_OHD_DATA is {given}, which is no folder; set it to an existing one")
    return folder


def from_home(path: str | Path) -> str:
    """Returns a path as results state it: without the part that only this machine has, where it lies in `home()`."""
    place = Path(path).expanduser().resolve()
    return str(place.relative_to(home())) if place.is_relative_to(home()) else str(path)


def evaluation_folder(encoder: str, evaluation: str, own_data: bool) -> Path:
    """Returns where the results of an evaluation go when `--out` does not say it.

    Args:
        encoder: What was given as `--encoder`.
        evaluation: Such as `pope`.
        own_data: Whether other data than the embedded world were given.

    Raises:
        LlavaOhdError: the encoder is no plain name, or the data are others: results of several would lie in one place.
    """
    if own_data or encoder != Path(encoder).name:
        given = "other data than the embedded world" if own_data else f"the folder --encoder {encoder}"
        raise LlavaOhdError(f"results for {given} need a place of their own; give a folder as --out")
    return home() / "eval" / encoder / evaluation
