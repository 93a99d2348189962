"""Stop on a signal in good order; a training between two steps and with a checkpoint.

What follows differs. By itself the process exits with 75. In a SLURM job it waits to be killed: a
job that exits in the grace time before it is preempted counts as failed, one that is killed is
requeued and goes on from the checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Literal, TypeVar, get_args

from kdpipe.errors import Interrupted

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")
OnStop = Literal["auto", "wait", "exit"]
ON_STOP: tuple[str, ...] = get_args(OnStop)
LONGEST_WAIT = 3600.0
_ECHO = 5.0  # srun and Snakemake may pass on a signal that this process was sent too


class _StopNow(BaseException):
    """No Exception: code that takes every error for a damaged file must not see it."""


class StopRequest:
    """Context in which SIGTERM, SIGUSR1 and SIGINT do not end the process just anywhere.

    Until `defer` is called there is nothing to save, and a signal ends the block at once, as an
    error does: what it has half written is removed. From then on it is noted in `received` for the
    training to see.

    Args:
        on_stop: "exit", "wait", or "auto": wait in a SLURM job, else exit. Ctrl-C never waits.
        longest: seconds to wait; another signal ends it before.
        before: what the block has not reached where it does not defer, for people.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(
        self, on_stop: str = "exit", longest: float = LONGEST_WAIT, before: str = "the first step"
    ):
        self.received: str | None = None
        self.before = before
        self.longest = longest
        # the only variable that says so and that the executor of Snakemake passes on to jobs
        self._waits = on_stop == "wait" or (on_stop == "auto" and "SLURM_JOB_ID" in os.environ)
        self._process = os.getpid()
        self._deferred = False
        self._since = 0.0
        self._again = False
        self._previous: list[dict[signal.Signals, object]] = []

    def __enter__(self) -> StopRequest:
        self._previous.append({number: signal.getsignal(number) for number in self.SIGNALS})
        for number in self.SIGNALS:
            signal.signal(number, self._note)
        return self

    def defer(self) -> None:
        """Only note signals from now on."""
        self._deferred = True

    def wait(self) -> None:
        """Return at once, or, in a SLURM job, when a second signal or the longest wait ends it."""
        if not self._waits or self._again:
            return
        log.info("%s: waiting to be ended, %.0f min at most", self.received, self.longest / 60)
        end = time.monotonic() + self.longest
        while not self._again and time.monotonic() < end:
            time.sleep(0.1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked from this one
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        now = time.monotonic()
        if self.received is not None:
            self._again |= number == signal.SIGINT or now - self._since > _ECHO
            return
        self.received, self._since = signal.Signals(number).name, now
        self._again = number == signal.SIGINT
        if not self._deferred:
            raise _StopNow

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stopped = self.received is not None and not self._deferred and error is not None
        if stopped:  # also if a process that the signal has ended too was missed first
            self.wait()
        for number, handler in self._previous.pop().items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if stopped:
            raise Interrupted(
                f"stopped by {self.received} before {self.before}; run the same command again"
            ) from None


def told_when_asked(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield what `loader` gives; a process of it that dies is told where a batch is asked for.

    PyTorch tells it in a signal handler, wherever the training is at that moment: also while the
    training cleans up after the same death. The loader looks after its processes too, every 5 s.

    Raises:
        RuntimeError: a process of the loader has died; begins with "DataLoader worker".
    """
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)  # the first one of a process sets the handler
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    yield from batches


def outlive_signals(worker: int) -> None:
    """Let a process that loads data leave signals to the training, except the training's own.

    SLURM sends SIGTERM to every process of a job. A loader that died of it would take the training
    along before it has saved. The training itself ends hung loaders by SIGTERM; who sent one is
    told only to those who wait for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_the_parent, daemon=True).start()


def _obey_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
