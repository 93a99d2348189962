"""Errors of a prediction by distance from the boundary of the reference.

The distance of a voxel is that between its centre and the nearest centre of a surface voxel of the
reference (mask XOR erosion, as everywhere here); it is inside where the reference is, surface
voxels included. Edges are passed by 1e-9 of their value, so that a voxel exactly at 2 mm is not
put into one band or the other by the last place of a sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from scipy import ndimage

from kdpipe.metrics.labelled import surface_mask

BAND_EDGES_MM = (1.0, 2.0, 4.0, 8.0)
SLAB_VOXELS = 2**20

Bands = dict[str, tuple[int, int]]


def band_names(edges_mm: Sequence[float] = BAND_EDGES_MM) -> list[str]:
    """Names of the bands from the deepest inside to the farthest outside.

    For edges 1, 2, 4, 8: `in_4_up`, `in_2_4`, `in_1_2`, `in_0_1`, `out_0_1`, `out_1_2`, `out_2_4`,
    `out_4_8`. Inside, all beyond the last edge but one is one band; outside, voxels beyond the last
    edge are in none. A band holds its upper edge, not its lower one, but `in_0_1` holds the
    surface voxels themselves.
    """
    steps = [f"{low:g}_{high:g}" for low, high in itertools.pairwise((0.0, *edges_mm))]
    inside = [f"in_{step}" for step in steps[:-1]]
    return [f"in_{edges_mm[-2]:g}_up", *inside[::-1], *(f"out_{step}" for step in steps)]


def error_bands(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    edges_mm: Sequence[float],
    loops: ModuleType | None,
) -> Bands:
    """Count voxels and wrong voxels of two masks in every band.

    Args:
        reference: boolean mask, shape `S` of 2 or 3 axes, cropped no closer to the structure than
            the last edge, but for the edge of the image.
        prediction: likewise, same shape.
        spacing: one step an axis, in mm.
        edges_mm: at least two, ascending, above 0.
        loops: see `labelled.kernels`.

    Returns:
        Name of each band (see `band_names`) -> voxels in it, and those where the masks differ.
    """
    edges = np.array(edges_mm, float) * (1 + 1e-9)
    count = _counts_without_jit if loops is None else _counts_with_jit
    counts = count(reference, prediction, spacing, edges, loops)
    # Rows: outside, inside; columns: up to each edge, then beyond the last.
    counts[1, len(edges) - 1] += counts[1, len(edges)]
    rows = [*counts[1, : len(edges)][::-1], *counts[0, : len(edges)]]
    return {
        name: (int(voxels), int(wrong))
        for name, (voxels, wrong) in zip(band_names(edges_mm), rows, strict=True)
    }


def _counts_with_jit(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    edges: np.ndarray,
    loops: ModuleType | None,
) -> np.ndarray:
    assert loops is not None
    surface = surface_mask(reference)
    if reference.ndim == 2:
        reference, prediction, surface = reference[None], prediction[None], surface[None]
        spacing = (1.0, *spacing)
    reach = [
        min(int(edges[-1] / step) + 1, n) for step, n in zip(spacing, reference.shape, strict=True)
    ]
    counts = np.zeros((2, len(edges) + 1, 2), np.int64)
    masks = (np.ascontiguousarray(mask).view(np.uint8) for mask in (reference, prediction, surface))
    loops.count_bands(*masks, np.array(spacing), np.array(reach), edges**2, counts)
    return counts


def _counts_without_jit(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    edges: np.ndarray,
    *_: object,
) -> np.ndarray:
    """In slabs: beyond the last edge it does not matter what surface lies outside the slab."""
    surface = surface_mask(reference)
    counts = np.zeros((2, len(edges) + 1, 2), np.int64)
    halo = int(edges[-1] / spacing[0]) + 1
    thickness = max(1, SLAB_VOXELS * len(reference) // reference.size - 2 * halo)
    for start in range(0, len(reference), thickness):
        low, stop = max(start - halo, 0), min(start + thickness, len(reference))
        slab = surface[low : stop + halo]
        if slab.any():
            distance = ndimage.distance_transform_edt(~slab, sampling=spacing)[start - low :]
        else:
            distance = np.full(slab.shape, math.inf)[start - low :]
        inside = reference[start:stop]
        band = np.searchsorted(edges, distance[: stop - start].ravel())
        key = (inside.ravel() * (len(edges) + 1) + band) * 2
        key += (inside != prediction[start:stop]).ravel()
        counts += np.bincount(key, minlength=counts.size).reshape(counts.shape)
    counts[..., 0] += counts[..., 1]
    return counts
