"""Progress of long work: a bar in a terminal, and a small file for a program that watches from outside.

When `$LLAVA_OHD_PROGRESS` names a file, `{"label", "done", "total"}` is written there at most five times a second;
`scripts/quickstart.py` reads it to draw one bar over all stages. Without it, a line with the time left is drawn on
stderr if that is a terminal.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

__all__ = ["Progress", "track"]

T = TypeVar("T")


class Progress:
    """Counts work done.

    Args:
        label: What is being done, in the present tense.
        total: Number of units of work.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self._start = time.monotonic()
        self._shown = 0.0
        self._resumed_at: int | None = None
        file = os.environ.get("LLAVA_OHD_PROGRESS")
        self._file = Path(file) if file else None

    def update(self, done: int) -> None:
        """Says that `done` units of `total` are finished (an absolute number, so that resumed work shows right)."""
        if self._resumed_at is None:
            self._resumed_at = done
        self.done = done
        now = time.monotonic()
        if now - self._shown < 0.2 and done < self.total:
            return
        self._shown = now
        if self._file:
            temporary = self._file.with_suffix(".part")
            with contextlib.suppress(OSError):  # a full disk is for the work itself to report
                temporary.write_text(json.dumps({"label": self.label, "done": done, "total": self.total}))
                temporary.replace(self._file)
        elif sys.stderr.isatty():
            print(f"\r{self._line(now)}\x1b[K", end="\n" if done >= self.total else "", file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        share = self.done / max(self.total, 1)
        fresh = self.done - (self._resumed_at or 0)
        left = (now - self._start) / fresh * (self.total - self.done) if fresh else 0.0
        bar = "█" * round(24 * share)
        return f"{self.label} {bar:░<24} {self.done}/{self.total}, {left // 60:.0f}:{left % 60:02.0f} left"


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and reports progress after each.

    Args:
        items: Anything iterable; `total` is needed where it has no length.
        label: What is being done.
        total: Number of items.
    """
    progress = Progress(label, len(items) if total is None else total)  # type: ignore[arg-type]
    for done, item in enumerate(items):
        progress.update(done)
        yield item
    progress.update(progress.total)
