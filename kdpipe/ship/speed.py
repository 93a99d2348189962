"""What a window costs in a form, beside torch in the same minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.ship.reading import MODEL, read_network

REPEATS = 7
_WARM_UP = 2
"""Calls in which libraries load, memory is taken, and TorchScript is optimised."""


def latencies(
    folder: Path, names: dict[str, str], window: np.ndarray, repeats: int = REPEATS
) -> dict[str, dict[str, Any]]:
    """Return the time that each form takes for one window, on one thread of the CPU.

    Torch and the form take turns, so that what else the machine does slows both.

    Args:
        folder: with ``model.pt``.
        names: form -> its file in the folder.
        window: (C, *patch) float32.
        repeats: of each; the median counts.

    Returns:
        form -> ``latency_ms``, ``torch_latency_ms`` (medians), ``latencies_ms`` and
        ``torch_latencies_ms``.
    """
    found = {}
    with one_thread(), torch.inference_mode():
        image = torch.from_numpy(window[None])
        cpu = torch.device("cpu")
        plain = read_network(folder / MODEL, "torch", cpu).network
        for form, name in names.items():
            other = read_network(folder / name, "auto", cpu).network
            times = _in_turns(partial(plain, image), partial(other, image), repeats)
            found[form] = {
                "latency_ms": round(statistics.median(times[1]), 3),
                "torch_latency_ms": round(statistics.median(times[0]), 3),
                "latencies_ms": [round(value, 3) for value in times[1]],
                "torch_latencies_ms": [round(value, 3) for value in times[0]],
            }
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, and what takes its number of threads from it, have one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each call of both, which come alternately."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM_UP + repeats):
        for call, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            if turn >= _WARM_UP:
                taken.append(1000 * (time.perf_counter() - start))
    return times
