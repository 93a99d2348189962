"""A compiled loop that samples an image and its label map at the points of a warped grid.

Only `kdpipe.data.crops.warp` calls it, and has a way without.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def _position(offset: float, n: int) -> float:
    """Voxel of an offset from the centre, held inside; torch's order of operations."""
    normal = np.float64(offset) * (2.0 / max(2, n))
    return min(n - 1.0, max(((normal + 1.0) * n - 1.0) / 2.0, 0.0))


@numba.njit(cache=True, nogil=True)
def _row(offsets: np.ndarray, n: int, places: np.ndarray) -> None:
    """Voxels of a row of offsets; a loop of its own, which the compiler turns into vectors."""
    for k in range(len(places)):
        places[k] = _position(offsets[k], n)


@numba.njit(cache=True, nogil=True)
def sample(
    image: np.ndarray,
    label: np.ndarray,
    grid: np.ndarray,
    new_image: np.ndarray,
    new_label: np.ndarray,
) -> None:
    """Interpolate the image linearly, take the nearest label.

    The sums run in double precision in the order of torch's `grid_sample`, for equal bits.

    Args:
        image: (C, X, Y, Z) float32, in C order, as are all of these.
        label: (X, Y, Z).
        grid: (3 or more, I, J, K), offsets from the centre in voxels.
        new_image: (C, I, J, K) float32, written.
        new_label: (I, J, K), written.
    """
    channels, nx, ny, nz = image.shape
    flat, labels, volume = image.ravel(), label.ravel(), nx * ny * nz
    places = np.empty((3, grid.shape[3]))
    for i in range(grid.shape[1]):
        for j in range(grid.shape[2]):
            _row(grid[0, i, j], nx, places[0])
            _row(grid[1, i, j], ny, places[1])
            _row(grid[2, i, j], nz, places[2])
            for k in range(grid.shape[3]):
                x, y, z = places[0, k], places[1, k], places[2, k]
                near = (int(np.rint(x)) * ny + int(np.rint(y))) * nz + int(np.rint(z))
                new_label[i, j, k] = labels[np.uint64(near)]
                x0, y0, z0 = int(x), int(y), int(z)  # never negative
                above_x, above_y, above_z = x - x0, y - y0, z - z0
                below_x, below_y, below_z = x0 + 1 - x, y0 + 1 - y, z0 + 1 - z
                # beyond the last voxel the weight is zero; unsigned indices are not wrapped
                first = np.uint64((x0 * ny + y0) * nz + z0)
                to_x = np.uint64(ny * nz if x0 + 1 < nx else 0)
                to_y = np.uint64(nz if y0 + 1 < ny else 0)
                to_z = np.uint64(1 if z0 + 1 < nz else 0)
                for c in range(channels):
                    a = first + np.uint64(c * volume)
                    b = a + to_x
                    total = flat[a] * (below_z * below_y * below_x)
                    total += flat[a + to_z] * (above_z * below_y * below_x)
                    total += flat[a + to_y] * (below_z * above_y * below_x)
                    total += flat[a + to_y + to_z] * (above_z * above_y * below_x)
                    total += flat[b] * (below_z * below_y * above_x)
                    total += flat[b + to_z] * (above_z * below_y * above_x)
                    total += flat[b + to_y] * (below_z * above_y * above_x)
                    total += flat[b + to_y + to_z] * (above_z * above_y * above_x)
                    new_image[c, i, j, k] = total
