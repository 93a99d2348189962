"""What the checks of a whole data set need to know of each case, so that no file is read twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from kdpipe.data.checks.hashes import hash_image
from kdpipe.data.geometry import Grid, to_array
from kdpipe.images.files import is_nifti
from kdpipe.labels import Labels

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

Facts = dict[str, Any]
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_ROUNDING_MM = 0.05
_TO_RAS = np.array([-1.0, -1.0, 1.0])


def case_facts(
    case: Case, images: Sequence[sitk.Image], label: sitk.Image, labels: Labels
) -> Facts:
    """Collect the facts of a case that `kdpipe.data.checks.integrity` has passed.

    Args:
        case: its files.
        images: 3D, one a channel.
        label: 3D, ids of `labels.raw`.
        labels: names of the ids.

    Returns:
        JSON-serialisable: `headers` of the NIfTI files; `types` of the voxels, the label map's
        last; `range` (smallest, largest) of each channel; `structures` that are there, see
        `measure`; `centre` of the grid, mm, RAS; `exact` hash of each channel and `rough` hash of
        the first.
    """
    grid = Grid.of(images[0])
    hashes = [hash_image(image) for image in images]
    return {
        "headers": [header_facts(file) for file in (*case.images, case.label) if is_nifti(file)],
        "types": [image.GetPixelIDTypeAsString() for image in (*images, label)],
        "range": [_range(image) for image in images],
        "structures": measure(to_array(label), grid, labels),
        "centre": (grid.corners().mean(axis=0) * _TO_RAS).tolist(),
        "exact": [exact for exact, _ in hashes],
        "rough": hashes[0][1],
    }


def header_facts(file: Path) -> Facts:
    """Return how a NIfTI file says where its voxels lie, and what SimpleITK makes of it.

    Returns:
        `file` (name and folder); the codes `qform` and `sform`, 0 for none; `apart_mm`, the
        largest distance of a corner by the one from that by the other, None without both; `read`,
        which of them SimpleITK uses: ``qform``, ``sform``, ``both`` or ``neither``.
    """
    header: Any = nib.load(file).header  # NIfTI's, which the type of `load` does not know
    shape = tuple(header.get_data_shape()[:3])
    size = (*shape, *[1] * (3 - len(shape)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel's, of quaternions that it mends
        codes = {kind: int(header[f"{kind}_code"]) for kind in ("qform", "sform")}
        corners = {
            kind: _corners(getattr(header, f"get_{kind}")(), size)
            for kind, code in codes.items()
            if code > 0
        }
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    used = _reader_corners(reader, size)
    fits = [kind for kind, found in corners.items() if np.abs(found - used).max() <= _ROUNDING_MM]
    apart = None
    if len(corners) == 2:
        away = np.linalg.norm(corners["qform"] - corners["sform"], axis=1)
        apart = float(away.max())
    return {
        "file": "/".join(file.parts[-2:]),
        **codes,
        "apart_mm": apart,
        "read": "both" if len(fits) == 2 else (fits or ["neither"])[0],
    }


def measure(label: np.ndarray, grid: Grid, labels: Labels) -> dict[str, Facts]:
    """Return size and place of the structures in a label map, read slice by slice.

    Args:
        label: (X, Y, Z) ids of `labels.raw`.
        grid: of the label map.
        labels: names of the ids.

    Returns:
        For each structure that is there: `voxels`; `ml`; `centroid`, mm, RAS; `touches`, the faces
        of the volume that it reaches as axis codes, such as ``IS`` for the lowest and the highest
        slice. An axis of one voxel has no faces.
    """
    n = len(labels.raw)
    along = [np.zeros((n, size), np.int64) for size in label.shape]
    offsets = [np.arange(size)[:, None] * n for size in label.shape[:2]]
    for z in range(label.shape[2]):
        plane = label[:, :, z].astype(np.int64)
        for axis, values in enumerate((plane, plane.T)):
            flat = (values + offsets[axis]).ravel()
            counts = np.bincount(flat, minlength=n * values.shape[0])
            along[axis] += counts.reshape(-1, n).T
        along[2][:, z] = np.bincount(plane.ravel(), minlength=n)
    found: dict[str, Facts] = {}
    for name, index in labels.structures.items():
        voxels = int(along[2][index].sum())
        if voxels:
            profiles = [profile[index] for profile in along]
            where = [float(c @ np.arange(len(c))) / voxels for c in profiles]
            step = grid.axes * np.asarray(grid.spacing)
            centroid = (np.asarray(grid.origin) + step @ where) * _TO_RAS
            found[name] = {
                "voxels": voxels,
                "ml": voxels * float(np.prod(grid.spacing)) / 1000,
                "centroid": centroid.tolist(),
                "touches": _touches(profiles, grid.orientation),
            }
    return found


def _touches(counts: Sequence[np.ndarray], codes: str) -> str:
    faces = ""
    for along, code in zip(counts, codes, strict=True):
        if len(along) > 1:
            faces += (_OPPOSITE[code] if along[0] else "") + (code if along[-1] else "")
    return "".join(face for face in "LRPAIS" if face in faces)


def _range(image: sitk.Image) -> list[float]:
    extremes = sitk.MinimumMaximumImageFilter()
    extremes.Execute(image)
    return [float(extremes.GetMinimum()), float(extremes.GetMaximum())]


def _corners(affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    index = np.array(np.meshgrid(*[(0, n - 1) for n in size])).reshape(3, 8)
    return np.asarray((affine[:3, :3] @ index).T + affine[:3, 3])


def _reader_corners(reader: sitk.ImageFileReader, size: Sequence[int]) -> np.ndarray:
    n = reader.GetDimension()
    affine = np.eye(4)
    direction = np.asarray(reader.GetDirection()).reshape(n, n)
    k = min(n, 3)
    affine[:k, :k] = (direction * np.asarray(reader.GetSpacing()))[:k, :k]
    affine[:k, 3] = reader.GetOrigin()[:k]
    corners: np.ndarray = _corners(affine, size) * _TO_RAS
    return corners
