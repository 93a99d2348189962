"""Area-weighted surface distances: the definition of DeepMind's `surface-distance`.

The surface passes between voxels. At every corner where 2x2x2 voxels meet (2D: 2x2), inside ones
and outside ones among them, lies an element, with the area of the marching-cubes triangles (2D:
the length of the marching-squares lines) for that pattern; beyond the image all is outside.
Distances run between corners, and each counts with its area.
Source: Nikolov et al., Deep learning to achieve clinically applicable segmentation of head and
neck anatomy, https://arxiv.org/abs/1809.04430.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdpipe.metrics.labelled import kernels, label_boxes, union_box
from kdpipe.metrics.nearest import surface_to_surface
from kdpipe.metrics.points import Points, three_axes

# Triangles of marching cubes for each pattern of eight voxels. A pattern is eight bits, the last
# voxel in C order the lowest one; a pattern and its complement have the same triangles, so half of
# them are listed, each by a letter. A triangle is the three components of its normal in eighths,
# without their signs; the length of the normal is the triangle's area for cubes of side 1.
_PATTERNS = (
    "abbcbdefbedfcffgbheiejklemnopqrsbehteumvekjwpxyfcitzABCipDEiFApc"
    "beephjmqekuxiwGfdjuHjIJKnLMuHjudekNOmLPmkQLkDkmefRviSKNhxkneAeeb"
)
_TRIANGLES = {
    "a": "", "b": "111", "c": "220 220", "d": "202 202", "e": "111 111", "f": "400 222 111",
    "g": "400 400", "h": "022 022", "i": "040 222 111", "j": "004 222 111", "k": "111 111 111",
    "l": "111 222 222 111", "m": "022 022 111", "n": "202 202 111", "o": "111 333 022 202",
    "p": "111 220 220", "q": "333 022 111 220", "r": "400 111 222 111", "s": "400 111 222",
    "t": "040 111 222", "u": "111 202 202", "v": "333 022 111 202", "w": "222 222 111 111",
    "x": "400 222 111 111", "y": "022 333 111 220", "z": "040 040", "A": "220 220 111",
    "B": "333 202 111 220", "C": "111 040 222 111", "D": "040 222 111 111",
    "E": "333 220 111 202", "F": "220 220 220 220", "G": "202 333 022 111",
    "H": "202 333 220 111", "I": "004 004", "J": "111 111 222 004", "K": "111 222 004",
    "L": "004 222 111 111", "M": "202 202 202 202", "N": "111 022 022", "O": "040 111 222 111",
    "P": "022 022 022 022", "Q": "111 111 111 111", "R": "222 111 222 111",
    "S": "333 220 022 111",
}  # fmt: skip


@dataclass(frozen=True)
class SurfaceElements:
    """Directed distances between surface elements with the elements' areas.

    Attributes:
        reference_to_prediction: distance in mm of every element of the reference to the nearest
            one of the prediction, ascending (equal ones by area), float64, shape `(m,)`. All
            `inf` if the prediction is empty, of length 0 if the reference is.
        reference_areas: of the same elements, in mm² (2D: lengths in mm), shape `(m,)`.
        prediction_to_reference: likewise, the other way round, shape `(n,)`.
        prediction_areas: shape `(n,)`.
    """

    reference_to_prediction: np.ndarray
    reference_areas: np.ndarray
    prediction_to_reference: np.ndarray
    prediction_areas: np.ndarray


def surface_elements(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    jit: bool | None = None,
) -> SurfaceElements:
    """Distances between the surface elements of two masks.

    Args:
        reference: boolean mask, shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        spacing_mm: distance between voxel centres along each axis of the arrays, in mm.
        jit: see `labelled.kernels`.
    """
    spacing = tuple(float(step) for step in spacing_mm)
    box = union_box([label_boxes(mask) for mask in (reference, prediction)], (1,))
    if box is None:
        return SurfaceElements(*(np.empty(0) for _ in range(4)))
    sides, areas = [], []
    for mask in (reference, prediction):
        patterns = _patterns(mask[box])
        index = np.flatnonzero((patterns != 0) & (patterns != 2 ** (2**mask.ndim) - 1))
        shape = patterns.shape if mask.ndim == 3 else (1, *patterns.shape)
        sides.append(Points(index, np.array([0, len(index)]), shape))
        areas.append(_areas(spacing)[patterns.ravel()[index]])
    back, there = surface_to_surface(sides[0], sides[1], three_axes(spacing), kernels(jit))
    answer: list[np.ndarray] = []
    for distances, area in ((there[0], areas[0]), (back[0], areas[1])):
        order = np.lexsort((area, distances))
        answer += [distances[order], area[order]]
    return SurfaceElements(*answer)


def robust_hausdorff(elements: SurfaceElements, percentile: float) -> float:
    """Larger one of the two directed percentiles by area, as `compute_robust_hausdorff`.

    Args:
        elements: see `surface_elements`.
        percentile: in (0, 100]: the distance within which this share of the area lies.

    Returns:
        Distance in mm; `inf` if either mask was empty.
    """
    return max(_percentile(*directed, percentile) for directed in _both(elements))


def surface_dice_at_tolerance(elements: SurfaceElements, tolerance_mm: float) -> float:
    """Surface dice by area, as `compute_surface_dice_at_tolerance`.

    Returns:
        Share in [0, 1] of the area of both surfaces that lies at most `tolerance_mm` from the
        other surface: 0 if one mask was empty, NaN if both were.
    """
    right = [np.sum(areas[distances <= tolerance_mm]) for distances, areas in _both(elements)]
    total = np.sum(elements.reference_areas) + np.sum(elements.prediction_areas)
    return float((right[0] + right[1]) / total) if total else math.nan


def average_surface_distance(elements: SurfaceElements) -> tuple[float, float]:
    """Mean distance by area, as `compute_average_surface_distance`.

    Returns:
        From reference to prediction and from prediction to reference, in mm; `inf` if either
        mask was empty.
    """
    there, back = (
        float(np.sum(distances * areas) / np.sum(areas)) if distances.size else math.inf
        for distances, areas in _both(elements)
    )
    return there, back


def _both(elements: SurfaceElements) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return (
        (elements.reference_to_prediction, elements.reference_areas),
        (elements.prediction_to_reference, elements.prediction_areas),
    )


def _percentile(distances: np.ndarray, areas: np.ndarray, percentile: float) -> float:
    if not distances.size:
        return math.inf
    reached = np.searchsorted(np.cumsum(areas) / np.sum(areas), percentile / 100.0)
    return float(distances[min(int(reached), len(distances) - 1)])


def _patterns(mask: np.ndarray) -> np.ndarray:
    """Bits of the voxels around every corner of the array, shape: one more along each axis."""
    patterns = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, upper in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        # The voxel after the corner along every axis is the lowest bit.
        place = tuple(slice(up, n + up) for up, n in zip(upper, mask.shape, strict=True))
        patterns[place] |= mask.view(np.uint8) << bit
    return patterns


@lru_cache(maxsize=64)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Area of the element for every pattern, in mm² (2D: length in mm)."""
    if len(spacing) == 2:
        diagonal = 0.5 * math.sqrt(spacing[0] ** 2 + spacing[1] ** 2)
        straight = {0b0011: spacing[1], 0b0101: spacing[0], 0b0110: 2 * diagonal}
        half = [0.0, *(straight.get(pattern, diagonal) for pattern in range(1, 8))]
    else:
        faces = (spacing[1], spacing[2]), (spacing[0], spacing[2]), (spacing[0], spacing[1])
        area = {
            letter: sum(
                float(
                    np.linalg.norm([int(n) / 8 * a * b for n, (a, b) in zip(t, faces, strict=True)])
                )
                for t in triangles.split()
            )
            for letter, triangles in _TRIANGLES.items()
        }
        half = [area[letter] for letter in _PATTERNS]
    return np.array(half + half[::-1])
