"""How commands describe themselves."""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter

__all__ = ["HelpFormatter", "helps"]


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description and adds the defaults."""


def helps(text: str) -> dict[str, str]:
    """Returns the metadata of a dataclass field that `HfArgumentParser` shows as its help."""
    return {"help": text}
