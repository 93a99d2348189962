"""Read a case, and refuse what would spoil a training or an evaluation.

A superset of nnU-Net's `verify_dataset_integrity`. Its warning of differing affines is an error
here: a label map on a shifted grid trains and scores wrongly.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from kdpipe.data.geometry import Grid, to_array
from kdpipe.errors import DataError
from kdpipe.images.files import count_non_finite, is_nifti, itk_reason, read_image
from kdpipe.labels import Labels

if TYPE_CHECKING:
    from kdpipe.data.layout import Case

MAX_DISPLACEMENT_MM = 1e-2
"""Largest distance of two corners that should be the same point: a hundredth of a millimetre is
far above the rounding of float32 headers and far below what a voxel could notice."""
_MENDS = {
    "orthonormal": "write it again with orthonormal axes",
    "determinant is 0": "two axes do not say how a slice stands: write it as a volume (X, Y, 1)",
}
_NON_FINITE = "{} voxels are NaN or infinite; fill them or replace the file"


def read_case(case: Case) -> tuple[list[sitk.Image], sitk.Image]:
    """Read the images, one a channel, and the label map of a case, as volumes.

    A 4D image (Medical Segmentation Decathlon) becomes one 3D image a volume, a colour picture
    one a colour. A 2D image is a volume of one slice.

    Raises:
        DataError: for a missing, damaged, truncated or unreadable file, or one that is neither 2D
            nor 3D.
    """
    images = [read_volume(file, case.case) for file in case.images]
    label = read_volume(case.label, case.case)
    if label.GetNumberOfComponentsPerPixel() != 1:
        what = "label map of colour or vector voxels"
        raise _error(case, case.label, what, "store one label id a voxel")
    if len(images) == 1:
        images = _channels(images[0])
    files = case.images if len(case.images) == len(images) else case.images * len(images)
    for image, file, what in (
        *zip(images, files, ["image"] * len(images), strict=True),
        (label, case.label, "label map"),
    ):
        if image.GetDimension() not in (2, 3):
            axes = f"{what} has {image.GetDimension()} axes, 2 or 3 are expected"
            raise _error(case, file, axes, "store one file a channel, or one 4D file in all")
        if image.GetNumberOfComponentsPerPixel() != 1:
            mend = "store one number a voxel, or one colour picture in all"
            raise _error(case, file, f"{what} of colour or vector voxels", mend)
    return [_as_volume(image) for image in images], _as_volume(label)


def _channels(image: sitk.Image) -> list[sitk.Image]:
    if image.GetDimension() == 4:
        return [image[..., i] for i in range(image.GetSize()[3])]
    colours = image.GetNumberOfComponentsPerPixel()
    if colours > 1:
        return [sitk.VectorIndexSelectionCast(image, i) for i in range(colours)]
    return [image]


def _as_volume(image: sitk.Image) -> sitk.Image:
    return sitk.JoinSeries(image) if image.GetDimension() == 2 else image


def read_volume(file: Path, case: str) -> sitk.Image:
    """Read one image of any dimension after checking the file's checksum and length.

    Raises:
        DataError: for a missing, damaged, truncated or unreadable file.
    """
    where = f"case {case!r}, {file}"
    if not file.is_file():
        raise DataError(f"{where}: no such file; restore it or take the case out of the data set")
    try:
        wrong = count_non_finite(file) if is_nifti(file) else 0
        image = read_image(file)
    except ValueError as error:
        raise DataError(f"{where}: not readable ({error}); replace it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error}); fetch or copy the file again") from None
    except RuntimeError as error:
        reason = itk_reason(error)
        mends = (mend for key, mend in _MENDS.items() if key in reason)
        mend = next(mends, "replace it")
        raise DataError(f"{where}: not readable ({reason}); {mend}") from None
    if wrong:
        raise DataError(f"{where}: {_NON_FINITE.format(wrong)}")
    return image


def check_case(
    case: Case,
    images: Sequence[sitk.Image],
    label: sitk.Image,
    labels: Labels,
    channels: Sequence[str],
) -> list[str]:
    """Check what `read_case` returned against the card.

    Returns:
        Warnings: structures that the case lacks although the card does not list them in
        `labels.may_be_absent`.

    Raises:
        DataError: for the first failed check; names the case and the file.
    """
    if len(images) != len(channels):
        what = (
            f"{len(images)} channels found, the card names {len(channels)}: {', '.join(channels)}"
        )
        mend = "mend the card's channels or the files of the case"
        raise _error(case, case.images[0], what, mend)
    files = case.images if len(case.images) == len(images) else case.images * len(images)
    for image, file in zip(images, files, strict=True):
        _check_grid(case, file, image, images[0])
        _check_image(case, file, image)
    _check_grid(case, case.label, label, images[0])
    return _check_label(case, label, labels)


def _check_grid(case: Case, file: Path, image: sitk.Image, reference: sitk.Image) -> None:
    size, expected = image.GetSize(), reference.GetSize()
    if min(size[:2]) < 2:
        what = f"shape {size}: only the last axis may have a single voxel"
        raise _error(case, file, what, "store slices along the last axis, or a 2D picture")
    if size != expected:
        what = f"shape {size} differs from the first image's {expected}"
        raise _error(case, file, what, "pair the right files or resample one onto the other")
    away = np.abs(Grid.of(image).corners() - Grid.of(reference).corners())
    distance = float(np.linalg.norm(away, axis=1).max())
    if not distance <= MAX_DISPLACEMENT_MM:
        what = (
            f"affine differs from the first image's: corners up to {distance:.4g} mm apart, "
            f"allowed {MAX_DISPLACEMENT_MM} mm"
        )
        raise _error(case, file, what, "mend the header (copy the image's affine if it is right)")


def _check_image(case: Case, file: Path, image: sitk.Image) -> None:
    voxels = to_array(image)
    _check_finite(case, file, voxels)
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise _error(case, file, f"constant image, every voxel is {low}", "replace the file")


def _check_label(case: Case, label: sitk.Image, labels: Labels) -> list[str]:
    voxels = to_array(label)
    _check_finite(case, case.label, voxels)
    found = np.unique(voxels)
    broken = [float(value) for value in found if value != np.floor(value)]
    if broken:
        what = f"label values that are no integers: {_some(broken)}"
        raise _error(case, case.label, what, "store the label map with integer ids")
    unknown = [int(value) for value in found if int(value) not in labels.raw]
    if unknown:
        what = f"label values not in the card: {_some(unknown)}; the card has {sorted(labels.raw)}"
        raise _error(case, case.label, what, "mend the card's labels.raw or the label map")
    present = {int(value) for value in found}
    if not present - {0}:
        if label.GetSize()[2] == 1:  # a slice may show nothing
            return ["empty label map"]
        mend = "replace the file or take the case out of the data set"
        raise _error(case, case.label, "empty label map, no foreground voxel", mend)
    if labels.may_be_absent == "all":
        return []
    missing = [name for name, i in labels.structures.items() if i not in present]
    return [f"lacks {name}" for name in missing if name not in labels.may_be_absent]


def _check_finite(case: Case, file: Path, voxels: np.ndarray) -> None:
    if voxels.dtype.kind == "f":
        wrong = int(voxels.size - np.isfinite(voxels).sum())
        if wrong:
            raise DataError(f"case {case.case!r}, {file}: {_NON_FINITE.format(wrong)}")


def _some(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _error(case: Case, file: Path, what: str, mend: str) -> DataError:
    return DataError(f"case {case.case!r}, {file}: {what}; {mend}")
