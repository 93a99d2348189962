"""Energy: which GPU is asked, what is summed over interruptions, and what is left unknown."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from kdpipe.engine.energy import Spent, energy_counter, hardware, total
from kdpipe.engine.profile import _energy

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """The library of a machine of three GPUs; each reading is 1.5 J more than the last."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.asked: list[str] = []
        self.supported = self.started = True
        self.millijoules = 7000

    def nvmlInit(self) -> None:
        if not self.started:
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-aa", "GPU-bb", "GPU-cc"):
            raise NVMLError("not found")
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.supported:
            raise NVMLError("not supported")
        self.millijoules += 1500
        return self.millijoules


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The library, where torch sees the second GPU alone (CUDA_VISIBLE_DEVICES)."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    _sees(monkeypatch, "bb")
    return fake


def _sees(monkeypatch: pytest.MonkeyPatch, uuid: str) -> None:
    properties = lambda device: SimpleNamespace(uuid=uuid)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def test_the_gpu_is_the_one_that_torch_uses(nvml: FakeNvml) -> None:
    read = energy_counter(GPU)
    assert (read(), read()) == (8.5, 10.0)
    assert nvml.asked == ["GPU-bb"]


def test_energy_of_an_epoch_is_that_between_begin_and_take(nvml: FakeNvml) -> None:
    spent = Spent(GPU)
    spent.begin()
    nvml.millijoules += 2000
    spent.add()
    nvml.millijoules += 4000
    first = spent.take()
    assert first["energy_j"] == 9.0  # and two readings
    nvml.millijoules += 50_000  # a validation
    spent.begin()
    assert spent.take()["energy_j"] == 1.5


def test_going_on_adds_to_what_the_checkpoint_holds(nvml: FakeNvml) -> None:
    before = Spent(GPU)
    before.add()
    state = before.state()
    nvml.millijoules = 0  # another machine
    after = Spent(GPU)
    after.load(state)
    after.begin()
    taken = after.take()
    assert taken["energy_j"] == 3.0
    assert taken["seconds"] >= round(state["seconds"], 3)


def test_a_part_that_was_not_measured_makes_the_epoch_unknown(nvml: FakeNvml) -> None:
    before = Spent(GPU)
    before.add()
    after = Spent(torch.device("cpu"))
    after.load(before.state())
    after.begin()
    assert "energy_j" not in after.take()


def test_unknown_without_support(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    read = energy_counter(GPU)
    nvml.supported = False
    assert math.isnan(read())
    nvml.started = False
    assert math.isnan(energy_counter(GPU)())
    nvml.started = nvml.supported = True
    _sees(monkeypatch, "part-of-a-gpu")
    assert math.isnan(energy_counter(GPU)())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert math.isnan(energy_counter(GPU)())


def test_a_cpu_asks_nobody(nvml: FakeNvml) -> None:
    spent = Spent(torch.device("cpu"))
    assert spent.take().keys() == {"seconds"}
    assert nvml.asked == []


def test_total() -> None:
    rows = [{"seconds": 1.04, "energy_j": 10.0}, {"seconds": 2.0, "energy_j": 5.5}]
    assert total(rows) == {"seconds": 3.04, "energy_j": 15.5}
    assert total([*rows, {"seconds": 1.0}]) == {"seconds": 4.04, "energy_j": None}
    assert total([]) == {"seconds": 0, "energy_j": None}


def test_energy_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.engine.profile._ENERGY_SECONDS", 0.0)
    readings = iter([1.0, 1.0, 3.5])
    assert _energy(lambda: None, lambda: next(readings)) == 2.5
    assert _energy(lambda: None, lambda: math.nan) is None


def test_hardware() -> None:
    found = hardware()
    assert found["cpu"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
