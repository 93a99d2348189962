"""What a network costs: the fields, the median, and a peak that is that of the activations."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import bundle, export, script, trained_net
from torch import nn

from kdpipe import cli
from kdpipe.engine import profile as module
from kdpipe.engine.profile import profile
from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network
from kdpipe.nets.cost import macs, parameters

TINY = {"channels": [4, 8, 16], "strides": [2, 2]}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A profile sets the threads of its process, which is the tests' here."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(
    name: str = "unet_tiny",
    params: dict[str, Any] = TINY,
    patch: tuple[int, ...] = (16, 16, 16),
    **more: Any,
) -> dict[str, Any]:
    network = {"name": name, "params": params, "in_channels": 1, "out_channels": 3}
    return {"network": network, "patch": list(patch), "threads": 1, "repeats": 5} | more


@pytest.mark.parametrize("patch", [(16, 16, 16), (32, 16)])
def test_fields(patch: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run(patch=patch, repeats=6)))
    out = tmp_path / "profile.json"
    assert cli.main(["profile", "--run", str(tmp_path / "run.json"), "--out", str(out)]) == 0
    facts = json.loads(out.read_text())
    network = build_network("unet_tiny", TINY, 1, 3, len(patch))
    assert facts["parameters"] == parameters(network)
    assert facts["macs"] == macs(network, (1, 1, *patch)) > 0
    assert facts["patch"] == list(patch)
    assert (facts["cuda"] is None) == (not torch.cuda.is_available())
    assert facts["environment"]["torch"] == torch.__version__
    cpu = facts["cpu"]
    assert cpu["threads"] == 1 and cpu["processor"]
    assert len(cpu["latencies_ms"]) == 6 and min(cpu["latencies_ms"]) > 0
    assert cpu["latency_ms"] == pytest.approx(statistics.median(cpu["latencies_ms"]), abs=2e-3)
    assert cpu["peak_mb"] >= 0


def test_latency_is_the_median_so_that_one_slow_pass_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    durations = [0.010, 0.900, 0.012, 0.011, 0.013]
    ticks = iter([tick for duration in durations for tick in (0.0, duration)])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    found = module._timed(lambda: None, len(durations))
    assert found == {"latency_ms": 12.0, "latencies_ms": [10.0, 900.0, 12.0, 11.0, 13.0]}


class Wide(nn.Module):
    """Activations of 64 channels, of which two are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv3d(1, 64, 1)
        self.head = nn.Conv3d(64, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.wide(image)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_memory_is_that_of_the_activations() -> None:
    network, peaks = Wide().eval(), []
    with torch.inference_mode():
        for side in (32, 64):
            image = torch.zeros(1, 1, side, side, side)
            network(image)
            peaks.append(module._peak_resident_mb(lambda image=image: network(image)))
    one = 64 * 64**3 * 4 / 2**20  # MB of an activation of the larger image
    assert peaks[0] is not None and peaks[1] is not None
    assert 1.5 * one < peaks[1] < 4 * one
    assert peaks[0] < peaks[1] / 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_profiled_network_of_a_larger_patch_takes_more_memory() -> None:
    params = {"channels": [32, 32, 32], "strides": [2, 2]}
    small, large = (
        profile(run(params=params, patch=(side,) * 3))["cpu"]["peak_mb"] for side in (32, 64)
    )
    assert 0 < small < large


@pytest.mark.parametrize("kind", ["exported", "torchscript", "monai_bundle"])
def test_networks_of_other_projects(kind: str, tmp_path: Path) -> None:
    write = {"exported": export, "torchscript": script}
    if kind == "monai_bundle":
        path, patch = bundle(tmp_path / "net"), (32, 32, 32)
    else:
        path, patch = write[kind](trained_net(), tmp_path / "net"), (16, 16, 16)
    facts = profile(run(kind, {"path": path}, patch))
    assert facts["parameters"] > 0 and facts["macs"] > 0 and facts["cpu"]["latency_ms"] > 0


def test_threads_are_those_of_the_study() -> None:
    assert profile(run(threads=2))["cpu"]["threads"] == torch.get_num_threads() == 2


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of"):
        profile(run(patch=(16, 16, 15)))
