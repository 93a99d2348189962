"""A compiled loop that adds normal draws of numpy's `RandomState` to an image.

Only `kdpipe.data.crops.noise` calls it, and has a way without.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_PAIRS = 1024  # as many fit the nearest cache


@numba.njit(cache=True, nogil=True)
def add_normal(
    image: np.ndarray, uniform: np.ndarray, sd: float, out: np.ndarray, first: int
) -> int:
    """Write image + draw to `out` from voxel `first` on, as far as the uniform draws reach.

    This is the polar method with the order of operations of `RandomState.normal`: of a pair the
    second is given out first. A draw is rounded to single precision before it is added.

    Args:
        image: (N,) float32.
        uniform: an even number of draws of `RandomState.random_sample`.
        sd: standard deviation.
        out: (N,) float32.
        first: voxels that are done.

    Returns:
        The number of voxels that are done.
    """
    one, other, factor = np.empty(_PAIRS), np.empty(_PAIRS), np.empty(_PAIRS)
    for start in range(0, uniform.size, 2 * _PAIRS):
        count = 0
        for k in range(start, min(start + 2 * _PAIRS, uniform.size), 2):
            a, b = 2.0 * uniform[k] - 1.0, 2.0 * uniform[k + 1] - 1.0
            square = a * a + b * b
            one[count], other[count], factor[count] = a, b, square
            count += 1 if 0.0 < square < 1.0 else 0  # without a branch
        for k in range(count):
            factor[k] = math.sqrt(-2.0 * math.log(factor[k]) / factor[k])
        for k in range(min(count, (image.size - first + 1) // 2)):
            out[first] = image[first] + np.float32(sd * (factor[k] * other[k]))
            if first + 1 < image.size:
                out[first + 1] = image[first + 1] + np.float32(sd * (factor[k] * one[k]))
            first += 2
        if first >= image.size:
            break
    return first
