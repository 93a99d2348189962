"""Generated CT phantoms of an abdomen: a data set that needs no download and no licence.

The anatomy is that of an adult at about a quarter of the size, so that a case fits a small grid.
It is described in body coordinates `u`, shape `(3, X, Y, Z)`: the trunk is the unit ellipse in
`(u[0], u[1])`, and +x, +y, +z point to the patient's right, front and head (RAS+). Each structure
is a field that is negative inside. A voxel's HU is blended by the share of it that lies inside
(partial volume), its label is decided at its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from scipy.spatial import cKDTree

from kdpipe.atomic import write_json
from kdpipe.cards import Generator, Labels
from kdpipe.errors import ConfigError, did_you_mean

Array = NDArray[np.float64]

STRUCTURES = ("background", "liver", "kidney", "spleen", "duct", "tumour")
LIVER, KIDNEY, SPLEEN, DUCT, TUMOUR = range(1, 6)
ABSENT = (TUMOUR, KIDNEY, SPLEEN)
ORIENTATIONS = ("RAS", "LPS", "LAS", "LPI", "PIR", "SAL")
AIR = -1000.0
HALF_WIDTH, HALF_HEIGHT = 42.0, 38.0  # mm, of the trunk and of the region that the organs fill
FIELD_OF_VIEW = np.array([96.0, 96.0, 85.0])  # mm, what a grid aims at whatever its spacing


def generate(folder: Path, generator: Generator, labels: Labels) -> None:
    """Write `generator.n_cases` phantoms to `folder` in the layout of the Decathlon.

    Case `i` is a function of `(generator, i)` other than `n_cases`, to the byte: more cases
    leave the earlier ones as they are.

    Args:
        folder: gets `dataset.json`, `imagesTr/*.nii.gz` (int16, HU), `labelsTr/*.nii.gz` (uint8).
        generator: grid sizes, spacings, noise and seed.
        labels: label ids by name; structures that it leaves out are painted but not labelled.

    Raises:
        ConfigError: if `labels` has a structure that the generator does not know, or the grid
            limits contradict each other.
    """
    ids = _label_ids(labels)
    if any(low > high for low, high in zip(generator.shape_min, generator.shape_max, strict=True)):
        raise ConfigError(
            f"generator: shape_min {generator.shape_min} exceeds shape_max {generator.shape_max}"
        )
    names = [f"phantom_{index:03d}" for index in range(generator.n_cases)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        hu, structures, affine, axes = make_case(generator, index)
        _save(folder / "imagesTr" / f"{name}.nii.gz", hu, affine, axes)
        _save(folder / "labelsTr" / f"{name}.nii.gz", ids[structures], affine, axes)
    entries = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    description = {
        "name": "phantom",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in labels.raw.items()},
        "numTraining": len(entries),
        "numTest": 0,
        "training": entries,
        "test": [],
    }
    write_json(folder / "dataset.json", description)


def make_case(
    generator: Generator, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array, str]:
    """Return one phantom, in RAS+ axes, and how to store it.

    Returns:
        image `(X, Y, Z)` in HU; structure map `(X, Y, Z)` of indices into `STRUCTURES`;
        affine `(4, 4)` in mm of these axes; axis codes in which the case is to be stored.
    """
    rng = np.random.default_rng([generator.seed, index])
    spacing = np.array(generator.spacings[rng.integers(len(generator.spacings))])
    shape = _draw_shape(rng, generator, spacing)
    axes = str(rng.choice(ORIENTATIONS))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * shape / 2 + rng.uniform(-60, 60, 3)

    every = generator.absent_every
    lacks = every > 0 and index % every == every - 1
    absent = ABSENT[index // every % len(ABSENT)] if lacks else 0
    canvas = _Canvas(rng, spacing, tuple(int(n) for n in shape))
    _paint_trunk(canvas)
    _paint_bowel(canvas)
    _paint_organs(canvas, absent)
    _paint_bones_and_vessels(canvas)
    _paint_duct(canvas)
    if absent != TUMOUR:
        _paint_tumours(canvas)
    return _scan(canvas, generator.noise_sd), canvas.label, affine, axes


class _Canvas:
    """Image and structure map under construction; structures are painted over one another."""

    def __init__(
        self, rng: np.random.Generator, spacing: Array, shape: tuple[int, int, int]
    ) -> None:
        self.rng, self.spacing, self.shape = rng, spacing, shape
        self.hu = np.full(shape, AIR)
        self.label = np.zeros(shape, np.uint8)
        grid = np.indices(shape, dtype=float) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
        self.mm = grid * spacing.reshape(3, 1, 1, 1)
        width = min(rng.normal(HALF_WIDTH, 2.5), 0.47 * shape[0] * spacing[0])
        depth = min(rng.uniform(0.74, 0.84) * width, 0.47 * shape[1] * spacing[1])
        self.half = np.array([width, depth, HALF_HEIGHT * rng.uniform(0.92, 1.08)])
        # One smooth warp of everything makes each patient's anatomy, not only its size, different.
        warp = np.stack([self.smooth(5) for _ in range(3)])
        shift = rng.normal(0, [1.0, 1.0, 3.0]).reshape(3, 1, 1, 1)
        self.u = (self.mm + shift + 1.8 * warp) / self.half.reshape(3, 1, 1, 1)

    def smooth(self, knots: int) -> Array:
        """Smooth random field `(X, Y, Z)`, about standard normal; more `knots`, finer."""
        field = self.rng.standard_normal((knots, knots, knots))
        for size in self.shape:  # interpolates the first axis and moves it to the end
            basis = ndimage.zoom(np.eye(knots), (size / knots, 1), order=3)
            field = np.tensordot(field, basis, axes=(0, 1))
        return field

    def ellipsoid(
        self, centre: Sequence[float], radii: Sequence[float], vary: float = 0.0
    ) -> Array:
        """Field of an ellipsoid in body coordinates; `vary` shifts and scales it at random."""
        at = np.array(centre) + self.rng.normal(0, 0.5 * vary, 3)
        size = np.array(radii) * (1 + self.rng.normal(0, vary, 3).clip(-2 * vary, 2 * vary))
        scaled = (self.u - at.reshape(3, 1, 1, 1)) / size.reshape(3, 1, 1, 1)
        return np.sqrt((scaled**2).sum(axis=0)) - 1

    def tube(self, points: Sequence[Sequence[float]], radius: float) -> Array:
        """Field of a curved tube through `points` (body coordinates) with `radius` in mm."""
        controls = np.array(points) * self.half
        steps = np.linspace(0, 1, 80)
        order = min(3, len(controls) - 1)
        curve = make_interp_spline(np.linspace(0, 1, len(controls)), controls, k=order)(steps)
        where = (self.u * self.half.reshape(3, 1, 1, 1)).reshape(3, -1).T
        far = radius + 2 * float(self.spacing.max())
        distance, _ = cKDTree(curve).query(where, distance_upper_bound=far)
        return np.minimum(distance, far).reshape(self.shape) - radius

    def paint(
        self,
        field: Array,
        hu: float | Array,
        label: int = 0,
        where: NDArray[np.bool_] | None = None,
    ) -> None:
        """Blend `hu` in where `field` is negative; `where` keeps off the other voxels."""
        # field / |its change over one voxel| is the distance to the surface in voxels.
        change = sum(np.abs(slope) for slope in np.gradient(field))
        share = np.clip(0.5 - field / np.maximum(change, 1e-6), 0, 1)
        inside = field < 0
        if where is not None:
            share, inside = share * where, inside & where
        self.hu += share * (hu - self.hu)
        self.label[inside] = label


def _label_ids(labels: Labels) -> NDArray[np.uint8]:
    """Return the table structure index -> label id; what `labels` leaves out is background."""
    for name in labels.structures:
        if name not in STRUCTURES[1:]:
            raise ConfigError(
                f"the phantom generator makes no {name!r}: {did_you_mean(name, STRUCTURES[1:])}"
            )
    ids = dict(labels.structures)
    ids.setdefault("tumour", ids.get("liver", 0))  # a tumour is part of the liver
    return np.array([ids.get(name, 0) for name in STRUCTURES], np.uint8)


def _draw_shape(
    rng: np.random.Generator, generator: Generator, spacing: Array
) -> NDArray[np.int64]:
    """Draw a grid within the limits, on the side of the common field of view."""
    low, high = np.array(generator.shape_min), np.array(generator.shape_max)
    ideal = np.clip(FIELD_OF_VIEW / spacing, low, high)
    return np.round((ideal + rng.uniform(low, high)) / 2).astype(int)


def _superellipse(u: Array, scale: float) -> Array:
    radius = (np.abs(u[0]) ** 2.3 + np.abs(u[1]) ** 2.3) ** (1 / 2.3)
    return radius / scale - 1


def _paint_trunk(canvas: _Canvas) -> None:
    """Subcutaneous fat, abdominal wall, the fat between the organs, and the lungs' bases."""
    rng, u = canvas.rng, canvas.u
    wall = rng.uniform(0.86, 0.93)
    cavity = _superellipse(u, wall - 0.07)
    canvas.paint(_superellipse(u, 1.0), rng.normal(-105, 6))
    canvas.paint(_superellipse(u, wall), rng.normal(55, 5))
    canvas.paint(cavity, rng.normal(-90, 6) + 8 * canvas.smooth(9))
    dome = 1.0 - 0.35 * (u[0] ** 2 + u[1] ** 2) - u[2]
    canvas.paint(np.maximum(cavity, dome), rng.normal(-840, 30))


def _paint_bowel(canvas: _Canvas) -> None:
    """Unlabelled loops and a stomach with the organs' HU, some with gas: distractors."""
    rng = canvas.rng
    for _ in range(6):
        start = rng.uniform([-0.55, 0.0, -1.2], [0.5, 0.5, -0.3])
        path = start + np.cumsum(rng.normal(0, [0.28, 0.16, 0.14], (4, 3)), axis=0)
        path = path.clip([-0.6, -0.1, -1.4], [0.55, 0.55, -0.2])
        radius = rng.uniform(3.5, 5.5)
        canvas.paint(canvas.tube(path, radius), rng.uniform(40, 120))
        if rng.random() < 0.35:
            canvas.paint(canvas.tube(path, 0.55 * radius), -850.0)
    canvas.paint(
        canvas.ellipsoid((-0.33, 0.32, 0.28), (0.27, 0.24, 0.36), 0.08), rng.uniform(30, 90)
    )
    canvas.paint(canvas.ellipsoid((-0.30, 0.46, 0.34), (0.16, 0.07, 0.22), 0.08), -850.0)


def _paint_organs(canvas: _Canvas, absent: int) -> None:
    """Liver of two lobes, gallbladder (a distractor), spleen and kidneys."""
    rng = canvas.rng
    right = canvas.ellipsoid((0.40, 0.06, 0.22), (0.40, 0.56, 0.66), 0.06)
    left = canvas.ellipsoid((-0.02, 0.36, 0.42), (0.44, 0.24, 0.34), 0.08)
    blend = 0.12  # smooth union of the lobes
    liver = -blend * np.logaddexp(-right / blend, -left / blend) + 0.10 * canvas.smooth(6)
    wall = _superellipse(canvas.u, 0.84)
    parenchyma = rng.normal(102, 9) + 4 * canvas.smooth(10)
    canvas.paint(np.maximum(liver, wall), parenchyma, LIVER)
    canvas.paint(canvas.ellipsoid((0.32, 0.40, -0.20), (0.13, 0.15, 0.22), 0.12), rng.normal(14, 5))

    spleen = canvas.ellipsoid((-0.60, -0.16, 0.30), (0.21, 0.40, 0.44), 0.08)
    spleen = np.maximum(spleen + 0.10 * canvas.smooth(6), wall)
    spleen_hu = rng.normal(118, 10)
    if absent != SPLEEN:
        canvas.paint(spleen, spleen_hu, SPLEEN)

    cortex, n_kidneys = rng.normal(155, 14), 1 if rng.random() < 0.15 else 2
    for side, height in ((-1, -0.12), (1, -0.26))[:n_kidneys]:
        _paint_kidney(canvas, side, height, cortex, paint=absent != KIDNEY)


def _paint_kidney(canvas: _Canvas, side: int, height: float, cortex: float, paint: bool) -> None:
    """A bean: an ellipsoid with a notch of fat towards the spine and a darker medulla."""
    centre = np.array([0.43 * side, -0.40, height]) + canvas.rng.normal(0, 0.03, 3)
    body = canvas.ellipsoid(centre, (0.19, 0.21, 0.42), 0.06)
    notch = canvas.ellipsoid(centre - [0.19 * side, -0.03, 0], (0.12, 0.10, 0.13), 0.06)
    bean = np.maximum(body, -notch)
    if paint:
        canvas.paint(bean, cortex, KIDNEY)
        canvas.paint(np.maximum(body + 0.45, -notch + 0.3), cortex - 35, KIDNEY)


def _paint_bones_and_vessels(canvas: _Canvas) -> None:
    """Spine with discs, the muscles beside it, aorta and vena cava: all unlabelled."""
    rng, u = canvas.rng, canvas.u
    for side in (-1, 1):
        muscle = canvas.ellipsoid((0.25 * side, -0.68, 0.0), (0.20, 0.16, 9.0))
        canvas.paint(muscle, rng.normal(55, 4))
    column = np.hypot(u[0] / 0.17, (u[1] + 0.50) / 0.19) - 1
    canvas.paint(column, rng.normal(330, 30))
    disc = np.cos(2 * np.pi * (u[2] / 0.42 + rng.random())) > 0.75
    canvas.paint(column + 0.2, np.where(disc, 90.0, rng.normal(190, 15)))
    canvas.paint(np.hypot(u[0] / 0.06, (u[1] + 0.78) / 0.13) - 1, rng.normal(300, 20))
    for x, radius in ((-0.10, 0.085), (0.12, 0.095)):
        sway = 0.03 * np.sin(2.5 * u[2] + rng.uniform(0, 6))
        vessel = np.hypot(u[0] - x - sway, 0.8 * (u[1] + 0.22)) / radius - 1
        canvas.paint(vessel, rng.normal(150, 15))


def _paint_duct(canvas: _Canvas) -> None:
    """A thin bent tube from the liver's hilum down to the bowel, after the common bile duct."""
    path = np.array(
        [(0.36, 0.12, 0.30), (0.20, 0.10, 0.18), (0.10, 0.08, -0.06),
         (0.12, -0.02, -0.32), (0.24, -0.03, -0.52)]
    )  # fmt: skip
    path += canvas.rng.normal(0, 0.04, path.shape)
    radius = canvas.rng.uniform(1.9, 2.5)
    canvas.paint(canvas.tube(path, radius), canvas.rng.normal(12, 5), DUCT)


def _paint_tumours(canvas: _Canvas) -> None:
    """One to three round nodules, darker than the liver and nowhere outside it."""
    rng = canvas.rng
    liver = canvas.label == LIVER
    depth = ndimage.distance_transform_edt(liver, sampling=canvas.spacing)
    contrast = rng.uniform(35, 55)
    for radius in rng.uniform(3.0, 6.0, rng.integers(1, 4)):
        places = np.argwhere(depth >= min(0.7 * radius, depth.max()))
        centre = canvas.mm[(slice(None), *places[rng.integers(len(places))])]
        distance = np.sqrt(((canvas.mm - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
        field = distance / radius - 1 + 0.08 * canvas.smooth(8)
        field[distance == 0] = -1.0  # the centre is tumour whatever the noise says
        level = canvas.hu[liver].mean() - contrast
        canvas.paint(field, level, TUMOUR, where=liver)


def _scan(canvas: _Canvas, noise_sd: float) -> NDArray[np.int16]:
    """Add what a scanner adds: a smooth bias and slightly correlated noise; round to HU."""
    noise = ndimage.gaussian_filter(canvas.rng.standard_normal(canvas.shape), 0.55)
    hu = canvas.hu + 5 * canvas.smooth(4) + noise * (noise_sd / noise.std())
    return np.round(hu.clip(-1024, 3071)).astype(np.int16)


def _save(file: Path, voxels: NDArray[np.generic], affine: Array, axes: str) -> None:
    """Write NIfTI with the axes stored as `axes`, its affine to match, sform and qform alike."""
    image = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, file)
