"""The memory allocator is told to keep what is freed, unless somebody objects."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdpipe.engine import device


class Library:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.calls.append((what, value))
        return 1


@pytest.mark.parametrize(("setting", "calls"), [(None, 3), ("1", 3), ("0", 0)])
def test_it_can_be_switched_off(
    setting: str | None, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setattr(device, "_glibc", lambda: library)
    monkeypatch.delenv("KDPIPE_MALLOC", raising=False)
    if setting is not None:
        monkeypatch.setenv("KDPIPE_MALLOC", setting)
    device.keep_freed_memory()
    assert len(library.calls) == calls


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.platform, "libc_ver", lambda: ("", ""))
    device.keep_freed_memory()
    device.return_freed_memory()


def test_values_do_not_change() -> None:
    """A training step, with and without, to the bit."""
    program = """
import torch
from kdpipe.engine.device import keep_freed_memory
keep_freed_memory()
from torch import nn
torch.manual_seed(0)
network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), nn.Conv3d(8, 3, 3))
optimiser = torch.optim.AdamW(network.parameters())
for _ in range(2):
    network(torch.randn(1, 1, 32, 32, 32)).square().mean().backward()
    optimiser.step()
print([p.detach().double().sum().item().hex() for p in network.parameters()])
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"KDPIPE_MALLOC": setting, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for setting in ("0", "1")
    }
    assert len(said) == 1
