"""How commands describe themselves."""

import math
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter

from llava_ohd.errors import OptionError

__all__ = ["HelpFormatter", "helps", "require", "require_between"]


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description and adds the defaults."""


def helps(text: str) -> dict[str, str]:
    """Returns the metadata of a dataclass field that `HfArgumentParser` shows as its help."""
    return {"help": text}


def require(holds: bool, name: str, value: object, expected: str, remedy: str = "leave it out for the default") -> None:
    """Refuses the value of an option.

    Args:
        holds: Whether the value is one that the option can have.
        name: The option, without dashes.
        value: What was given.
        expected: What is expected.
        remedy: What mends it.

    Raises:
        OptionError: it is not.
    """
    if not holds:
        raise OptionError(f"--{name} {value}: {expected} is expected; give that, or {remedy}")


def require_between(low: float, high: float, name: str, *values: float | None) -> None:
    """Refuses values of an option outside low .. high, ends included, and what is no number; None is not given.

    Raises:
        OptionError: a value lies outside; the message names the option, the value and the ends.
    """
    expected = f"a number from {low} to {high}" if math.isfinite(high) else f"a number of at least {low}"
    for value in values:
        require(value is None or (low <= value <= high and math.isfinite(value)), name, value, expected)
