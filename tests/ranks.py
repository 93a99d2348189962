"""Trainings that `test_parallel` runs in one process and in several; started by ``torchrun``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from blobs import make_job, make_run

from kdpipe import discover
from kdpipe.engine import parallel
from kdpipe.engine.train import Job, train

#: what is special about each: (method, its parameters, network, recipe)
CELLS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    # EMA, and gradient clipping that bites
    "teacher": ("none", {}, "unet_tiny", {"ema_decay": 0.9, "gradient_clip": 0.05}),
    # a loss over the whole batch, no mean of those of its samples
    "whole_batch": ("none", {}, "unet_tiny", {"segmentation_loss": "focal_dice"}),
    # BatchNorm in the student, which would see half a batch
    "batch_norm": ("none", {}, "unet", {}),
    # parameters that no step uses
    "unused": ("none", {}, "lcovnet", {}),
    # adapters
    "fitnet": ("fitnet", {}, "unet_tiny", {}),
    # a memory bank, relations between samples, random draws, an adapter with BatchNorm
    "cirkd": ("cirkd", {"pixel_queue": 64, "keys": 32}, "unet_tiny", {}),
    # an adversary with an optimiser of its own; draws
    "skd": ("skd", {"weight_holistic": 0.1}, "unet_tiny", {}),
    # parts that are trained before
    "ft": ("ft", {"prefit_steps": 4}, "unet_tiny", {}),
    # the student's past as the teacher
    "ps_kd": ("ps_kd", {}, "unet_tiny", {}),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet_tiny": {"channels": [4, 8, 16], "strides": [2, 2]},
    "unet": {"width": 4, "depth": 3},
    "lcovnet": {"channels": [4, 8, 16]},
}


def job_of(name: str, store: Path, folder: Path, teacher: Path | None) -> Job:
    """A training of `CELLS` in fp32, of four crops a step."""
    method, params, network, recipe = CELLS[name]
    # not AdamW: where a gradient is zero but for rounding (a bias before a normalisation) it makes
    # full steps of the rounding
    plain = {
        "epochs": 2,
        "batch_size": 4,
        "precision": "fp32",
        "optimizer": "sgd",
        "learning_rate": 0.01,
    }
    run = make_run(method, params, **plain, **recipe)
    checked = discover.check_params("nets", network, NETWORKS[network])
    run["network"] |= {"name": network, "params": checked}
    job = make_job(store, folder / name, run, teacher)
    job.split["val"] = ["case_3", "case_4", "case_5"]  # an odd number, to be shared
    return job


def main(store: str, folder: str, teacher: str, *names: str) -> None:
    """Train the cells `names` below `folder`."""
    torch.set_num_threads(1)
    with parallel.processes():
        for name in names:
            train(job_of(name, Path(store), Path(folder), Path(teacher)))


if __name__ == "__main__":
    main(*sys.argv[1:])
