"""Surface distances between two masks, and the Hausdorff distances made from them.

The surface of a mask is the set of its voxels with a face neighbour outside the mask or outside
the image: mask XOR its erosion of connectivity 1, as in medpy and MONAI. Distances run between
voxel centres. All work happens in the bounding box of both masks, so that a compact organ in a
big volume is quick; no distance depends on the rest of the volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class SurfaceDistances:
    """Directed surface distances, in the unit of the spacing (mm).

    Attributes:
        prediction_to_reference: distance of every surface voxel of the prediction to the nearest
            surface voxel of the reference, in C order of the voxels, float64, shape `(n,)`.
            All `inf` if the reference is empty, of length 0 if the prediction is.
        reference_to_prediction: likewise, the other way round, shape `(m,)`.
    """

    prediction_to_reference: np.ndarray
    reference_to_prediction: np.ndarray


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Distances between the surfaces of two masks, in both directions.

    Args:
        reference: boolean mask, shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        spacing_mm: distance between voxel centres along each axis of the arrays, in mm.

    Returns:
        The directed distances in mm, the values of
        `scipy.ndimage.distance_transform_edt(~surface, sampling=spacing_mm)` to the last bit.

    Raises:
        ValueError: not boolean, shapes differ, not 2 or 3 axes, or a spacing that is not one
            positive finite number an axis.
    """
    _check_masks(reference, prediction)
    spacing = check_spacing(spacing_mm, reference.ndim)
    box = _bounding_box(reference | prediction)
    # Margin 0 suffices: beyond the box of the union both masks are background, which is also
    # what lies beyond the image, so a voxel on the box's face is a surface voxel in either case.
    surface_r, surface_p = _surface(reference[box]), _surface(prediction[box])
    return SurfaceDistances(
        prediction_to_reference=_directed(surface_p, surface_r, spacing),
        reference_to_prediction=_directed(surface_r, surface_p, spacing),
    )


def pooled_hausdorff(distances: SurfaceDistances, percentile: float) -> float:
    """One percentile over the distances of both directions together (medpy, panoptica).

    Args:
        distances: see `surface_distances`.
        percentile: in (0, 100], linear interpolation between ranks.

    Returns:
        Distance in mm; `inf` if either mask was empty.
    """
    to_reference, to_prediction = _both(distances)
    if not _measurable(distances):
        return math.inf
    return float(np.percentile(np.concatenate((to_reference, to_prediction)), percentile))


def max_hausdorff(distances: SurfaceDistances, percentile: float) -> float:
    """Larger one of the two directed percentiles (MONAI, MetricsReloaded).

    Args:
        distances: see `surface_distances`.
        percentile: in (0, 100], linear interpolation between ranks; 100 is the classic distance.

    Returns:
        Distance in mm; `inf` if either mask was empty.
    """
    if not _measurable(distances):
        return math.inf
    return max(float(np.percentile(directed, percentile)) for directed in _both(distances))


def hd95_pooled(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> float:
    """95th percentile of the pooled surface distances in mm, as `medpy.metric.binary.hd95`.

    Arguments and errors as `surface_distances`; `inf` if either mask is empty (medpy raises).
    """
    return pooled_hausdorff(surface_distances(reference, prediction, spacing_mm), 95.0)


def hd95_max(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Larger one of the directed 95th percentiles in mm, as MONAI's `percentile=95`.

    Arguments and errors as `surface_distances`; `inf` if either mask is empty (MONAI: NaN).
    """
    return max_hausdorff(surface_distances(reference, prediction, spacing_mm), 95.0)


def check_spacing(spacing_mm: Sequence[float], ndim: int) -> tuple[float, ...]:
    """Return the spacing as floats; ValueError unless it is `ndim` positive finite numbers."""
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(
            f"spacing_mm needs {ndim} positive finite numbers, one an axis, got {spacing}"
        )
    return spacing


def _check_masks(reference: np.ndarray, prediction: np.ndarray) -> None:
    if reference.dtype != bool or prediction.dtype != bool:
        raise ValueError(f"masks must be boolean, got {reference.dtype} and {prediction.dtype}")
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction differ in shape: {reference.shape} and {prediction.shape}"
        )
    if reference.ndim not in (2, 3):
        raise ValueError(f"masks need 2 or 3 axes, got shape {reference.shape}")


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box that holds every voxel of `mask`; an empty box if there is none."""
    slices = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        slices.append(slice(occupied[0], occupied[-1] + 1) if occupied.size else slice(0, 0))
    return tuple(slices)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of `mask` with a face neighbour outside the mask or outside the array."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        inner, mask_along = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= mask_along[:-1]
        inner[:-1] &= mask_along[1:]
        inner[:1] = inner[-1:] = False
    interior ^= mask  # the interior lies in the mask: what remains is its rim
    return interior


def _directed(source: np.ndarray, target: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance of every voxel of `source`, in C order, to the nearest voxel of `target`."""
    if not target.any():
        return np.full(int(np.count_nonzero(source)), math.inf)
    on_target = target[source]
    distances = np.zeros(on_target.size)
    if not on_target.all():
        points = np.argwhere(source)[~on_target]
        # The transform finds the nearest voxels; distances are taken at the few points that
        # need one, by scipy's own arithmetic in scipy's own order: equal to the last bit.
        nearest = ndimage.distance_transform_edt(
            ~target, sampling=spacing, return_distances=False, return_indices=True
        )
        steps = (nearest[(slice(None), *points.T)] - points.T) * np.array(spacing)[:, None]
        distances[~on_target] = np.sqrt(np.add.reduce(steps * steps, axis=0))
    return distances


def _both(distances: SurfaceDistances) -> tuple[np.ndarray, np.ndarray]:
    return distances.prediction_to_reference, distances.reference_to_prediction


def _measurable(distances: SurfaceDistances) -> bool:
    """Whether both masks had a surface: no array empty (and hence none infinite)."""
    return all(directed.size for directed in _both(distances))
