"""Generated CT phantoms of an abdomen: a data set that needs no download and no licence.

The anatomy is that of an adult at about a quarter of the size, so that a case fits a small grid.
It is described in body coordinates `u`, shape `(X, Y, Z, 3)`: the trunk is the unit ellipse in x
and y.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kdpipe.atomic import write_json
from kdpipe.data.phantoms._common import (
    Array,
    Body,
    Mask,
    VoxelGrid,
    absent_structure,
    check_shapes,
    draw_grid,
    label_ids,
    save,
    scanner_noise,
    share_inside,
)
from kdpipe.labels import Labels
from kdpipe.sources import CtAbdomen

STRUCTURES = ("background", "liver", "kidney", "spleen", "duct", "tumour")
LIVER, KIDNEY, SPLEEN, DUCT, TUMOUR = range(1, 6)
ABSENT = (TUMOUR, KIDNEY, SPLEEN)
PARTS = {"tumour": "liver"}
AIR = -1000.0
HALF_WIDTH, HALF_HEIGHT = 42.0, 38.0  # mm, of the trunk and of the region that the organs fill
FIELD_OF_VIEW = np.array([96.0, 96.0, 85.0])  # mm, what a grid aims at whatever its spacing


def generate(folder: Path, generator: CtAbdomen, labels: Labels) -> None:
    """Write `generator.n_cases` phantoms to `folder` in the layout of the Decathlon.

    Case `i` is a function of `(generator, i)` other than `n_cases`, to the byte: more cases
    leave the earlier ones as they are.

    Args:
        folder: gets `dataset.json`, `imagesTr/*.nii.gz` (int16, HU), `labelsTr/*.nii.gz` (uint8).
        generator: grid sizes, spacings, noise and seed.
        labels: label ids by name; structures that it leaves out are painted but not labelled.

    Raises:
        ConfigError: for a structure that the generator does not know, or impossible grid sizes.
    """
    ids = label_ids(labels, STRUCTURES, PARTS)
    check_shapes(generator)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(generator.n_cases):
        image, label = (f"{part}/phantom_{index:03d}.nii.gz" for part in ("imagesTr", "labelsTr"))
        hu, structures, affine, axes = make_case(generator, index)
        save(folder / image, hu, affine, axes)
        save(folder / label, ids[structures], affine, axes)
        entries.append({"image": f"./{image}", "label": f"./{label}"})
    description = {
        "name": "phantom",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in labels.raw.items()},
        "numTraining": len(entries),
        "training": entries,
    }
    write_json(folder / "dataset.json", description)


def make_case(
    generator: CtAbdomen, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array, str]:
    """Return one phantom, in RAS+ axes, and how to store it.

    Returns:
        image `(X, Y, Z)` in HU; structure map `(X, Y, Z)` of indices into `STRUCTURES`;
        affine `(4, 4)` in mm of these axes; axis codes in which the case is to be stored.
    """
    rng = np.random.default_rng([generator.seed, index])
    grid = draw_grid(rng, generator, FIELD_OF_VIEW)
    absent = absent_structure(generator, index, ABSENT)
    canvas = _Canvas(rng, grid)
    _paint_trunk(canvas)
    _paint_bowel(canvas)
    _paint_organs(canvas, absent)
    _paint_bones_and_vessels(canvas)
    _paint_duct(canvas)
    if absent != TUMOUR:
        _paint_tumours(canvas)
    return _scan(canvas, generator.noise_sd), canvas.label, grid.affine, grid.axes


class _Canvas(Body):
    """Image and structure map under construction; structures are painted over one another."""

    def __init__(self, rng: np.random.Generator, grid: VoxelGrid) -> None:
        super().__init__(rng, grid)
        self.hu = np.full(self.shape, AIR)
        self.label = np.zeros(self.shape, np.uint8)
        extent = grid.shape * grid.spacing
        width = min(rng.normal(HALF_WIDTH, 2.5), 0.47 * extent[0])
        depth = min(rng.uniform(0.74, 0.84) * width, 0.47 * extent[1])
        self.half = np.array([width, depth, HALF_HEIGHT * rng.uniform(0.92, 1.08)])
        warp = self.warp()
        self.u = (self.mm + rng.normal(0, [1.0, 1.0, 3.0]) + 1.8 * warp) / self.half
        self.x, self.y, self.z = np.moveaxis(self.u, -1, 0)

    def trunk(self, scale: float) -> Array:
        """Field of the trunk, shrunk by `scale`: an ellipse, a little squarish."""
        radius = (np.abs(self.x) ** 2.3 + np.abs(self.y) ** 2.3) ** (1 / 2.3)
        return np.asarray(radius / scale - 1)

    def paint(
        self, field: Array, hu: float | Array, label: int = 0, where: Mask | None = None
    ) -> None:
        """Blend `hu` in where `field` is negative; `where` keeps off the other voxels."""
        share, inside = share_inside(field), field < 0
        if where is not None:
            share, inside = share * where, inside & where
        self.hu += share * (hu - self.hu)
        self.label[inside] = label


def _paint_trunk(canvas: _Canvas) -> None:
    """Subcutaneous fat, abdominal wall, the fat between the organs, and the lungs' bases."""
    rng = canvas.rng
    wall = rng.uniform(0.86, 0.93)
    cavity = canvas.trunk(wall - 0.07)
    canvas.paint(canvas.trunk(1.0), rng.normal(-105, 6))
    canvas.paint(canvas.trunk(wall), rng.normal(55, 5))
    canvas.paint(cavity, rng.normal(-90, 6) + 8 * canvas.smooth(9))
    dome = 1.0 - 0.35 * (canvas.x**2 + canvas.y**2) - canvas.z
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
    wall = canvas.trunk(0.84)
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
    rng, x, y, z = canvas.rng, canvas.x, canvas.y, canvas.z
    for side in (-1, 1):
        muscle = canvas.ellipsoid((0.25 * side, -0.68, 0.0), (0.20, 0.16, 9.0))
        canvas.paint(muscle, rng.normal(55, 4))
    column = np.hypot(x / 0.17, (y + 0.50) / 0.19) - 1
    canvas.paint(column, rng.normal(330, 30))
    disc = np.cos(2 * np.pi * (z / 0.42 + rng.random())) > 0.75
    canvas.paint(column + 0.2, np.where(disc, 90.0, rng.normal(190, 15)))
    canvas.paint(np.hypot(x / 0.06, (y + 0.78) / 0.13) - 1, rng.normal(300, 20))
    for at, radius in ((-0.10, 0.085), (0.12, 0.095)):
        sway = 0.03 * np.sin(2.5 * z + rng.uniform(0, 6))
        vessel = np.hypot(x - at - sway, 0.8 * (y + 0.22)) / radius - 1
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
    contrast = rng.uniform(45, 70)
    for radius in rng.uniform(3.5, 7.0, rng.integers(1, 4)):
        places = np.argwhere(depth >= min(0.9 * radius, depth.max()))
        centre = canvas.mm[tuple(places[rng.integers(len(places))])]
        distance = np.linalg.norm(canvas.mm - centre, axis=-1)
        field = distance / radius - 1 + 0.08 * canvas.smooth(8)
        field[distance == 0] = -1.0  # the centre is tumour whatever the noise says
        level = canvas.hu[liver].mean() - contrast
        canvas.paint(field, level, TUMOUR, where=liver)


def _scan(canvas: _Canvas, noise_sd: float) -> NDArray[np.int16]:
    """Add what a scanner adds: a smooth bias and slightly correlated noise; round to HU."""
    noise = scanner_noise(canvas.rng, canvas.shape, noise_sd)
    hu = canvas.hu + 5 * canvas.smooth(4) + noise
    return np.asarray(np.round(hu.clip(-1024, 3071)), np.int16)
