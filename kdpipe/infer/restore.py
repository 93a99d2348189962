"""From scores on the prepared grid back to a label map on the native grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.atomic import atomic_path
from kdpipe.data.geometry import ON_A_VOXEL, Grid, labels_at, to_image
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError


def restore_labels(scores: np.ndarray, geometry: dict[str, Any], targets: Targets) -> sitk.Image:
    """Return the label map of a case on its native grid, with the native affine.

    Where the grids differ by axis order, flips and crop only, voxels are copied. Otherwise each
    channel's score is interpolated linearly, then turned into labels; a native voxel whose eight
    prepared neighbours agree needs no interpolation, so that no native score volume ever exists.
    Voxels outside the prepared (cropped) region are background.

    Args:
        scores: (K, X, Y, Z) float, logits.
        geometry: of the prepared case, `StoredCase.geometry`.
        targets: what the channels stand for.

    Returns:
        uint8 image.

    Raises:
        DataError: if `scores` is not finite or does not fit the geometry.
    """
    native, prepared = (Grid.from_dict(geometry[name]) for name in ("native", "prepared"))
    if scores.ndim != 4 or scores.shape[1:] != prepared.size:
        raise DataError(
            f"scores have shape {scores.shape}, the prepared grid is {prepared.size}; "
            "predict with the case that the geometry belongs to"
        )
    if not all(np.isfinite([score.min(), score.max()]).all() for score in scores):
        raise DataError("scores have NaN or infinite values; the network's weights are broken")
    coordinates, order = prepared.coordinates_of(native)
    inside = [
        np.flatnonzero((position >= -0.5 - ON_A_VOXEL) & (position <= n - 0.5 + ON_A_VOXEL))
        for position, n in zip(coordinates, prepared.size, strict=True)
    ]
    labels = np.zeros([len(position) for position in coordinates], np.uint8)
    near = [position[where] for position, where in zip(coordinates, inside, strict=True)]
    labels[np.ix_(*inside)] = labels_at(targets.decode(scores), near, scores, targets.decode)
    return to_image(labels.transpose(order), native)


def restore_case(
    scores: np.ndarray, geometry: dict[str, Any], targets: Targets, out: Path, case: str
) -> Path:
    """Write `<out>/<case>.nii.gz` from the scores of a case, see `restore_labels`.

    Returns:
        The file, written as a whole or not at all.
    """
    try:
        image = restore_labels(scores, geometry, targets)
    except DataError as error:
        raise DataError(f"case {case!r}: {error}") from None
    return _write(image, out / f"{case}.nii.gz")


def keep_case(
    scores: np.ndarray, geometry: dict[str, Any], targets: Targets, out: Path, case: str
) -> Path:
    """Write `<out>/<case>.nii.gz` on the prepared grid, where each voxel has scores of its own.

    Args:
        scores: (K, X, Y, Z) float, logits, as `restore_labels` has checked them.
        geometry: of the prepared case, `StoredCase.geometry`.
        targets: what the channels stand for.
        out: folder of label maps, made if it is not there.
        case: id of the case.

    Returns:
        The file, written as a whole or not at all.
    """
    image = to_image(targets.decode(scores), Grid.from_dict(geometry["prepared"]))
    return _write(image, out / f"{case}.nii.gz")


def _write(image: sitk.Image, file: Path) -> Path:
    with atomic_path(file) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
    return file
