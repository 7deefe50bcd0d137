"""Where trained encoders and models are looked for.

`$LLAVA_OHD_HOME` if set; else `runs/` of the checkout that the package is imported from, so that two checkouts never
mix their encoders; else (installed from a wheel) `~/.cache/llava_ohd`.
"""

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """Returns the folder of the registry of encoders and models (it may not exist yet)."""
    if os.environ.get("LLAVA_OHD_HOME"):
        return Path(os.environ["LLAVA_OHD_HOME"]).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout / "runs"
    return Path.home() / ".cache" / "llava_ohd"
