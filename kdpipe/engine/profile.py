"""What one sliding window costs: parameters, multiply-accumulates, time and memory."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.engine.device import keep_freed_memory, processor, return_freed_memory
from kdpipe.engine.energy import energy_counter
from kdpipe.nets.base import check_patch, network_of
from kdpipe.nets.cost import macs, parameters
from kdpipe.provenance import environment

_ENERGY_SECONDS = 2.0
"""Counters of energy move about ten times a second."""


def profile(run: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a network on one window of the study's patch, batch size 1, in float32.

    Args:
        run: `network` (name, params, in_channels, out_channels), `patch`, `threads` of the CPU,
            and `repeats` forward passes, of which the median counts.

    Returns:
        JSON-serialisable: ``parameters``; ``macs``; ``patch``; ``cpu`` and, where there is a GPU,
        ``cuda`` (else None), each with ``latency_ms`` (median), ``latencies_ms`` and ``peak_mb``,
        the memory that a forward pass takes beside the loaded network, ``cuda`` also with
        ``energy_j`` of a pass, None where the GPU does not count; and the environment.

    Raises:
        ConfigError: the network cannot be built, or the patch does not fit it.
    """
    spec, patch = run["network"], tuple(run["patch"])
    check_patch(spec["name"], spec["params"], patch)
    network = network_of(run).eval()
    shape = (1, spec["in_channels"], *patch)
    torch.set_num_threads(run["threads"])
    facts = {"parameters": parameters(network), "macs": macs(network, shape), "patch": list(patch)}
    with torch.inference_mode():
        on_cpu = _on_cpu(network, torch.zeros(shape), run["repeats"])
        on_gpu = None
        if torch.cuda.is_available():
            on_gpu = _on_gpu(network.cuda(), torch.zeros(shape, device="cuda"), run["repeats"])
    on_cpu |= {"threads": run["threads"], "processor": processor()}
    return {**facts, "cpu": on_cpu, "cuda": on_gpu, "environment": environment()}


def _on_cpu(network: nn.Module, image: Tensor, repeats: int) -> dict[str, Any]:
    network(image)  # libraries load once
    peak = _peak_resident_mb(lambda: network(image))
    keep_freed_memory()  # as a prediction runs
    network(image)
    return _timed(lambda: network(image), repeats) | {"peak_mb": peak}


def _on_gpu(network: nn.Module, image: Tensor, repeats: int) -> dict[str, Any]:
    def forward() -> None:
        network(image)
        torch.cuda.synchronize()

    forward()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return _timed(forward, repeats) | {
        "peak_mb": round(peak, 1),
        "device": torch.cuda.get_device_name(),
        "energy_j": _energy(forward, energy_counter(torch.device("cuda", 0))),
    }


def _energy(forward: Callable[[], Any], read: Callable[[], float]) -> float | None:
    """Return the joules of one pass, measured over `_ENERGY_SECONDS`; None where none are counted.

    The counter is of the whole GPU, what it uses at rest included.
    """
    if math.isnan(read()):
        return None
    start, before, passes = time.perf_counter(), read(), 0
    while not passes or time.perf_counter() - start < _ENERGY_SECONDS:
        forward()
        passes += 1
    spent = (read() - before) / passes
    return None if math.isnan(spent) else float(f"{spent:.4g}")


def _timed(forward: Callable[[], Any], repeats: int) -> dict[str, Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward()
        times.append(1000 * (time.perf_counter() - start))
    return {
        "latency_ms": round(statistics.median(times), 3),
        "latencies_ms": [round(value, 3) for value in times],
    }


def _peak_resident_mb(forward: Callable[[], Any]) -> float | None:
    """Return how much the resident memory grows at most while `forward` runs, MB.

    None where the system cannot tell (no Linux).
    """
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status_kb("VmRSS")
        forward()
        return round((_status_kb("VmHWM") - before) / 1024, 1)
    except OSError:
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return round(grown / 1024, 1) if grown else None


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
