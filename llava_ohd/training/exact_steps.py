"""HF's Trainer without the step too many that it makes of a run whose last checkpoint was its end."""

from typing import Any

from transformers import Trainer

__all__ = ["ExactSteps"]


class ExactSteps(Trainer):
    """Trains `max_steps` steps, also when a run is resumed that had made all of them in the middle of an epoch."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing where all steps are made; HF would make one more of an unfinished epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
