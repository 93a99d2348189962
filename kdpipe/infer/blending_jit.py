"""The compiled loop of `kdpipe.infer.blending`: one pass over memory, no lock, no threads."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def add_weighted(
    sums: np.ndarray, start: tuple[int, int, int], scores: np.ndarray, weights: np.ndarray
) -> None:
    """Add ``scores * weights`` to a box of `sums`, each product rounded first.

    All arrays are C-contiguous, which lets the compiler use wide instructions.

    Args:
        sums: (K, X, Y, Z) float32.
        start: first voxel of the box.
        scores: (K, A, B, C) float32.
        weights: (A, B, C) float32.
    """
    channels, planes, rows, length = scores.shape
    for channel in range(channels):
        for plane in range(planes):
            for row in range(rows):
                line = sums[channel, start[0] + plane, start[1] + row]
                into = line[start[2] : start[2] + length]
                given, weight = scores[channel, plane, row], weights[plane, row]
                for i in range(length):
                    into[i] += given[i] * weight[i]
