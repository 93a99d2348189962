"""Images and label maps on another rectilinear grid, one axis after the other.

Interpolation along an axis is a matrix: the one that carries the unit vectors over. Its rows are
narrow bands, also those of cubic splines, whose prefilter falls by 0.27 a voxel. So a volume is
resampled by small products of matrices, block by block, without a copy of the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from kdpipe.data.geometry import Coordinates, in_storage_order, neighbours

LINEAR, CUBIC = 1, 3
_NEGLIGIBLE = 1e-8
"""Weights below this are left out; rounding to float32 is ten times coarser."""
_ROWS, _COLUMNS, _PLANES = 48, 64, 16
"""Planes along x, along y and z, that are computed at once, and native planes read at once."""
_SLAB = 16
_POINTS = 1 << 14


class _Band(NamedTuple):
    """Some rows of an interpolation matrix, without the columns that are zero there."""

    rows: slice
    columns: slice
    weights: np.ndarray


def image_at(voxels: np.ndarray, coordinates: Coordinates, order: int, out: np.ndarray) -> None:
    """Interpolate an image at the points of a rectilinear grid.

    Beyond the centres of the edge voxels the image goes on with the value of the nearest voxel, as
    in scipy's mode `nearest`, skimage's `edge` and nnU-Net. Cubic splines overshoot beside an
    edge; the result is clipped to the range of the image.

    Args:
        voxels: (X, Y, Z), finite, of any type.
        coordinates: three vectors, in voxels.
        order: `LINEAR` or `CUBIC`, an interpolating B-spline.
        out: float32, as long along each axis as the vectors; written to.
    """
    across, along, up = (
        _bands(_matrix(n, position, order), step)
        for n, position, step in zip(
            voxels.shape, coordinates, (_ROWS, _COLUMNS, _COLUMNS), strict=True
        )
    )
    low, high = float(voxels.min()), float(voxels.max())
    with threadpool_limits(1, "blas"):  # more threads add up in another order: other bits
        for x in across:
            block = out[x.rows]
            planes = _planes_at(voxels.T[..., x.columns], x.weights, along, block.shape[1])
            for z in up:
                columns = planes[z.columns].reshape(z.weights.shape[1], -1).T @ z.weights.T
                np.clip(columns.reshape(*block.shape[:2], -1), low, high, out=block[..., z.rows])


def _planes_at(
    source: np.ndarray, weights: np.ndarray, along: list[_Band], length: int
) -> np.ndarray:
    """Interpolate native planes (Z, Y, X) along x, then along y: (Z, X', Y') float32."""
    result = np.empty((len(source), len(weights), length), np.float32)
    for begin in range(0, len(source), _PLANES):
        part = source[begin : begin + _PLANES].astype(np.float32)
        narrow = (part.reshape(-1, part.shape[2]) @ weights.T).reshape(*part.shape[:2], -1)
        for y in along:
            turned = narrow[:, y.columns].transpose(0, 2, 1)
            result[begin : begin + _PLANES, :, y.rows] = turned @ y.weights.T
    return result


def _matrix(n: int, positions: np.ndarray, order: int) -> np.ndarray:
    """Return the interpolation of `n` voxels at `positions`, (len(positions), n) float64."""
    rows = [
        ndimage.map_coordinates(unit, positions[None], order=order, mode="nearest")
        for unit in np.eye(n)
    ]
    return np.stack(rows, axis=1)


def _bands(matrix: np.ndarray, step: int) -> list[_Band]:
    bands = []
    for begin in range(0, len(matrix), step):
        rows = slice(begin, min(begin + step, len(matrix)))
        used = np.flatnonzero((np.abs(matrix[rows]) > _NEGLIGIBLE).any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        weights = np.ascontiguousarray(matrix[rows, columns], np.float32)
        bands.append(_Band(rows, columns, weights))
    return bands


def one_hot_at(labels: np.ndarray, coordinates: Coordinates) -> np.ndarray:
    """Label the points of a rectilinear grid by linearly interpolated one-hot codes.

    If all eight voxels around a point have one label, so has the point; only the others are
    interpolated. The grid is walked through in slabs.

    Args:
        labels: (X, Y, Z) uint8.
        coordinates: three vectors, in voxels; beyond the edge the nearest voxel counts.

    Returns:
        uint8, as long along each axis as the vectors; ties go to the lowest label.
    """
    sides = [neighbours(c, n) for c, n in zip(coordinates, labels.shape, strict=True)]
    (first, last, weight), *others = sides
    result = np.empty([len(c) for c in coordinates], np.uint8)
    for begin in range(0, len(first), _SLAB):
        slab = slice(begin, begin + _SLAB)
        lowest = int(first[slab].min())
        part = in_storage_order(labels[lowest : int(last[slab].max()) + 1], 2)
        here = [(first[slab] - lowest, last[slab] - lowest, weight[slab]), *others]
        result[slab] = _slab_at(part, here)
    return result


def _slab_at(labels: np.ndarray, sides: list[Any]) -> np.ndarray:
    across, mixed = labels, None
    for axis, (low, high, _) in enumerate(sides[:2]):
        below, above = (across.take(index, axis) for index in (low, high))
        differ = below != above
        if mixed is not None:
            differ |= mixed.take(low, axis)
            differ |= mixed.take(high, axis)
        across, mixed = below, differ
    result, points = _along(across, mixed, sides[2][0])
    for begin in range(0, len(points), _POINTS):
        block = points[begin : begin + _POINTS]
        where = np.unravel_index(block, result.shape)
        result.ravel()[block] = _vote(labels, where, sides)
    return result


def _along(labels: np.ndarray, mixed: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Carry labels along the last axis, where most columns have one label from end to end.

    Args:
        labels: (X, Y, Z).
        mixed: whether the four voxels beside each differ, written to.
        low: the voxel below each point along the last axis.

    Returns:
        The labels of the lower corners, (X, Y, len(low)), and the flat indices of the points in
        cells whose corners differ.
    """
    mixed[..., :-1] |= mixed[..., 1:]
    mixed[..., :-1] |= labels[..., :-1] != labels[..., 1:]
    columns, cells = labels.reshape(-1, labels.shape[2]), mixed.reshape(-1, labels.shape[2])
    several = np.flatnonzero(cells.any(axis=1))
    result = np.empty((len(columns), len(low)), np.uint8)
    result[:] = columns[:, :1]
    result[several] = columns[several].take(low, axis=1)
    found = np.flatnonzero(cells[several].take(low, axis=1))
    points = several[found // len(low)] * len(low) + found % len(low)
    return result.reshape(*labels.shape[:2], len(low)), points


def _vote(labels: np.ndarray, where: Any, sides: list[Any]) -> np.ndarray:
    """Return the label with the largest sum of weights over the eight voxels around each point."""
    ids, weights = _corners(labels, where, sides)
    least, most = ids.min(axis=0), ids.max(axis=0)
    is_least, is_most = ids == least, ids == most
    for_least, for_most = ((weights * mine).sum(axis=0) for mine in (is_least, is_most))
    winner = np.where(for_least >= for_most, least, most)
    several = np.flatnonzero(~(is_least | is_most).all(axis=0))
    if len(several):
        votes = np.zeros((int(most.max()) + 1, len(several)))
        for label, weight in zip(ids[:, several], weights[:, several], strict=True):
            votes[label, np.arange(len(several))] += weight
        winner[several] = votes.argmax(axis=0)
    return winner


def _corners(labels: np.ndarray, where: Any, sides: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and weights (8, N) of the voxels around N points."""
    x, y, z = (
        ((low[at] * stride, 1 - weight[at]), (high[at] * stride, weight[at]))
        for at, (low, high, weight), stride in zip(
            where, sides, (labels.shape[1] * labels.shape[2], labels.shape[2], 1), strict=True
        )
    )
    ids = np.empty((8, len(where[0])), np.uint8)
    weights = np.empty(ids.shape)
    corner = 0
    for at_x, weight_x in x:
        for at_y, weight_y in y:
            at_xy, weight_xy = at_x + at_y, weight_x * weight_y
            for at_z, weight_z in z:
                labels.ravel().take(at_xy + at_z, out=ids[corner])
                np.multiply(weight_xy, weight_z, out=weights[corner])
                corner += 1
    return ids, weights
