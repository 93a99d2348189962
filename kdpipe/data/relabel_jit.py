"""Compiled loops from scores to labels: the largest score, and the scores between voxels.

Only `kdpipe.data.relabel` calls them, and has a way without. Scores come as a flat array in which
channel k begins at `begin + k * stride`. No loop holds the interpreter's lock or starts threads.
"""

from __future__ import annotations

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True)
_CHUNK = 8192  # voxels whose running maximum stays in the nearest cache
_EXPONENT = np.uint32(0x7F800000)


@_compiled
def largest(scores: np.ndarray, begin: int, stride: int, channels: int, labels: np.ndarray) -> bool:
    """Write the channel of the largest score of each voxel, the lowest of equals, into `labels`.

    Returns:
        Whether all scores are finite.
    """
    best = np.empty(_CHUNK, np.float32)
    bits = scores.view(np.uint32)
    widest = np.uint32(0)
    for first in range(0, labels.size, _CHUNK):
        count = min(_CHUNK, labels.size - first)
        here = labels[first : first + count]
        for channel in range(channels):
            at = begin + channel * stride + first
            row, row_bits = scores[at : at + count], bits[at : at + count]
            if channel == 0:
                for i in range(count):
                    best[i] = row[i]
                    here[i] = 0
                    widest = max(widest, row_bits[i] & _EXPONENT)
            else:
                for i in range(count):
                    better = row[i] > best[i]
                    best[i] = row[i] if better else best[i]
                    here[i] = np.uint8(channel) if better else here[i]
                    widest = max(widest, row_bits[i] & _EXPONENT)
    return bool(widest < _EXPONENT)


@_compiled
def _common_row(
    labels: np.ndarray, x0: int, x1: int, y0: int, y1: int, common: np.ndarray, agreed: np.ndarray
) -> bool:
    """Write the labels of one row, and 1 where the three rows beside it have the same.

    Returns:
        Whether all four rows have one label alone.
    """
    only, differ = labels[x0, y0, 0], 0
    for z in range(common.size):
        label = labels[x0, y0, z]
        common[z] = label
        agreed[z] = (
            (labels[x0, y1, z] == label)
            & (labels[x1, y0, z] == label)
            & (labels[x1, y1, z] == label)
        )
        differ |= (agreed[z] ^ 1) | (label ^ only)
    return differ == 0


@_compiled
def uniform_cells(
    labels: np.ndarray,
    low: tuple[np.ndarray, np.ndarray, np.ndarray],
    high: tuple[np.ndarray, np.ndarray, np.ndarray],
    first_row: int,
    result: np.ndarray,
    mixed: np.ndarray,
) -> tuple[int, int]:
    """Label the points whose eight neighbours agree, and list the others, row by row.

    Args:
        labels: (X, Y, Z).
        low: for each axis the voxel below each point.
        high: likewise, the voxel above.
        first_row: where to begin; rows are those of the first two axes of `result`.
        result: (I, J, L), written; a point of the list gets the label of its lowest corner.
        mixed: takes the flat index of each point of the list; as long as a row at least.

    Returns:
        The row to go on with, and the number of points in `mixed`. It stops before a row that
        might not fit.
    """
    rows, columns, length = result.shape
    common = np.empty(labels.shape[2], np.uint8)
    agreed = np.empty(labels.shape[2], np.uint8)
    found, before = 0, (-1, -1, -1, -1)
    begin = end = 0  # what the row before added to the list
    for row in range(first_row, rows * columns):
        if found + length > mixed.size:
            return row, found
        i, j = row // columns, row % columns
        place = (low[0][i], high[0][i], low[1][j], high[1][j])
        line = result[i, j]
        if place == before:  # on a finer grid many rows lie between the same four
            line[:] = result[(row - 1) // columns, (row - 1) % columns]
            begin, end = end, end + end - begin
            for n in range(begin, end):
                mixed[n] = mixed[n - end + begin] + length
            found = end
            continue
        before, begin = place, found
        if _common_row(labels, place[0], place[1], place[2], place[3], common, agreed):
            line[:] = common[0]
            end = found
            continue
        for k in range(length):
            z0, z1 = low[2][k], high[2][k]
            line[k] = common[z0]
            if not (agreed[z0] & agreed[z1] & (common[z0] == common[z1])):
                mixed[found] = row * length + k
                found += 1
        end = found
    return rows * columns, found


@_compiled
def between(
    scores: np.ndarray,
    begin: int,
    stride: int,
    strides: tuple[int, int],
    low: tuple[np.ndarray, np.ndarray, np.ndarray],
    high: tuple[np.ndarray, np.ndarray, np.ndarray],
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    shape: tuple[int, int, int],
    points: np.ndarray,
    result: np.ndarray,
) -> None:
    """Interpolate all channels at points, in the order of operations of `geometry.labels_at`.

    Args:
        scores, begin, stride: as above.
        strides: from plane to plane and from row to row of a channel.
        low, high, weight: for each axis the two voxels beside a point, and the weight of the upper.
        shape: of the grid of points.
        points: flat indices into it.
        result: (channels, points), written.
    """
    step = np.uint64(stride)
    for n in range(points.size):
        i, rest = divmod(points[n], shape[1] * shape[2])
        j, k = divmod(rest, shape[2])
        x, y, z = weight[0][i], weight[1][j], weight[2][k]
        s0, s1 = np.float32((1 - x) * (1 - y) * (1 - z)), np.float32((1 - x) * (1 - y) * z)
        s2, s3 = np.float32((1 - x) * y * (1 - z)), np.float32((1 - x) * y * z)
        s4, s5 = np.float32(x * (1 - y) * (1 - z)), np.float32(x * (1 - y) * z)
        s6, s7 = np.float32(x * y * (1 - z)), np.float32(x * y * z)
        x0, x1 = begin + low[0][i] * strides[0], begin + high[0][i] * strides[0]
        y0, y1 = low[1][j] * strides[1], high[1][j] * strides[1]
        z0, z1 = low[2][k], high[2][k]
        # unsigned: numba then asks of no index whether it counts from the end
        p0, p1 = np.uint64(x0 + y0 + z0), np.uint64(x0 + y0 + z1)
        p2, p3 = np.uint64(x0 + y1 + z0), np.uint64(x0 + y1 + z1)
        p4, p5 = np.uint64(x1 + y0 + z0), np.uint64(x1 + y0 + z1)
        p6, p7 = np.uint64(x1 + y1 + z0), np.uint64(x1 + y1 + z1)
        for channel in range(len(result)):
            total = scores[p0] * s0
            total += scores[p1] * s1
            total += scores[p2] * s2
            total += scores[p3] * s3
            total += scores[p4] * s4
            total += scores[p5] * s5
            total += scores[p6] * s6
            total += scores[p7] * s7
            result[channel, n] = total
            p0, p1, p2, p3 = p0 + step, p1 + step, p2 + step, p3 + step
            p4, p5, p6, p7 = p4 + step, p5 + step, p6 + step, p7 + step
