"""Untrained networks of the catalogue, ready to be exported."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets.zoo import ZOO

from kdpipe.infer.description import Description
from kdpipe.infer.model import TrainedModel
from kdpipe.nets.base import build_network

_CHANNELS = ("T1", "T2")
_PREPARATION: dict[str, Any] = {
    "channels": list(_CHANNELS),
    "labels": {"raw": {"0": "background", "1": "left", "2": "right"}},
    "preset": {"intensity": {"kind": "window", "low": 0, "high": 1}},
}


def small_model(name: str, seed: int = 0) -> tuple[TrainedModel, Description]:
    """A small version of a network, with statistics of norms that are not 0 and 1."""
    sample = ZOO[name]
    patch = sample.small_patch
    torch.manual_seed(seed)
    network = build_network(name, sample.small, len(_CHANNELS), 3, len(patch))
    with torch.no_grad():
        network.train()(torch.randn(2, len(_CHANNELS), *patch) + 1)
    network.eval().requires_grad_(False)
    spec = {"name": name, "params": sample.small, "in_channels": 2, "out_channels": 3}
    targets = {"n_labels": 3, "regions": None}
    run = {"network": spec, "patch": list(patch), "targets": targets}
    return TrainedModel(network, run, _PREPARATION), Description.of_run(run, _PREPARATION)


def noise(description: Description, count: int, seed: int = 0) -> np.ndarray:
    """Windows ``(count, C, *patch)`` float32."""
    shape = (count, *description.window[1:])
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(archive: bytes) -> bytes:
    """Return an archive of torch's with one bit of its largest tensor turned."""
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        names = [name for name in whole.namelist() if not Path(name).suffix]
        inside = max(map(whole.read, names), key=len)  # stored as it is
    content = bytearray(archive)
    content[archive.index(inside) + len(inside) // 2] ^= 4
    return bytes(content)
