"""Whether the trackers that `--report_to` names are there, before a model is loaded."""

from llava_ohd.errors import MissingDependency

__all__ = ["check_trackers"]


def check_trackers(names: str | list[str]) -> None:
    """Looks whether trackers are installed; `none` and `all` always are.

    Raises:
        MissingDependency: one is not; the message names those that are.
    """
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for name in [names] if isinstance(names, str) else names:
        if name not in ("none", "all", *installed):
            raise MissingDependency(
                f"--report_to {name}: no such tracker is installed; here are none, {', '.join(['all', *installed])}. "
                "Install it with pip, or give --report_to none"
            )
