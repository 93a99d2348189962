"""What a training spends: seconds, and the GPU's energy where NVIDIA's management library has it.

The counter is that of the whole board, so that other programs on the same GPU count too. It moves
in steps of some ten milliseconds: only what takes seconds can be told by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from kdpipe.engine import parallel
from kdpipe.engine.device import processor

_MILLI = 1e-3


def energy_counter(device: torch.device) -> Callable[[], float]:
    """Return what reads the energy in J that a GPU has used since its driver was loaded.

    It gives NaN on a CPU, without the package ``pynvml`` or the library, and for a GPU that does
    not count (older than Volta, or a part of one).
    """
    return _nvml_counter(device) if device.type == "cuda" else _unknown


def hardware() -> dict[str, str | None]:
    """Return the names of the ``gpu`` that is used, None where there is none, and the ``cpu``."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cpu": processor()}


class Spent:
    """Seconds and joules of one epoch, over all interruptions.

    The joules are NaN where any part was not measured, as when a training goes on on a machine
    whose GPU does not count.
    """

    def __init__(self, device: torch.device):
        counters = [energy_counter(each) for each in parallel.devices(device)]
        self._read: Callable[[], float] = lambda: sum(read() for read in counters)
        self._seconds = self._joules = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._since, self._counter = time.monotonic(), self._read()

    def add(self) -> None:
        """Add what was spent since `begin` or the last `add`."""
        since, counter = self._since, self._counter
        self.begin()
        self._seconds += self._since - since
        self._joules += self._counter - counter

    def take_share(self, common: Spent, parties: int) -> None:
        """Add an equal share of what `common` has counted for all parties together."""
        self._seconds += common._seconds / parties
        self._joules += common._joules / parties

    def take(self) -> dict[str, float]:
        """Return ``seconds`` and, where known, ``energy_j`` up to now, and begin at zero."""
        self.add()
        spent = {"seconds": round(self._seconds, 3)}
        if not math.isnan(self._joules):
            spent["energy_j"] = round(self._joules, 3)
        self._seconds = self._joules = 0.0
        return spent

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"seconds": self._seconds, "joules": self._joules}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self._seconds, self._joules = state["seconds"], state["joules"]


def total(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Sum ``seconds`` and ``energy_j`` over epochs; None for energy that one of them lacks."""
    known = bool(rows) and all("energy_j" in row for row in rows)
    return {
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "energy_j": round(sum(row["energy_j"] for row in rows), 1) if known else None,
    }


def _unknown() -> float:
    return math.nan


def _nvml_counter(device: torch.device) -> Callable[[], float]:
    try:
        import pynvml
    except ImportError:
        return _unknown
    # Torch numbers what CUDA_VISIBLE_DEVICES leaves, in another order than NVML: only the UUID is
    # the same for both.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return _unknown

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLI
        except pynvml.NVMLError:
            return math.nan

    return read
