"""Slices of a case as a reader of images looks at them: oriented, in mm, with a grey window."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.errors import DataError
from kdpipe.images.files import itk_reason, read_image
from kdpipe.metrics.labelmaps import LabelMap

_THICK = 1.5
"""A spacing this many times the next one is that between acquired slices."""
_PERCENTILES = (0.5, 99.5)
_SAMPLES = 1 << 20
_MARGIN = 0.15  # of the structures' extent, around them
_LEAST_MARGIN = 6.0  # mm or pixels
_LEAST_SIDE = 4 * _LEAST_MARGIN
_FLATTEST, _TALLEST = 0.7, 1.35  # height to width of a frame
_ZOOM_BELOW = 0.6  # of the slice's area: above it, a frame shows hardly more
_OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))
#: axis through the slices -> their name, axis across, axis down
_PLANES = {
    "SI": ("axial", "LR", "PA"),
    "PA": ("coronal", "LR", "SI"),
    "LR": ("sagittal", "PA", "SI"),
}


@dataclass(frozen=True)
class View:
    """How slices of a volume lie on paper.

    Attributes:
        name: ``axial``, ``coronal``, ``sagittal``, or ``picture`` for a volume of one slice.
        axes: axes of the ``(Z, Y, X)`` array: through the slices, down, across.
        flips: whether down and across run against the array.
        spacing: mm (or voxels) in the order of `axes`.
        edges: patient's side on the left and at the top; empty for a picture.
    """

    name: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    spacing: tuple[float, float, float]
    edges: tuple[str, ...] = ()

    def slice(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Return slice `index` as (rows, columns), or (rows, columns, 3) of a colour image."""
        plane = np.take(volume, index, axis=self.axes[0])
        if self.axes[1] > self.axes[2]:
            plane = plane.swapaxes(0, 1)
        down, across = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        turned: np.ndarray = plane[down, across]
        return turned


def view_of(volume: LabelMap) -> View:
    """Return the view of the acquired slices; axial ones where all spacings are alike.

    Axial and coronal slices have the patient's right on the left, sagittal ones the front; axial
    ones have the front at the top, the others the head. One slice lies as it is stored.
    """
    if volume.labels.shape[0] == 1:
        return View("picture", (0, 1, 2), (False, False), _triple(volume.spacing_mm, (0, 1, 2)))
    cosines = tuple(volume.direction.ravel().tolist())
    codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(cosines)[::-1]
    through = _through(volume.spacing_mm, codes)
    name, *pairs = next(plane for pair, plane in _PLANES.items() if codes[through] in pair)
    across, down = (next(axis for axis in range(3) if codes[axis] in pair) for pair in pairs)
    ends = codes[across], codes[down]  # where they run to: left, back, feet are as on paper
    left, top = (end if end in "RAS" else _OPPOSITE[end] for end in ends)
    axes = (through, down, across)
    flips = (codes[down] in "RAS", codes[across] in "RAS")
    return View(name, axes, flips, _triple(volume.spacing_mm, axes), (left, top))


def _through(spacing: Sequence[float], codes: str) -> int:
    thick = int(np.argmax(spacing))
    others = [step for axis, step in enumerate(spacing) if axis != thick]
    if spacing[thick] >= _THICK * max(others):
        return thick
    return next(axis for axis in range(3) if codes[axis] in "SI")


def _triple(spacing: Sequence[float], axes: tuple[int, int, int]) -> tuple[float, float, float]:
    a, b, c = (float(spacing[axis]) for axis in axes)
    return a, b, c


def read_first_channel(files: Sequence[Path], case: str, like: LabelMap) -> np.ndarray:
    """Read the first channel of a case.

    Returns:
        (Z, Y, X), or (Z, Y, X, 3) uint8 of a colour picture.

    Raises:
        DataError: the file cannot be read, or has not the size of the label map.
    """
    try:
        image = read_image(files[0])
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise DataError(
            f"case {case}: cannot read {files[0]}: {itk_reason(error)}. Restore the file"
        ) from error
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        colour = voxels.dtype == np.uint8 and voxels.shape[-1] in (3, 4)
        voxels = voxels[..., :3] if colour else voxels[..., 0]
    if image.GetDimension() == 2:
        voxels = voxels[None]
    if voxels.shape[:3] != like.labels.shape:
        raise DataError(
            f"case {case}: {files[0]} has {voxels.shape[:3]} voxels (z, y, x) and its label map "
            f"{like.labels.shape}: mend the manifest or the files"
        )
    return voxels


def grey_window(voxels: np.ndarray, intensity: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the values that are shown black and white.

    Those of the preset where it has a window, the whole range of an 8-bit picture, else
    percentiles of the case.
    """
    if intensity and {"low", "high"} <= intensity.keys():
        return float(intensity["low"]), float(intensity["high"])
    if voxels.dtype == np.uint8 and voxels.shape[0] == 1:
        return 0.0, 255.0
    sample = voxels.reshape(-1)[:: max(1, voxels.size // _SAMPLES)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, _PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def to_grey(plane: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Scale a slice to [0, 1] by its window; what is not finite is black."""
    low, high = window
    scaled = (np.nan_to_num(plane.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (
        high - low
    )
    return np.clip(scaled, 0.0, 1.0)


@dataclass(frozen=True)
class Frame:
    """Rows and columns of a slice that are shown."""

    rows: slice
    columns: slice

    def of(self, plane: np.ndarray) -> np.ndarray:
        """Cut a slice."""
        return plane[self.rows, self.columns]


def frame_of(
    masks: Sequence[Mapping[str, np.ndarray]], spacing: tuple[float, float]
) -> tuple[Frame | None, bool]:
    """Return the part that holds all structures, None for the whole; and if it leaves out some.

    Where predictions reach far away from the reference, the frame is that of the reference alone.

    Args:
        masks: structure -> (rows, columns), of the reference and of each prediction.
        spacing: mm down and across.
    """
    reference, *others = (np.any(list(mask.values()), axis=0) for mask in masks)
    everything = np.any([reference, *others], axis=0)
    for inside in (everything, reference):
        if inside.any():
            frame = _around(inside, spacing)
            if frame.of(inside).size <= _ZOOM_BELOW * inside.size:
                return frame, bool(everything.sum() > frame.of(everything).sum())
    return None, False


def _around(mask: np.ndarray, spacing: tuple[float, float]) -> Frame:
    """Return a frame around a mask, neither very flat nor very tall."""
    spans = []
    for axis, step in enumerate(spacing):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        low, high = inside[0] * step, (inside[-1] + 1) * step
        half = (high - low) / 2 + max(_LEAST_MARGIN, _MARGIN * (high - low))
        spans.append(((low + high) / 2, max(half, _LEAST_SIDE / 2)))
    (row, tall), (column, wide) = spans
    tall, wide = max(tall, _FLATTEST * wide), max(wide, tall / _TALLEST)
    limits = ((row, tall, spacing[0]), (column, wide, spacing[1]))
    return Frame(*(_span(*limit, n) for limit, n in zip(limits, mask.shape, strict=True)))


def _span(centre: float, half: float, step: float, n: int) -> slice:
    """Return the voxels of a span in mm, moved into the slice where it is long enough."""
    length = min(n, max(1, math.ceil(2 * half / step)))
    start = min(max(0, round((centre - half) / step)), n - length)
    return slice(start, start + length)
