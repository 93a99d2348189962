"""Read a case, and refuse what would spoil a training or an evaluation.

A superset of nnU-Net's `verify_dataset_integrity`. Its warning of differing affines is an error
here: a label map on a shifted grid trains and scores wrongly. What needs more than one case, or
is odd rather than wrong, is found by `kdpipe.data.checks.data_set`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from kdpipe.cards import Waiver
from kdpipe.data.checks.findings import CheckError, Finding, Level, waive
from kdpipe.data.geometry import Grid, to_array, view_of
from kdpipe.images.files import (
    count_non_finite,
    is_nifti,
    is_nifti_pair,
    itk_reason,
    read_image,
)
from kdpipe.labels import Labels

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

MAX_DISPLACEMENT_MM = 1e-2
"""Largest distance of two corners that should be the same point: a hundredth of a millimetre is
far above the rounding of float32 headers and far below what a voxel could notice."""
MAX_SHEAR = 1e-3
"""Largest cosine between two axes."""
_MENDS = {
    "orthonormal": ("D06", "write it again with orthonormal axes"),
    "determinant is 0": (
        "D06", "two axes do not say how a slice stands: write it as a volume (X, Y, 1)"
    ),
}  # fmt: skip
_NON_FINITE = "{} voxels are NaN or infinite; fill them or replace the file"


def read_case(case: Case) -> tuple[list[sitk.Image], sitk.Image]:
    """Read the images, one a channel, and the label map of a case, as volumes.

    A 4D image (Medical Segmentation Decathlon) becomes one 3D image a volume, a colour picture
    one a colour. A 2D image is a volume of one slice.

    Raises:
        CheckError: for a missing, damaged, truncated or unreadable file, or one that is neither 2D
            nor 3D.
    """
    images = read_images(case.images, case.case)
    label = read_volume(case.label, case.case)
    if label.GetNumberOfComponentsPerPixel() != 1:
        what = "label map of colour or vector voxels"
        raise _refusal("D07", case.case, case.label, f"{what}; store one label id a voxel")
    _check_kind(case.case, case.label, label, "label map")
    return images, _as_volume(label)


def read_images(files: Sequence[Path], case: str) -> list[sitk.Image]:
    """Read the images of a case, one a channel, as `read_case` does; no label is needed.

    Raises:
        CheckError: as `read_case`.
    """
    return as_channels([read_volume(file, case) for file in files], files, case)


def as_channels(images: list[sitk.Image], files: Sequence[Path], case: str) -> list[sitk.Image]:
    """Return the volumes, one a channel, of the images that `files` hold.

    Raises:
        CheckError: an image is neither 2D nor 3D, nor 4D or of colours where it is the only one.
    """
    if len(images) == 1:
        images = _channels(images[0])
    for image, file in zip(images, _file_of_each(files, len(images)), strict=True):
        _check_kind(case, file, image, "image")
    return [_as_volume(image) for image in images]


def _file_of_each(files: Sequence[Path], channels: int) -> Sequence[Path]:
    return files if len(files) == channels else tuple(files) * channels


def _check_kind(case: str, file: Path, image: sitk.Image, what: str) -> None:
    if image.GetDimension() not in (2, 3):
        axes = f"{what} has {image.GetDimension()} axes, 2 or 3 are expected"
        mend = "store one file a channel, or one 4D file in all"
        raise _refusal("D02", case, file, f"{axes}; {mend}")
    if image.GetNumberOfComponentsPerPixel() != 1:
        mend = "store one number a voxel, or one colour picture in all"
        raise _refusal("D02", case, file, f"{what} of colour or vector voxels; {mend}")


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
        CheckError: for a missing, damaged, truncated or unreadable file.
    """
    if not file.is_file():
        mend = "restore it or take the case out of the data set"
        raise _refusal("D01", case, file, f"no such file; {mend}")
    try:
        checked = is_nifti(file) or is_nifti_pair(file)
        wrong = count_non_finite(file) if checked else 0
        image = read_image(file)
    except ValueError as error:
        raise _refusal("D16", case, file, f"not readable ({error}); replace it") from None
    except (OSError, EOFError, zlib.error) as error:
        what = f"damaged ({error}); fetch or copy the file again"
        raise _refusal("D16", case, file, what) from None
    except RuntimeError as error:
        reason = itk_reason(error)
        known = (_MENDS[key] for key in _MENDS if key in reason)
        code, mend = next(known, ("D16", "replace it"))
        raise _refusal(code, case, file, f"not readable ({reason}); {mend}") from None
    if wrong:
        raise _refusal("D09", case, file, _NON_FINITE.format(wrong))
    return image


def check_case(
    case: Case,
    images: Sequence[sitk.Image],
    label: sitk.Image,
    labels: Labels,
    channels: Sequence[str],
    waivers: Sequence[Waiver] = (),
) -> list[Finding]:
    """Check what `read_case` returned against the card.

    Args:
        case: for messages.
        images: 3D, one a channel.
        label: 3D.
        labels: ids and names, and which structures a case may lack.
        channels: names of the channels.
        waivers: errors that are accepted. A label map whose differing affine (D03) is accepted
            counts as lying on the image's grid.

    Returns:
        Findings that do not stop: warnings and waived errors. `file` is the whole path.

    Raises:
        CheckError: names the case and each failed check with its file.
    """
    if len(images) != len(channels):
        what = (
            f"{len(images)} channels found, the card names {len(channels)}: {', '.join(channels)}; "
            "mend the card's channels or the files of the case"
        )
        raise _refusal("D02", case.case, case.images[0], what)
    findings = check_images(case.case, case.images, images)
    findings += _check_grid(case.case, case.label, label, images[0])
    findings += _check_label(case, label, labels)
    found = waive(dict.fromkeys(findings), waivers)
    if any(finding.stops for finding in found):
        raise refuse(found)
    return found


def check_images(case: str, files: Sequence[Path], images: Sequence[sitk.Image]) -> list[Finding]:
    """Check the channels of a case, which are 3D: one grid, finite numbers, more than one value."""
    findings: list[Finding] = []
    for image, file in zip(images, _file_of_each(files, len(images)), strict=True):
        findings += _check_grid(case, file, image, images[0])
        findings += _check_image(case, file, image)
    return findings


def refuse(findings: Sequence[Finding]) -> CheckError:
    """Return the error that says why a case is refused: a line for each finding that stops."""
    return CheckError("\n".join(str(f) for f in findings if f.stops), findings)


def _check_grid(
    case: str, file: Path, image: sitk.Image, reference: sitk.Image
) -> Iterator[Finding]:
    size, expected = image.GetSize(), reference.GetSize()
    if min(size[:2]) < 2:
        what = (
            f"shape {size}: only the last axis may have a single voxel; store slices along the "
            "last axis, or a 2D picture"
        )
        yield _error("D02", case, file, what, waivable=False)
    if size != expected:
        what = (
            f"shape {size} differs from the first image's {expected}; pair the right files or "
            "resample one onto the other"
        )
        yield _error("D02", case, file, what, waivable=False)
        return
    grid = Grid.of(image)
    shear = float(np.abs(grid.axes.T @ grid.axes - np.eye(3)).max())
    if shear > MAX_SHEAR:
        what = f"axes are sheared, cosine {shear:.3g}; write it again with orthonormal axes"
        yield _error("D06", case, file, what)
    away = np.abs(grid.corners() - Grid.of(reference).corners())
    distance = float(np.linalg.norm(away, axis=1).max())
    if not distance <= MAX_DISPLACEMENT_MM:
        what = (
            f"affine differs from the first image's: corners up to {distance:.4g} mm apart, "
            f"allowed {MAX_DISPLACEMENT_MM} mm; mend the header (copy the image's affine if it is "
            "right)"
        )
        yield _error("D03", case, file, what)


def _check_image(case: str, file: Path, image: sitk.Image) -> Iterator[Finding]:
    voxels = view_of(image)
    if wrong := _non_finite(voxels):
        yield _error("D09", case, file, _NON_FINITE.format(wrong), waivable=False)
        return
    low, high = voxels.min(), voxels.max()
    if low == high:
        what = f"constant image, every voxel is {low}; replace the file"
        yield _error("D09", case, file, what)


def _check_label(case: Case, label: sitk.Image, labels: Labels) -> Iterator[Finding]:
    voxels, file = to_array(label), case.label
    if wrong := _non_finite(voxels):
        yield _error("D09", case.case, file, _NON_FINITE.format(wrong), waivable=False)
        return
    found = np.unique(voxels)
    if broken := [float(value) for value in found if value != np.floor(value)]:
        what = f"label values that are no integers: {_some(broken)}; store integer ids"
        yield _error("D07", case.case, file, what, waivable=False)
    if unknown := [int(value) for value in found if int(value) not in labels.raw]:
        what = (
            f"label values not in the card: {_some(unknown)}; the card has {sorted(labels.raw)}; "
            "mend the card's labels.raw or the label map"
        )
        yield _error("D07", case.case, file, what, waivable=False)
    present = {int(value) for value in found}
    if not present - {0}:
        if label.GetSize()[2] == 1:  # a slice may show nothing
            yield _finding("D08", "warning", case.case, file, "empty label map")
            return
        what = (
            "empty label map, no foreground voxel; replace the file or take the case out of the "
            "data set"
        )
        yield _error("D08", case.case, file, what)
    elif labels.may_be_absent != "all":
        for name, index in labels.structures.items():
            if index not in present and name not in labels.may_be_absent:
                yield _finding("D08", "warning", case.case, file, f"lacks {name}")


def _non_finite(voxels: np.ndarray) -> int:
    return int(voxels.size - np.isfinite(voxels).sum()) if voxels.dtype.kind == "f" else 0


def _some(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _finding(code: str, level: Level, case: str, file: Path, text: str) -> Finding:
    return Finding(code, level, text, case, str(file))


def _error(code: str, case: str, file: Path, text: str, waivable: bool = True) -> Finding:
    return Finding(code, "error", text, case, str(file), waivable)


def _refusal(code: str, case: str, file: Path, text: str) -> CheckError:
    return refuse([Finding(code, "error", text, case, str(file), waivable=False)])
