"""Surface distances between two masks, and the Hausdorff distances made from them.

The surface of a mask is the set of its voxels with a face neighbour outside the mask or outside
the image: mask XOR its erosion of connectivity 1, as in medpy and MONAI. Distances run between
voxel centres. How they are found: `labelled` and `nearest`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.metrics.labelled import kernels, labelled_distances


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
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    jit: bool | None = None,
) -> SurfaceDistances:
    """Distances between the surfaces of two masks, in both directions.

    Args:
        reference: boolean mask, shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        spacing_mm: distance between voxel centres along each axis of the arrays, in mm.
        jit: see `labelled.kernels`.

    Returns:
        The directed distances in mm, the values of
        `scipy.ndimage.distance_transform_edt(~surface, sampling=spacing_mm)` to the last bit.

    Raises:
        ValueError: not boolean, shapes differ, not 2 or 3 axes, or a spacing that is not one
            positive finite number an axis.
    """
    _check_masks(reference, prediction)
    spacing = check_spacing(spacing_mm, reference.ndim)
    masks = (reference.view(np.uint8), prediction.view(np.uint8))
    return SurfaceDistances(*labelled_distances(*masks, [(1,)], spacing, kernels(jit))[0])


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
    return _percentile(np.concatenate((to_reference, to_prediction)), percentile)


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
    return max(_percentile(directed, percentile) for directed in _both(distances))


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in mm, as `medpy.metric.binary.assd`.

    One mean over the distances of both directions together, not the mean of the two directed
    means. `inf` if either mask was empty.
    """
    return float(np.concatenate(_both(distances)).mean()) if _measurable(distances) else math.inf


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface dice over surface voxels, as MONAI's `compute_surface_dice`.

    Args:
        distances: see `surface_distances`.
        tolerance_mm: a surface voxel is right if the other surface is at most this far away.

    Returns:
        Share in [0, 1] of the surface voxels of both masks that are right: 0 if one mask was
        empty, NaN if both were.
    """
    pooled = np.concatenate(_both(distances))
    return (
        float(np.count_nonzero(pooled <= tolerance_mm) / pooled.size) if pooled.size else math.nan
    )


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


def _percentile(values: np.ndarray, percentile: float) -> float:
    """`np.percentile` to the last bit, without what makes it slow for a small structure."""
    if percentile == 100:
        return float(values.max())
    rank = (values.size - 1) * (percentile / 100)
    low = math.floor(rank)
    high = min(low + 1, values.size - 1)
    ordered = np.partition(values, (low, high))
    below, above, share = float(ordered[low]), float(ordered[high]), rank - low
    if share < 0.5:
        return below + (above - below) * share
    return above - (above - below) * (1 - share)


def _both(distances: SurfaceDistances) -> tuple[np.ndarray, np.ndarray]:
    return distances.prediction_to_reference, distances.reference_to_prediction


def _measurable(distances: SurfaceDistances) -> bool:
    """Whether both masks had a surface: no array empty (and hence none infinite)."""
    return all(directed.size for directed in _both(distances))
