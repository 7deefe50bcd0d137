"""Progress of a job of several stages: one line over all of them in a terminal, a line per stage elsewhere."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["StageBar"]

_TRUSTED = 20.0  # expected seconds of finished work from which on the pace of this machine is believed


class StageBar:
    """Shows how far a job is, and how long it will take.

    Args:
        labels: What each stage does.
        expected: Seconds that each stage takes on the machine that was measured.
        complete: Which stages are finished already.
    """

    def __init__(self, labels: Sequence[str], expected: Sequence[float], complete: Sequence[bool]) -> None:
        self._labels, self._expected, self._count = labels, expected, len(labels)
        self._todo = sum(seconds for seconds, done in zip(expected, complete, strict=True) if not done)
        self._behind = 0.0  # expected seconds of the stages finished in this run
        self._began = time.monotonic()
        self._current = 0
        self._terminal = sys.stderr.isatty()
        if any(complete):
            print(
                f"{sum(complete)} of {self._count} stages are complete from an earlier run and are skipped", flush=True
            )

    def start(self, number: int) -> None:
        """Says that a stage begins, counted from 0."""
        self._current = number
        if not self._terminal:
            print(f"{self._place()} {self._labels[number]} (about {_clock(self._left(0.0))} left)", flush=True)

    def finish(self, seconds: float) -> None:
        """Says that the stage ended, and how long it took."""
        self._behind += self._expected[self._current]
        line = f"{self._place()} {self._labels[self._current]}: {seconds:.0f} s"
        print(f"\r{line}\x1b[K" if self._terminal else f"    done in {seconds:.0f} s", flush=True)

    def show(self, progress: Path) -> None:
        """Draws the bar.

        Args:
            progress: The file that `llava_ohd.progress` writes inside the stage; it may not be there.
        """
        if not self._terminal:
            return
        share, label = 0.0, ""
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(progress.read_text())
            share, label = state["done"] / max(state["total"], 1), state["label"]
        inside = share * self._expected[self._current]
        whole = min((self._behind + inside) / max(self._todo, 1e-9), 1.0)
        text = f"{self._place()} {'█' * round(20 * whole):░<20} {whole:4.0%}  {_clock(self._left(inside))} left"
        inner = f" ({label} {share:.0%})" if label else ""
        print(f"\r{text}  {self._labels[self._current]}{inner}\x1b[K", end="", file=sys.stderr, flush=True)

    def _place(self) -> str:
        return f"[{self._current + 1}/{self._count}]"

    def _left(self, inside: float) -> float:
        gone = self._behind + inside
        pace = (time.monotonic() - self._began) / gone if gone > _TRUSTED else 1.0
        return max(self._todo - gone, 0.0) * pace


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
