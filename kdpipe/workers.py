"""Processes that work for this one and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from kdpipe.errors import WorkerLost


@contextmanager
def worker_pool(
    count: int, start: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes; if the block is left by an error or a signal, they end at once.

    They are spawned, not forked: the caller may hold threads (torch) that a fork would deadlock on.

    Args:
        count: of processes.
        start: called with `arguments` in each of them, before all else.
        arguments: of `start`.

    Raises:
        WorkerLost: one of them was killed.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _start, (start, *arguments))
    try:
        yield pool
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerLost(
                "a worker process was killed, most likely because the machine or the job ran out "
                "of memory: ask for more, or take fewer workers, and run the same command again; "
                "what is finished is kept"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[..., None] | None, *arguments: Any) -> None:
    # both come to all processes of a terminal or a job; the one that waits ends these
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """Wait for the parent's end; by itself a pool's process would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
