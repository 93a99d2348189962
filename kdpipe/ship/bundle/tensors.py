"""Scans as MONAI's tensors and as SimpleITK's images, without a rounding in between.

A `MetaTensor` has an affine, which would round spacing and directions. So its metadata hold, as
JSON under `KEY`, the exact grids of a raw scan's channels, or the geometry of a prepared scan. A
tensor that another program has loaded has an affine only, and that will do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from kdpipe.data.geometry import Grid, to_image
from kdpipe.errors import DataError

KEY = "kdpipe"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK's axes from those of NIfTI and MONAI
_SIGNED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}  # torch lacks most of these


def scan_tensor(voxels: np.ndarray, grid: Grid, exact: str, meta: Mapping[str, Any]) -> MetaTensor:
    """Return voxels (C, X, Y, Z) with their affine, and what is `exact` about them."""
    affine = torch.from_numpy(affine_of(grid))
    return MetaTensor(torch.from_numpy(voxels), affine=affine, meta={**meta, KEY: exact})


def exact_grids(grids: Sequence[Grid]) -> str:
    """Return what is exact about a raw scan: the grids of its channels."""
    return json.dumps([grid._asdict() for grid in grids])


def meta_of(image: Tensor) -> Mapping[str, Any]:
    """Return the metadata of a prepared scan or a restored label map.

    Raises:
        DataError: something between the parts has lost them.
    """
    meta = getattr(image, "meta", {})
    if KEY not in meta:
        raise DataError(
            "an image without the geometry that PrepareScand gives it; keep MetaTensors between "
            "preprocessing, inferer and postprocessing"
        )
    found: Mapping[str, Any] = meta
    return found


def images_of(raw: MetaTensor, channels: int) -> list[sitk.Image]:
    """Return a scan, (C, X, Y, Z) or (X, Y, Z), as one image a channel."""
    voxels = raw.as_tensor().cpu().numpy()
    voxels = voxels[None] if voxels.ndim == 3 else voxels
    if voxels.ndim != 4 or len(voxels) != channels:
        raise DataError(
            f"{raw.meta.get('filename_or_obj', 'the scan')}: an image of shape {voxels.shape}, the "
            f"network takes {channels} channel(s): (channels, x, y, z)"
        )
    grids = [Grid.from_dict(grid) for grid in json.loads(raw.meta.get(KEY, "[]"))]
    if any(grid.size != voxels.shape[1:] for grid in grids):  # another transform has cropped it
        grids = []
    grids = grids or [grid_of(raw.affine.cpu().numpy(), voxels.shape[1:])] * channels
    return [to_image(channel, grid) for channel, grid in zip(voxels, grids, strict=True)]


def affine_of(grid: Grid) -> np.ndarray:
    """Return the affine (4, 4) of NIfTI: voxel -> mm, axes to right, anterior, superior."""
    affine = np.eye(4)
    affine[:3, :3] = grid.axes * np.asarray(grid.spacing)
    affine[:3, 3] = grid.origin
    return _LPS @ affine


def grid_of(affine: np.ndarray, size: Sequence[int]) -> Grid:
    """Return the grid of an affine (4, 4) of NIfTI."""
    turned = _LPS @ affine.astype(np.float64)
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    direction = (turned[:3, :3] / spacing).ravel()
    parts = (spacing, turned[:3, 3], direction)
    return Grid(tuple(map(int, size)), *(tuple(map(float, part)) for part in parts))


def for_torch(voxels: np.ndarray) -> np.ndarray:
    """Return voxels of a type that torch has; no value changes."""
    return voxels.astype(_SIGNED.get(voxels.dtype.name, voxels.dtype), copy=False)
