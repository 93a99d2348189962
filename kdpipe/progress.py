"""Progress of long work: a bar on a terminal, about a line a minute in a log; and the log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

_LOG_EVERY_SECONDS = 60.0


def start_log(level: int = logging.INFO) -> None:
    """Let this process tell what it does; a process that it starts must be told so itself."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it tells everybody its threads


class ProgressReport:
    """Count units of work, as a context manager.

    Args:
        label: what is being done.
        total: units of work.
        done: units that are done already (a resumed training).
        shown: False: only count, in a process beside the one that tells.
    """

    def __init__(self, label: str, total: int, done: int = 0, shown: bool = True):
        self.label, self.total, self.done = label, total, done
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        self._bar: Any = None
        self._shown = shown

    def __enter__(self) -> ProgressReport:
        if self._shown and sys.stderr.isatty():
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
        if not self._shown:
            return
        now = time.monotonic()
        if now - self._last_line >= _LOG_EVERY_SECONDS or self.done == self.total:
            self._last_line = now
            self._print_line(now, note)

    def _print_line(self, now: float, note: str) -> None:
        line = f"{self.label}: {self.done}/{self.total}"
        if (new := self.done - self._first) > 0:  # else nothing tells how long one takes
            left = (self.total - self.done) * (now - self._start) / new
            line += f", {left / 60:.1f} min left"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
