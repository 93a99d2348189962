"""Read label maps from files, and refuse what would be scored wrongly without a word.

What SimpleITK passes over in silence is checked first, see `kdpipe.images.files`.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from kdpipe.errors import DataError
from kdpipe.images.files import count_non_finite, is_nifti, itk_reason, read_image
from kdpipe.metrics.overlap import MAX_LABEL

# Largest distance in mm between corresponding image corners that still counts as one grid. Twice
# what the preparation allows between image and label, as a prediction lies on the image's grid.
CORNER_TOLERANCE_MM = 2e-2


@dataclass(frozen=True)
class LabelMap:
    """Labels of one file with their place in the world.

    Attributes:
        labels: integer labels, shape `(Z, Y, X)`; a picture has one slice.
        spacing_mm: voxel spacing in the order of the array axes.
        origin: world position in mm of the first voxel, in ITK's x, y, z order.
        direction: direction cosines, shape `(3, 3)`, columns are the x, y, z axes of the image.
    """

    labels: np.ndarray
    spacing_mm: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray

    def corners(self) -> np.ndarray:
        """World positions in mm of the outer corners of the image, shape `(8, 3)`."""
        sizes, spacing = self.labels.shape[::-1], np.array(self.spacing_mm[::-1])
        index = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in sizes))))
        corners: np.ndarray = np.array(self.origin) + (index * spacing) @ self.direction.T
        return corners

    def geometry(self) -> str:
        """Size, spacing, origin and direction in x, y, z order, for messages."""
        direction = [round(float(cosine), 6) for cosine in self.direction.ravel()]
        return (
            f"size {self.labels.shape[::-1]}, spacing {self.spacing_mm[::-1]}, "
            f"origin {self.origin}, direction {tuple(direction)}"
        )


def read_label_map(path: Path, case: str) -> LabelMap:
    """Read a 2D or 3D label map.

    Args:
        path: a .nii.gz, .nii, .nrrd or .mha file, or a picture such as .png, which is a volume of
            one slice.
        case: name of the case, for messages.

    Raises:
        DataError: there is no such file; it cannot be read or is truncated; it is not 2D or 3D
            with one value a voxel; its labels are not whole numbers in [0, 65535].
    """
    if not path.is_file():
        raise DataError(f"case {case}: there is no file {path}: check the path")
    try:
        not_finite = count_non_finite(path) if is_nifti(path) else 0
        image = read_image(path)
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        raise DataError(
            f"case {case}: cannot read {path}: {itk_reason(error)}. "
            "The file is damaged or truncated: write or download it again"
        ) from error
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise DataError(
            f"case {case}: {path} has size {image.GetSize()} with "
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel; a label map is 2D or 3D "
            "with one value a voxel: save the labels, not probabilities or channels"
        )
    if not_finite:
        raise _not_whole(not_finite, "NaN or infinity", path, case)
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    return LabelMap(
        labels=_as_labels(sitk.GetArrayFromImage(image), path, case),
        spacing_mm=image.GetSpacing()[::-1],
        origin=image.GetOrigin(),
        direction=np.array(image.GetDirection()).reshape(3, 3),
    )


def check_same_grid(case: str, reference: LabelMap, prediction: LabelMap) -> None:
    """Raise DataError unless both have one size and corners within `CORNER_TOLERANCE_MM`."""
    if reference.labels.shape == prediction.labels.shape:
        apart = np.linalg.norm(reference.corners() - prediction.corners(), axis=1).max()
        if apart <= CORNER_TOLERANCE_MM:
            return
        what = f"image corners up to {apart:.6g} mm apart"
    else:
        what = "different sizes"
    raise DataError(
        f"case {case}: reference and prediction are on different grids ({what}).\n"
        f"  reference:  {reference.geometry()}\n"
        f"  prediction: {prediction.geometry()}\n"
        "Resample the prediction to the reference's grid, nearest neighbour, before scoring; if "
        "only the header is wrong, copy the reference's"
    )


def _as_labels(values: np.ndarray, path: Path, case: str) -> np.ndarray:
    """Return `values` as integers; DataError unless they are whole numbers in the label range."""
    if values.dtype.kind not in "fiu":
        raise DataError(
            f"case {case}: {path} holds {values.dtype} values; a label map needs integers"
        )
    if values.dtype.kind == "f":
        # Some writers store labels as floats; whole ones lose nothing.
        whole = np.isfinite(values) & (values == np.round(values))
        if not whole.all():
            raise _not_whole(int((~whole).sum()), values[~whole][0], path, case)
    low, high = values.min(), values.max()
    if low < 0 or high > MAX_LABEL:
        raise DataError(
            f"case {case}: labels of {path} range from {low} to {high}; "
            f"they must lie in [0, {MAX_LABEL}]: renumber them"
        )
    return values.astype(np.uint8 if high < 256 else np.uint16, copy=False)


def _not_whole(count: int, example: object, path: Path, case: str) -> DataError:
    return DataError(
        f"case {case}: {path} holds {count} values that are no whole numbers, for example "
        f"{example}; a label map needs integers: save the labels, not probabilities, and resample "
        "labels with nearest neighbour"
    )
