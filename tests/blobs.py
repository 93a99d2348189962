"""A prepared store of tiny cases: bright blobs on noise, learnable in a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.data.store import sample_foreground, write_case
from kdpipe.engine.train import Job

CASES = [f"case_{index}" for index in range(6)]


def _write(store: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(18, 24, 3))
    grid = np.indices(shape)
    label = np.zeros(shape, np.uint8)
    for structure in (1, 2):
        centre = rng.integers(7, 11, 3) + (0, 4 * structure - 5, 0)
        distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        label[distance < 16] = structure
    image = rng.normal(0, 0.3, shape) + label
    write_case(
        store / name,
        image[None].astype(np.float32),
        label,
        {"pad_value": 0.0, "digest": name},
        sample_foreground(label, 3),
    )


def write_store(store: Path) -> Path:
    """Write all cases into `store` and return it."""
    for seed, name in enumerate(CASES):
        _write(store, name, seed)
    return store


def make_run(
    method: str = "none", params: dict[str, Any] | None = None, **training: Any
) -> dict[str, Any]:
    """A cell's run.json with a tiny student and few steps."""
    from kdpipe import discover
    from kdpipe.settings import Training

    recipe = {"epochs": 3, "steps_per_epoch": 3, "batch_size": 2, "validate_every": 2, **training}
    return {
        "cell": {"dataset": "blobs", "split": "default", "fold": 0, "seed": 5},
        "network": {
            "name": "unet_tiny",
            "params": discover.check_params(
                "nets", "unet_tiny", {"channels": [4, 8, 16], "strides": [2, 2]}
            ),
            "in_channels": 1,
            "out_channels": 3,
        },
        "targets": {"n_labels": 3, "regions": None},
        "method": {
            "name": method,
            "params": discover.check_params("methods", method, params or {}),
        },
        "patch": [16, 16, 16],
        "training": Training.model_validate(recipe).model_dump(mode="json"),
    }


def make_job(store: Path, folder: Path, run: dict[str, Any], teacher: Path | None = None) -> Job:
    split = {"train": CASES[:4], "val": CASES[4:5], "test": CASES[5:], "sha256": "0"}
    return Job(
        run=run,
        preparation={"dataset": "blobs"},
        split=split,
        store=store,
        state=folder / "checkpoint",
        model=folder / "model.pt",
        teacher=teacher,
    )
