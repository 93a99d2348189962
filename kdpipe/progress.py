"""Progress of long work: a bar on a terminal, about a line a minute in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_LOG_EVERY_SECONDS = 60.0


class ProgressReport:
    """Count units of work, as a context manager.

    Args:
        label: what is being done.
        total: units of work.
        done: units that are done already (a resumed training).
    """

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done = label, total, done
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        self._bar: Any = None

    def __enter__(self) -> ProgressReport:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress, TextColumn

            columns = [*Progress.get_default_columns(), TextColumn("{task.fields[note]}")]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._bar.add_task(self.label, total=self.total, completed=self.done, note="")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` is shown beside the bar (a loss, a case)."""
        self.done += count
        if self._bar is not None:
            self._bar.update(0, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= _LOG_EVERY_SECONDS or self.done == self.total:
            self._last_line = now
            self._print_line(now, note)

    def _print_line(self, now: float, note: str) -> None:
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        line = f"{self.label}: {self.done}/{self.total}, {left / 60:.1f} min left"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
