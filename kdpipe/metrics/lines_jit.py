"""Compiled search for the nearest voxel of one structure, line by line; `lines` calls it.

`near` says for every voxel of a box how far along the last axis the nearest voxel of the structure
lies. A search then asks one number of each line around it. Volumes lie as `[z, x, y]`, so that
both passes run over contiguous memory, which the compiler turns into vector instructions.
"""

from __future__ import annotations

import numba
import numpy as np

from kdpipe.metrics.labelled_jit import chosen
from kdpipe.metrics.ties import TIE

_compiled = numba.njit(cache=True, nogil=True)

# Steps that stand for a line without voxels; one more still fits into 16 bits.
FAR = 2**16 - 2
# Lines that are looked at together; a plane of the box has a multiple of that.
VECTOR = 8
INFINITY = np.float64(np.inf).view(np.int64)


@_compiled
def fill_lines(near: np.ndarray, voxels: np.ndarray) -> None:
    """Write into `near` the steps along x to the nearest of `voxels`, `FAR` without any.

    Args:
        near: uint16, shape `(Z, X, Y)`.
        voxels: coordinates z, y, x in the box, shape `(3, n)`.
    """
    near[:] = FAR
    for i in range(voxels.shape[1]):
        near[voxels[0, i], voxels[2, i], voxels[1, i]] = 0
    planes, columns, rows = near.shape
    for z in range(planes):
        for x in range(1, columns):
            before, here = near[z, x - 1], near[z, x]
            for y in range(rows):
                here[y] = min(here[y], np.uint16(before[y] + 1))
        for x in range(columns - 2, -1, -1):
            after, here = near[z, x + 1], near[z, x]
            for y in range(rows):
                here[y] = min(here[y], np.uint16(after[y] + 1))


@_compiled
def _least(line: np.ndarray, first: int, across: float, step: float, along: float) -> float:
    """Least squared distance of some lines of a plane; `first`: steps to the first of them.

    The bits of positive numbers have their order: the least of integers is found by vectors.
    """
    least = INFINITY
    for i in range(line.size):
        side, steps = (first + i) * step, line[i] * along
        bits = np.float64((across + side * side) + steps * steps).view(np.int64)
        least = min(least, bits if line[i] < FAR else INFINITY)
    return np.int64(least).view(np.float64)


@_compiled
def search_lines(
    near: np.ndarray,
    points: np.ndarray,
    spacing: np.ndarray,
    exact: bool,
    found: np.ndarray,
) -> None:
    """Distance of every point to the nearest voxel that `near` was made from.

    Args:
        near: see `fill_lines`.
        points: coordinates z, y, x in the box, of which only x must lie in it; shape `(3, n)`,
            quickest where neighbours follow one another.
        spacing: of z, y and x.
        exact: whether no squared distance is rounded, so that ties do not matter.
        found: the answer, shape `(n,)`.
    """
    planes, columns, rows = near.shape
    least = np.empty(planes)
    bound = np.inf
    for i in range(points.shape[1]):
        z, y, x = points[0, i], points[1, i], points[2, i]
        best = np.inf
        least[:] = np.inf
        for away in range(max(z, planes - 1 - z) + 1):
            across = (away * spacing[0]) ** 2
            if across > bound:
                break
            # Rows that may hold something nearer than what is known.
            side = int(min(np.sqrt(bound - across) / spacing[1] + 1, rows + abs(y)))
            low = max(y - side, 0) // VECTOR * VECTOR
            high = min((y + side) // VECTOR * VECTOR + VECTOR, rows)
            for plane in (z - away, z + away):
                if 0 <= plane < planes and low < high:
                    line = near[plane, x, low:high]
                    least[plane] = _least(line, low - y, across, spacing[1], spacing[2])
                    best = min(best, least[plane])
            bound = min(bound, best * (1 + 1e-9))
        if not exact:
            best = _settled(near, (z, y, x), least, best, spacing)
        found[i] = np.sqrt(best)
        if i + 1 < points.shape[1]:
            # The next one is no farther from the same voxel than this one and the way between.
            way = 0.0
            for axis in range(3):
                way += ((points[axis, i + 1] - points[axis, i]) * spacing[axis]) ** 2
            bound = (found[i] + np.sqrt(way)) ** 2 * (1 + 1e-9)


@_compiled
def _settled(
    near: np.ndarray,
    point: tuple[int, int, int],
    least: np.ndarray,
    best: float,
    spacing: np.ndarray,
) -> float:
    """Squared distance to the one that scipy would take of equally near voxels."""
    planes, columns, rows = near.shape
    z, y, x = point
    highest = best * (1 + TIE)
    side = int(min(np.sqrt(best) / spacing[1] + 1, rows + abs(y)))
    tied = np.empty((0, 3), np.int64)
    for turn in range(2):  # count, then list
        count, differ = 0, False
        for plane in range(planes):
            if least[plane] > highest:
                continue
            across = ((plane - z) * spacing[0]) ** 2
            for row in range(max(y - side, 0), min(y + side + 1, rows)):
                steps = np.int64(near[plane, x, row])
                square = across + ((row - y) * spacing[1]) ** 2 + (steps * spacing[2]) ** 2
                if steps >= FAR or square > highest:
                    continue
                differ |= square != best
                for step in (-steps, steps):
                    if not 0 <= x + step < columns or near[plane, x + step, row]:
                        continue
                    if turn:
                        tied[count] = plane - z, row - y, step
                    count += 1
        if not differ:
            return best
        if not turn:
            tied = np.empty((count, 3), np.int64)
    order = np.argsort(tied[:, 2] * (2 * rows + 2 * abs(y) + 1) + tied[:, 1])
    return chosen(tied[order], spacing)
