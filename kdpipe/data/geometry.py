"""Voxel grids, and label maps carried from one grid to another.

Arrays are indexed `(x, y, z)`; physical coordinates are SimpleITK's (mm, LPS). All grids of one
case share their axes up to order and sign, so one coordinate vector an axis describes a mapping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdpipe.errors import DataError

if TYPE_CHECKING:  # a training reads no image: it need not wait for it
    import SimpleITK as sitk

Coordinates = Sequence[np.ndarray]

SAME_SPACING = 1e-4
"""Spacings that differ by less than this fraction are equal: no resampling."""
ON_A_VOXEL = 1e-3
"""Coordinates this near to a whole number, in voxels, are that voxel."""
SLAB = 64
"""Planes along the third axis that are worked on at once."""
_POINTS = 1 << 16


class Grid(NamedTuple):
    """A voxel grid.

    Attributes:
        size: voxels along each axis.
        spacing: mm along each axis.
        origin: centre of voxel (0, 0, 0), mm, LPS.
        direction: 3 x 3 matrix, row by row; column i is the unit vector of axis i.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """Return the grid of a 3D image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Grid:
        """Return the grid that `_asdict` gave, also after a round trip through JSON."""
        return cls(*(tuple(stored[name]) for name in cls._fields))

    @property
    def axes(self) -> np.ndarray:
        """Direction as a (3, 3) array; column i is axis i."""
        return np.asarray(self.direction).reshape(3, 3)

    @property
    def orientation(self) -> str:
        """Closest axis codes with nibabel's meaning: 'RAS' runs to right, anterior, superior."""
        import SimpleITK as sitk

        orientations = sitk.DICOMOrientImageFilter
        codes: str = orientations.GetOrientationFromDirectionCosines(self.direction)
        return codes

    def corners(self) -> np.ndarray:
        """Return the centres of the eight corner voxels, (8, 3), mm."""
        index = np.array(np.meshgrid(*[(0, n - 1) for n in self.size])).reshape(3, 8)
        step = self.axes * np.asarray(self.spacing)
        centres: np.ndarray = (np.asarray(self.origin)[:, None] + step @ index).T
        return centres

    def respaced(self, spacing: Sequence[float | None]) -> Grid:
        """Return the grid of `spacing` mm with the same first corner that covers this one.

        An axis whose spacing is as wanted already, or None, is kept as it is.
        """
        size, steps, shift = [], [], []
        for n, old, new in zip(self.size, self.spacing, spacing, strict=True):
            if new is None or math.isclose(old, new, rel_tol=SAME_SPACING):
                new = old
            size.append(max(1, math.ceil(n * old / new - ON_A_VOXEL)))
            steps.append(float(new))
            shift.append((new - old) / 2)
        origin = np.asarray(self.origin) + self.axes @ shift
        return Grid(tuple(size), tuple(steps), tuple(origin.tolist()), self.direction)

    def cropped(self, start: Sequence[int], size: Sequence[int]) -> Grid:
        """Return the part that begins at voxel `start` and has `size` voxels."""
        shift = self.axes @ (np.asarray(start) * np.asarray(self.spacing))
        origin = tuple((np.asarray(self.origin) + shift).tolist())
        return Grid(tuple(int(n) for n in size), self.spacing, origin, self.direction)

    def coordinates_of(self, other: Grid) -> tuple[list[np.ndarray], list[int]]:
        """Locate the voxels of `other` on this grid.

        Returns:
            For each axis of this grid the positions, in voxels, of the planes of `other`; and for
            each axis of `other` the axis of this grid along which it runs.

        Raises:
            DataError: if the axes of the two grids are not parallel.
        """
        turn = self.axes.T @ other.axes
        order = [int(axis) for axis in np.abs(turn).argmax(axis=0)]
        if sorted(order) != [0, 1, 2] or np.abs(turn[order, [0, 1, 2]]).min() < 1 - 1e-4:
            raise DataError("the two grids are not parallel; prepare the case again")
        first = self.axes.T @ (np.asarray(other.origin) - np.asarray(self.origin))
        coordinates = [np.empty(0)] * 3
        for theirs, ours in enumerate(order):
            step = math.copysign(other.spacing[theirs], turn[ours, theirs])
            position = first[ours] + step * np.arange(other.size[theirs])
            position /= self.spacing[ours]
            whole = np.round(position)
            coordinates[ours] = np.where(np.abs(position - whole) < ON_A_VOXEL, whole, position)
        return coordinates, order


def to_array(image: sitk.Image) -> np.ndarray:
    """Return a copy of the voxels of a 3D image as `(x, y, z)`.

    SimpleITK's view would be cheaper, but it dangles as soon as the image is collected.
    """
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def view_of(image: sitk.Image) -> np.ndarray:
    """Return the voxels of a 3D image as `(x, y, z)`, read-only and not copied.

    Valid only as long as the caller keeps the image.
    """
    import SimpleITK as sitk

    return sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)


def in_storage_order(array: np.ndarray, axis: int) -> np.ndarray:
    """Return `array` with its last axis innermost in memory, a copy where it is not.

    Where all axes are reversed, numpy takes two to five times as long as the planes across `axis`
    one after another.
    """
    if sorted(array.strides) != list(array.strides):
        return np.ascontiguousarray(array)
    result = np.empty(array.shape, array.dtype)
    planes = (np.moveaxis(volume, axis, 0) for volume in (result, array))
    for target, source in zip(*planes, strict=True):
        target[:] = source
    return result


def to_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Return `array` `(x, y, z)` as an image on `grid`."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(in_storage_order(array.transpose(2, 1, 0), 1))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def argmax_classes(scores: np.ndarray) -> np.ndarray:
    """Return the class of the largest score, (K, X, Y, Z) -> (X, Y, Z) uint8; ties: lowest class.

    A running maximum reads each class once, in storage order, unlike `numpy.argmax` over axis 0.
    """
    best = scores[0].copy()
    labels = np.zeros(best.shape, np.uint8)
    for label, score in enumerate(scores[1:], start=1):
        better = score > best
        np.copyto(best, score, where=better)
        labels[better] = label
    return labels


def labels_at(
    labels: np.ndarray,
    coordinates: Coordinates,
    scores: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray] = argmax_classes,
) -> np.ndarray:
    """Label the points of a rectilinear grid by the linearly interpolated scores.

    If all eight voxels around a point have one label, so has the point: the largest score stays
    the largest, and the sign of a region's score stays the same, under any convex combination.
    Only the other points are interpolated, in blocks, and the grid is walked through in slabs, so
    memory grows neither with the number of classes times the number of points nor with copies of
    the whole.

    Args:
        labels: (X, Y, Z) uint8; what `decode` makes of `scores`.
        coordinates: three vectors, in voxels; beyond the edge the nearest voxel counts.
        scores: (K, X, Y, Z) finite.
        decode: scores (K, ...) -> labels (...), see `kdpipe.data.targets.Targets.decode`.

    Returns:
        uint8, as long along each axis as the vectors; ties go to the lowest class.
    """
    *plane, along = coordinates
    result = np.empty([len(c) for c in coordinates], np.uint8)
    for begin in range(0, len(along), SLAB):
        part = along[begin : begin + SLAB]
        first, last = source_planes(part, labels.shape[-1], margin=1)
        result[..., begin : begin + SLAB] = _labels_at(
            labels[..., first:last],
            [*plane, part - first],
            scores[..., first:last],
            decode,
        )
    return result


def source_planes(positions: np.ndarray, n: int, margin: int) -> tuple[int, int]:
    """Return the range of planes, of `n`, that positions (voxels) need with `margin` around them.

    It ends at an edge of the volume where positions lie beyond it.
    """
    low, high = (int(np.clip(edge, 0, n - 1)) for edge in (positions.min(), positions.max()))
    return max(0, low - margin), min(n, high + 2 + margin)


def _labels_at(
    labels: np.ndarray,
    coordinates: Coordinates,
    scores: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    low, high, weight = zip(
        *(neighbours(c, n) for c, n in zip(coordinates, labels.shape, strict=True)), strict=True
    )
    labels = np.ascontiguousarray(labels)
    result = np.ascontiguousarray(labels[np.ix_(*low)])
    if not any(w.any() for w in weight):
        return result
    mixed = np.flatnonzero(_mixed_cells(labels)[np.ix_(*low)])
    scores = np.ascontiguousarray(scores).reshape(len(scores), -1)
    for begin in range(0, len(mixed), _POINTS):
        block = mixed[begin : begin + _POINTS]
        where = np.unravel_index(block, result.shape)
        corners = list(_corners(where, low, high, weight, labels.shape))
        result.ravel()[block] = decode(_weighted(scores, corners))
    return result


def neighbours(coordinate: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the voxel below, the voxel above and the weight of the latter.

    A point on a voxel has that voxel on both sides.
    """
    clamped = np.clip(coordinate, 0, n - 1)
    low = np.floor(clamped).astype(np.intp)
    weight = clamped - low
    return low, low + (weight > 0), weight


def _mixed_cells(labels: np.ndarray) -> np.ndarray:
    """Say of each voxel whether it and its upper neighbours (8 in all) have several labels."""
    smallest, largest = labels, labels
    for axis, n in enumerate(labels.shape):
        above = np.minimum(np.arange(n) + 1, n - 1)
        smallest = np.minimum(smallest, smallest.take(above, axis))
        largest = np.maximum(largest, largest.take(above, axis))
    mixed: np.ndarray = smallest != largest
    return mixed


def _corners(where: Any, low: Any, high: Any, weight: Any, shape: tuple[int, ...]) -> Any:
    """Yield the flat index and the weight of each of the eight voxels around the points."""
    sides = [
        ((lo[i], 1 - w[i]), (hi[i], w[i]))
        for i, lo, hi, w in zip(where, low, high, weight, strict=True)
    ]
    for x, weight_x in sides[0]:
        for y, weight_y in sides[1]:
            for z, weight_z in sides[2]:
                yield np.ravel_multi_index((x, y, z), shape), weight_x * weight_y * weight_z


def _weighted(scores: np.ndarray, corners: list[Any]) -> np.ndarray:
    """Return the scores (K, N) interpolated at N points."""
    total = np.zeros((len(scores), len(corners[0][0])), np.float32)
    for index, weight in corners:
        total += scores[:, index] * weight.astype(np.float32)
    return total
