"""Time kdpipe's distance transform against scipy's, both ways on the same masks, on the CPU.

Usage: python bench/distance_transform.py [--side 96] [--threads 2] [--rounds 5]

Prints, for each kind of mask, the medians in milliseconds a mask of the distance to the contour
(inside and outside) and how often kdpipe's fits into scipy's. Runs alternate, so that a busy
machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from kdpipe.terms.distance import contour_distance


def organs(side: int) -> Tensor:
    """Blobs like abdominal organs, tubes and thin sheets among them: ``(13, side, side, side)``."""
    rng = np.random.default_rng(0)
    grid = np.indices((side,) * 3) / side
    masks = []
    for index in range(13):
        radii = rng.uniform(0.04, 0.28, 3) * (1.0 if index % 3 else 0.6)
        centre = rng.uniform(0.2, 0.8, 3)
        bumps = ndimage.gaussian_filter(rng.normal(size=(side,) * 3), side / 16)
        bumps = 0.25 * bumps / bumps.std()
        offsets = [(axis - c) / r for axis, c, r in zip(grid, centre, radii, strict=True)]
        masks.append(sum(offset**2 for offset in offsets) < 1 + bumps)
    return torch.from_numpy(np.stack(masks))


def noise(shape: tuple[int, ...], share: float) -> Tensor:
    """What an untrained network predicts: scattered voxels."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share


def reference(masks: Tensor) -> Tensor:
    """The same by scipy, mask by mask."""
    fields = [
        ndimage.distance_transform_edt(mask) + ndimage.distance_transform_edt(~mask)
        for mask in masks.numpy()
    ]
    return torch.from_numpy(np.stack(fields)).float()


def seconds(function: Callable[[Tensor], Tensor], masks: Tensor) -> float:
    """Seconds a mask of one call."""
    start = time.perf_counter()
    function(masks)
    return (time.perf_counter() - start) / len(masks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    blobs = organs(arguments.side)
    kinds = {
        "organs": blobs,
        "specks": blobs | noise(tuple(blobs.shape), 1e-4),
        "background": ~blobs.any(0, keepdim=True),
        "noise": noise(tuple(blobs[:2].shape), 0.2),
    }
    for name, masks in kinds.items():
        torch.testing.assert_close(contour_distance(masks), reference(masks), rtol=2e-7, atol=0)
        pairs = [
            (seconds(contour_distance, masks), seconds(reference, masks))
            for _ in range(arguments.rounds)
        ]
        ours, theirs = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{name:<12} kdpipe {ours:7.1f} ms   scipy {theirs:7.1f} ms   x{theirs / ours:.1f}")


if __name__ == "__main__":
    main()
