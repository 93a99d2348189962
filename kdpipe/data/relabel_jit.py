"""Compiled loops from scores to labels: the largest score, and the scores between voxels.

Only `kdpipe.data.relabel` calls them, and has a way without. Scores come as a flat array in which
channel k begins at `begin + k * stride`. No loop holds the interpreter's lock or starts threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

_compiled = numba.njit(cache=True, nogil=True)
_RUN = 1 << 15  # voxels of a channel that are read in one go; long, for the memory's sake
_EXPONENT = np.uint32(0x7F800000)
_LINE = 16  # scores in a line of the cache


def _compiled_largest(together: int) -> Callable[..., bool]:
    """Return `largest` for that many channels at once: the maximum then stays in registers."""

    @_compiled
    def largest(
        scores: np.ndarray, begin: int, stride: int, channels: int, labels: np.ndarray
    ) -> bool:
        """Write the channel of each voxel's largest score, the lowest of equals, into `labels`.

        Returns:
            Whether all scores are finite.
        """
        best = np.empty(_RUN, np.float32)
        bits = scores.view(np.uint32)
        widest = np.uint32(0)
        for first in range(0, labels.size, _RUN):
            count = min(_RUN, labels.size - first)
            here = labels[first : first + count]
            best[:], here[:] = -np.inf, 0
            for group in range(0, channels, together):
                for i in range(count):
                    top, label = best[i], here[i]
                    for n in range(together):
                        # always as many, so that it is unrolled; the last seen twice does no harm
                        channel = min(group + n, channels - 1)
                        # unsigned: numba then asks of no index whether it counts from the end
                        at = np.uint64(begin + channel * stride + first + i)
                        better = scores[at] > top
                        top = scores[at] if better else top
                        label = np.uint8(channel) if better else label
                        widest = max(widest, bits[at] & _EXPONENT)
                    best[i], here[i] = top, label
        return widest < _EXPONENT

    return largest


largest_of_few, largest_of_many = _compiled_largest(4), _compiled_largest(16)


@_compiled
def between(
    labels: np.ndarray,
    scores: np.ndarray,
    stride: int,
    low: tuple[np.ndarray, np.ndarray, np.ndarray],
    high: tuple[np.ndarray, np.ndarray, np.ndarray],
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    paint: np.ndarray,
    result: np.ndarray,
) -> None:
    """Label the points of a grid: as their neighbours where these agree, else by their scores.

    On a finer grid many rows lie between the same four; they are looked at once.

    Args:
        labels: (X, Y, Z), of the voxels.
        scores, stride: as above.
        low, high, weight: for each axis the two voxels beside a point, and the weight of the upper.
        paint: (N, 2), channels and labels of regions in the order to paint; none for classes.
        result: (I, J, L), written.
    """
    channels = 1 + (scores.size - labels.size) // stride
    near, total = np.empty((8, channels), np.float32), np.empty(channels, np.float32)
    common, mixed = np.empty(labels.shape[2], np.uint8), np.empty(labels.shape[2], np.uint8)
    points = np.empty(result.shape[2], np.int64)
    last_i = 0
    while last_i < result.shape[0]:
        i, last_i = last_i, _run_end(low[0], high[0], last_i)
        last_j = 0
        while last_j < result.shape[1]:
            j, last_j = last_j, _run_end(low[1], high[1], last_j)
            rows = (low[0][i], high[0][i], low[1][j], high[1][j])
            block = result[i:last_i, j:last_j]
            if _common_row(labels, rows, common, mixed):
                block[:] = common[0]
                continue
            found = _label_agreed(common, mixed, low[2], block, points)
            _fetch(scores, stride, channels, labels.shape, rows, low[2], points[:found])
            z0, z1 = -1, -1
            for k in points[:found]:
                if low[2][k] != z0 or high[2][k] != z1:
                    z0, z1 = low[2][k], high[2][k]
                    _corners(scores, stride, labels.shape, rows, z0, z1, near)
                for a in range(last_i - i):
                    for b in range(last_j - j):
                        where = (weight[0][i + a], weight[1][j + b], weight[2][k])
                        _interpolate(near, where, total)
                        block[a, b, k] = _decode(total, paint)


@_compiled
def _run_end(low: np.ndarray, high: np.ndarray, begin: int) -> int:
    """Return where the points end that lie between the same two voxels as that at `begin`."""
    end = begin + 1
    while end < low.size and low[end] == low[begin] and high[end] == high[begin]:
        end += 1
    return end


@_compiled
def _common_row(
    labels: np.ndarray, rows: tuple[int, int, int, int], common: np.ndarray, mixed: np.ndarray
) -> bool:
    """Write the labels of one row, and 0 where the three rows beside it have the same.

    Returns:
        Whether all four rows have one label alone.
    """
    x0, x1, y0, y1 = rows
    first, second = labels[x0, y0], labels[x0, y1]
    third, fourth = labels[x1, y0], labels[x1, y1]
    only, differ = first[0], np.uint8(0)
    for z in range(common.size):
        label = first[z]
        common[z] = label
        mixed[z] = (label ^ second[z]) | (label ^ third[z]) | (label ^ fourth[z])
        differ |= mixed[z] | (label ^ only)
    return differ == 0


@_compiled
def _label_agreed(
    common: np.ndarray, mixed: np.ndarray, low: np.ndarray, block: np.ndarray, points: np.ndarray
) -> int:
    """Give all rows of a block the labels of their lower corners; list the points in mixed cells.

    Returns:
        The number of points in the list.
    """
    for z in range(common.size - 1):
        mixed[z] |= mixed[z + 1] | (common[z] ^ common[z + 1])
    line, found = block[0, 0], 0
    for k in range(low.size):
        line[k] = common[low[k]]
        points[found] = k
        found += mixed[low[k]] != 0
    for a in range(block.shape[0]):
        for b in range(block.shape[1]):
            block[a, b] = line
    return found


@intrinsic
def _prefetch(context: Any, array: Any, index: Any) -> Any:
    """Have an element of an array brought to the cache, without waiting for it."""

    def call(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        where = builder.gep(values.data, [arguments[1]])
        where = builder.bitcast(where, cgutils.voidptr_t)
        number = cgutils.int32_t
        kind = cgutils.ir.FunctionType(cgutils.ir.VoidType(), [where.type, *[number] * 3])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [where.type], kind)
        builder.call(fetch, [where, number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return numba.void(array, index), call


@_compiled
def _fetch(
    scores: np.ndarray,
    stride: int,
    channels: int,
    shape: tuple[int, int, int],
    rows: tuple[int, int, int, int],
    low: np.ndarray,
    points: np.ndarray,
) -> None:
    """Ask for the scores beside some points of a row at once; one by one, each is waited for."""
    line = -1
    for k in points:
        if low[k] // _LINE == line:
            continue
        line = low[k] // _LINE
        for x in rows[:2]:
            for y in rows[2:]:
                at = np.uint64((x * shape[1] + y) * shape[2] + low[k])
                for _ in range(channels):
                    _prefetch(scores, at)
                    at += np.uint64(stride)


@_compiled
def _corners(
    scores: np.ndarray,
    stride: int,
    shape: tuple[int, int, int],
    rows: tuple[int, int, int, int],
    z0: int,
    z1: int,
    near: np.ndarray,
) -> None:
    """Copy the scores of the eight voxels around a cell, (8, channels)."""
    x0, x1, y0, y1 = rows
    corner = 0
    for x in (x0, x1):
        for y in (y0, y1):
            for z in (z0, z1):
                at = np.uint64((x * shape[1] + y) * shape[2] + z)
                for channel in range(near.shape[1]):
                    near[corner, channel] = scores[at]
                    at += np.uint64(stride)
                corner += 1


@_compiled
def _interpolate(near: np.ndarray, weight: tuple[float, float, float], total: np.ndarray) -> None:
    """Interpolate all channels, in the order of operations of `geometry.labels_at`."""
    x, y, z = weight
    s0, s1 = np.float32((1 - x) * (1 - y) * (1 - z)), np.float32((1 - x) * (1 - y) * z)
    s2, s3 = np.float32((1 - x) * y * (1 - z)), np.float32((1 - x) * y * z)
    s4, s5 = np.float32(x * (1 - y) * (1 - z)), np.float32(x * (1 - y) * z)
    s6, s7 = np.float32(x * y * (1 - z)), np.float32(x * y * z)
    for channel in range(total.size):
        value = near[0, channel] * s0
        value += near[1, channel] * s1
        value += near[2, channel] * s2
        value += near[3, channel] * s3
        value += near[4, channel] * s4
        value += near[5, channel] * s5
        value += near[6, channel] * s6
        value += near[7, channel] * s7
        total[channel] = value


@numba.njit(inline="always")  # LLVM leaves the call, which costs more than the work
def _decode(scores: np.ndarray, paint: np.ndarray) -> int:
    """Return the label of one point, as `Targets.decode` does."""
    label = 0
    for n in range(len(paint)):
        label = paint[n, 1] if scores[paint[n, 0]] > 0 else label
    if len(paint) == 0:
        top = scores[0]
        for channel in range(1, scores.size):
            better = scores[channel] > top
            top = scores[channel] if better else top
            label = channel if better else label
    return label
