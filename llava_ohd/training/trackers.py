"""Whether the trackers that `--report_to` names are there, before a model is loaded."""

from llava_ohd.command_line import require
from llava_ohd.errors import MissingDependency

__all__ = ["check_trackers"]


def check_trackers(names: str | list[str]) -> None:
    """Looks whether trackers are installed; `none` and `all` always are.

    Raises:
        OptionError: transformers knows no such tracker; the message names those that it knows.
        MissingDependency: one is not installed; the message names those that are.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    always, installed = ("none", "all"), get_available_reporting_integrations()
    known = [*always, *INTEGRATION_TO_CALLBACK]
    for name in [names] if isinstance(names, str) else names:
        require(name in known, "report_to", name, f"one of {', '.join(known)}")
        if name not in (*always, *installed):
            raise MissingDependency(
                f"--report_to {name}: this tracker is not installed; here are {', '.join([*always, *installed])}. "
                "Install it with pip, or leave the flag out"
            )
