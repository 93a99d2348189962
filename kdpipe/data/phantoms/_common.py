"""What the generated data sets share: grids, fields of structures, label ids and NIfTI files.

A structure is a field over the grid that is negative inside. A voxel's intensity is blended by
the share of it that lies inside (partial volume), its label is decided at its centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from scipy.spatial import cKDTree

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.labels import Labels
from kdpipe.sources import Phantoms

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ORIENTATIONS = ("RAS", "LPS", "LAS", "LPI", "PIR", "SAL")


class VoxelGrid(NamedTuple):
    """Grid of a case in RAS+ axes, and the axis codes in which it is to be stored."""

    spacing: Array
    shape: NDArray[np.int64]
    affine: Array
    axes: str


def check_shapes(generator: Phantoms) -> None:
    """Raise ConfigError if no grid fits the generator's limits, or one would be too small."""
    limits = list(zip(generator.shape_min, generator.shape_max, strict=True))
    if not all(16 <= low <= high for low, high in limits):
        raise ConfigError(f"generator: shape_min and shape_max need 16 <= min <= max, not {limits}")


def draw_grid(rng: np.random.Generator, generator: Phantoms, field_of_view: Array) -> VoxelGrid:
    """Draw a case's grid, which aims at `field_of_view` (mm) whatever its spacing."""
    spacing = np.array(generator.spacings[rng.integers(len(generator.spacings))])
    low, high = np.array(generator.shape_min), np.array(generator.shape_max)
    ideal = np.clip(field_of_view / spacing, low, high)
    shape = np.round((ideal + rng.uniform(low, high)) / 2).astype(int)
    axes = str(rng.choice(ORIENTATIONS))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * shape / 2 + rng.uniform(-60, 60, 3)
    return VoxelGrid(spacing, shape, affine, axes)


def absent_structure(generator: Phantoms, index: int, candidates: Sequence[int]) -> int:
    """Return which of `candidates` case `index` lacks, in turn; 0 if it is complete."""
    every = generator.absent_every
    lacks = every > 0 and index % every == every - 1
    return candidates[index // every % len(candidates)] if lacks else 0


def label_ids(
    labels: Labels, structures: Sequence[str], parts: Mapping[str, str]
) -> NDArray[np.uint8]:
    """Return the table structure index -> label id; what `labels` leaves out is background.

    Args:
        labels: label ids by name.
        structures: all names that the generator knows, the background first.
        parts: part -> whole: a part that is left out takes the id of its whole.

    Raises:
        ConfigError: for a name that is not among `structures`.
    """
    for name in labels.structures:
        if name not in structures[1:]:
            raise ConfigError(
                f"the phantom generator makes no {name!r}: {did_you_mean(name, structures[1:])}"
            )
    ids = dict(labels.structures)
    for part, whole in parts.items():
        ids.setdefault(part, ids.get(whole, 0))
    return np.array([ids.get(name, 0) for name in structures], np.uint8)


class Body:
    """A voxel grid laid over a body: fields in mm and in body coordinates `u`.

    `u`, shape `(X, Y, Z, 3)`, has +x, +y, +z to the patient's right, front and head (RAS+); the
    body is about the unit ball. A subclass sets `half` (mm that make 1 in `u`) and `u`.
    """

    half: Array
    u: Array

    def __init__(self, rng: np.random.Generator, grid: VoxelGrid) -> None:
        self.rng, self.spacing, self.shape = rng, grid.spacing, tuple(grid.shape.tolist())
        steps = np.moveaxis(np.indices(self.shape), 0, -1) - (grid.shape - 1) / 2
        self.mm = steps * grid.spacing

    def smooth(self, knots: int) -> Array:
        """Smooth random field `(X, Y, Z)`, about standard normal; more `knots`, finer."""
        field = self.rng.standard_normal((knots, knots, knots))
        for size in self.shape:  # interpolates the first axis and moves it to the end
            basis = ndimage.zoom(np.eye(knots), (size / knots, 1), order=3)
            field = np.tensordot(field, basis, axes=(0, 1))
        return field

    def warp(self) -> Array:
        """Smooth random displacement `(X, Y, Z, 3)`: makes anatomies differ, not only sizes."""
        return np.stack([self.smooth(5) for _ in range(3)], axis=-1)

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike, vary: float = 0.0) -> Array:
        """Field of an ellipsoid in body coordinates; `vary` shifts and scales it at random."""
        at = np.asarray(centre) + self.rng.normal(0, 0.5 * vary, 3)
        size = np.asarray(radii) * (1 + self.rng.normal(0, vary, 3).clip(-2 * vary, 2 * vary))
        return np.asarray(np.linalg.norm((self.u - at) / size, axis=-1) - 1)

    def tube(self, points: ArrayLike, radius: float) -> Array:
        """Field, mm, of a curved tube through `points` (body coordinates) with `radius` in mm."""
        controls = np.asarray(points) * self.half
        curve = make_interp_spline(np.linspace(0, 1, len(controls)), controls, k=3)
        far = radius + 2 * self.spacing.max()
        tree, where = cKDTree(curve(np.linspace(0, 1, 80))), (self.u * self.half).reshape(-1, 3)
        distance, _ = tree.query(where, distance_upper_bound=far)
        return np.asarray(np.minimum(distance, far).reshape(self.shape) - radius)


def share_inside(field: Array) -> Array:
    """Return how much of each voxel lies where `field` is negative, 0 to 1."""
    # field / |its change over one voxel| is the distance to the surface in voxels.
    change = np.sum(np.abs(np.gradient(field)), axis=0)
    return np.asarray(np.clip(0.5 - field / np.maximum(change, 1e-6), 0, 1))


def scanner_noise(rng: np.random.Generator, shape: tuple[int, ...], sd: float) -> Array:
    """Return slightly correlated normal noise, as of reconstructed images."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 0.55)
    return np.asarray(noise * (sd / noise.std()))


def save(file: Path, voxels: NDArray[np.generic], affine: Array, axes: str) -> None:
    """Write NIfTI with the axes stored as `axes`, its affine to match, sform and qform alike."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    image = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, file)
