"""Which epoch it is, for an order of the rows that depends on it."""

from typing import Any, Protocol

from transformers import TrainerCallback

__all__ = ["Epochs"]


class _Order(Protocol):
    def set_epoch(self, epoch: int) -> None: ...


class Epochs(TrainerCallback):
    """Tells the order of the rows which epoch it is.

    Trainer and accelerate do so too, but not in an epoch that a resumed run enters in its middle.

    Args:
        order: The sampler of the rows.
    """

    def __init__(self, order: _Order) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._order.set_epoch(int(state.epoch or 0))
