"""From native images to the network's input: orient, resample, scale, crop.

Nothing here looks at a label to decide how an image is prepared, so a new scan without labels is
prepared in just the same way.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.data.geometry import SLAB, Grid, to_array, to_image, view_of
from kdpipe.data.preparation.resampling import CUBIC, LINEAR, image_at, one_hot_at
from kdpipe.errors import DataError
from kdpipe.presets import Intensity, Preparation, Rescale, Standardize, Window, ZScore

CROP_MARGIN = 2
"""Voxels kept around the foreground, so that its border keeps some context."""
LARGEST = float(np.finfo(np.float16).max)
"""Of the numbers that the prepared store can hold."""


def prepare_images(
    images: list[sitk.Image], preset: Preparation, release: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Prepare the channels of one case, slab by slab: the whole is in memory once as float32.

    Args:
        images: C 3D images on one grid.
        preset: how to.
        release: empty the list `images` as soon as they are not needed, for the memory's sake.

    Returns:
        image (C, X, Y, Z) float32, axes in the order of `preset.orientation`, in [0, 1] for a
        window and of mean 0 and standard deviation 1 for a z-score; and its geometry, which is
        JSON-serialisable: grids `native`, `oriented` and `prepared`, `orientation`, `crop_start`
        (voxels), `intensity` (what was done, one a channel) and `pad_value`.

    Raises:
        DataError: if nothing is left to see: all voxels outside the window or of one value; or if
            there is too much for the store's half precision.
    """
    native = Grid.of(images[0])
    oriented = [_orient(image, preset.orientation) for image in images]
    if release:
        images.clear()
        gc.collect()  # SimpleITK's images lie in cycles of references
    grid = Grid.of(oriented[0])
    if 1 in grid.size[:2]:
        raise DataError(
            f"a single slice, which lies along another axis than the third in {preset.orientation} "
            "order; set orientation: null in the preset"
        )
    full = grid if preset.spacing is None else grid.respaced(preset.spacing)
    intensities = preset.intensities(len(oriented))
    foreground = _foreground(oriented, full, intensities)
    box = _bounding_box(np.any(foreground, axis=0)) if preset.crop_foreground else _everything(full)
    prepared = full.cropped([side.start for side in box], [side.stop - side.start for side in box])
    image = np.empty((len(oriented), *prepared.size), np.float32)
    done = []
    for number, (raw, intensity) in enumerate(zip(oriented, intensities, strict=True)):
        _resample(raw, prepared, preset.image_interpolation, out=image[number])
        mask = foreground[number][box]
        done.append(_scale(number, image[number], mask, view_of(raw), intensity))
    windowed = all(isinstance(intensity, Window) for intensity in intensities)
    _check_range(image)
    return image, {
        "native": native._asdict(),
        "oriented": grid._asdict(),
        "prepared": prepared._asdict(),
        "orientation": preset.orientation,
        "crop_start": [side.start for side in box],
        "intensity": done,
        "pad_value": float(image.min()) if windowed else 0.0,
    }


def prepare_label(label: sitk.Image, geometry: dict[str, Any]) -> np.ndarray:
    """Carry a label map onto the prepared grid of its image.

    Each class is interpolated linearly and the largest wins (SimpleITK's `sitkLabelLinear`), so
    no id appears that was not there.

    Args:
        label: 3D, on the image's grid, ids 0..255.
        geometry: as `prepare_images` returned it.

    Returns:
        (X, Y, Z) uint8.
    """
    native, prepared = (Grid.from_dict(geometry[name]) for name in ("native", "prepared"))
    on_image_grid = to_image(to_array(label).astype(np.uint8, copy=False), native)
    oriented = _orient(on_image_grid, geometry["orientation"])
    coordinates, _ = Grid.of(oriented).coordinates_of(prepared)
    return one_hot_at(to_array(oriented), coordinates)


def _orient(image: sitk.Image, orientation: str | None) -> sitk.Image:
    if orientation in (None, Grid.of(image).orientation):
        return image
    turned: sitk.Image = sitk.DICOMOrient(image, orientation)
    return turned


def _resample(image: sitk.Image, grid: Grid, interpolation: str, out: np.ndarray) -> None:
    """Write the image on `grid` to `out`, (X, Y, Z) float32, within the range of the input.

    A B-spline is of little sense along fewer than four voxels: thinner images are interpolated
    linearly.
    """
    voxels = view_of(image)
    coordinates, _ = Grid.of(image).coordinates_of(grid)
    if all(_on_voxels(c, n) for c, n in zip(coordinates, voxels.shape, strict=True)):
        x, y, z = (c.astype(int) for c in coordinates)
        for begin in range(0, len(z), SLAB):
            part = z[begin : begin + SLAB]
            out[:, :, begin : begin + SLAB] = voxels[np.ix_(x, y, part)]
        return
    spline = interpolation == "bspline" and min(image.GetSize()) >= 4
    image_at(voxels, coordinates, CUBIC if spline else LINEAR, out)


def _on_voxels(positions: np.ndarray, n: int) -> bool:
    whole = bool((positions == np.round(positions)).all())
    return whole and positions.min() >= 0 and positions.max() <= n - 1


def _foreground(
    oriented: Sequence[sitk.Image], grid: Grid, intensities: Sequence[Intensity]
) -> np.ndarray:
    """Return where the raw image is above the window's low, or not zero: (C, X, Y, Z) bool.

    The mask is resampled by itself: around a background of one value a B-spline rings, and hardly
    a voxel would have exactly that value afterwards.
    """
    foreground = np.empty((len(oriented), *grid.size), bool)
    for number, (raw, intensity) in enumerate(zip(oriented, intensities, strict=True)):
        voxels = view_of(raw)
        mask = voxels > intensity.low if isinstance(intensity, Window) else voxels != 0
        coordinates, _ = Grid.of(raw).coordinates_of(grid)
        foreground[number] = one_hot_at(mask.astype(np.uint8), coordinates)
    return foreground


def _scale(
    number: int, image: np.ndarray, foreground: np.ndarray, raw: np.ndarray, intensity: Intensity
) -> dict[str, Any]:
    """Scale one channel, `image` (X, Y, Z), in place; return what was done."""
    done = intensity.model_dump()
    if isinstance(intensity, ZScore):
        return done | _zscore(number, image, foreground, raw, intensity)
    if isinstance(intensity, Window | Standardize):
        np.clip(image, intensity.low, intensity.high, out=image)
    low, high = float(image.min()), float(image.max())
    if isinstance(intensity, Window | Standardize) and low == high:
        raise DataError(
            f"channel {number}: all voxels are of one value or on one side of the window "
            f"[{intensity.low:g}, {intensity.high:g}]; check the image's units or the preset"
        )
    if isinstance(intensity, Window):
        image -= intensity.low
        image /= intensity.high - intensity.low
    elif isinstance(intensity, Standardize):
        image -= intensity.mean
        image /= intensity.sd
    elif isinstance(intensity, Rescale):
        if low == high:
            raise DataError(
                f"channel {number}: every voxel is {low:g}, a range of [0, 1] needs two values; "
                "replace the image"
            )
        image -= low
        image /= high - low
        done |= {"low": low, "high": high}
    return done


def _check_range(image: np.ndarray) -> None:
    """Refuse what the store would turn into infinity."""
    for number, channel in enumerate(image):
        largest = max(-float(channel.min()), float(channel.max()))
        if largest > LARGEST:
            raise DataError(
                f"channel {number}: intensities up to {largest:g} in size after the preparation, "
                f"{LARGEST:g} can be stored; choose an intensity in the preset that scales them"
            )


def _zscore(
    number: int, image: np.ndarray, foreground: np.ndarray, raw: np.ndarray, zscore: ZScore
) -> dict[str, float]:
    """Scale `image` (X, Y, Z) in place; return the statistics.

    They come from the image before resampling. With `nonzero` the background stays 0, as in
    MONAI's `NormalizeIntensity`.
    """
    mean, deviation = _statistics(raw, zscore.nonzero)
    if deviation == 0:
        which, mend = "", ""
        if zscore.nonzero:
            which, mend = "non-zero ", " or set nonzero: false in the preset"
        raise DataError(
            f"channel {number}: all {which}voxels are equal, a z-score needs a spread; "
            f"replace the image{mend}"
        )
    image -= mean
    image /= deviation
    if zscore.nonzero:
        image[~foreground] = 0
    return {"mean": mean, "sd": deviation}


def _statistics(raw: np.ndarray, nonzero: bool) -> tuple[float, float]:
    """Mean and standard deviation in double precision, read plane by plane."""

    def total(function: Callable[[np.ndarray], np.ndarray]) -> float:
        planes = (raw[:, :, z] for z in range(raw.shape[2]))
        values = (plane[plane != 0] if nonzero else plane for plane in planes)
        return sum(float(function(v.astype(np.float64)).sum()) for v in values)

    count = total(np.ones_like)
    mean = total(lambda values: values) / count
    return mean, math.sqrt(total(lambda values: (values - mean) ** 2) / count)


def _bounding_box(foreground: np.ndarray) -> tuple[slice, ...]:
    """Return the box of the true voxels with its margin; the whole volume if there are none."""
    if not foreground.any():
        return tuple(slice(0, n) for n in foreground.shape)
    box = []
    for axis, n in enumerate(foreground.shape):
        others = tuple(other for other in range(foreground.ndim) if other != axis)
        planes = np.flatnonzero(foreground.any(axis=others))
        low, high = max(0, planes[0] - CROP_MARGIN), min(n, planes[-1] + 1 + CROP_MARGIN)
        box.append(slice(int(low), int(high)))
    return tuple(box)


def _everything(grid: Grid) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in grid.size)
