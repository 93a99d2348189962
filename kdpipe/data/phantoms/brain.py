"""Generated brains with a tumour in four MR sequences, after BraTS: channels and nested regions.

A brain without its skull, about three quarters of an adult's in size, that holds one glioma: a
necrotic core inside an enhancing rim inside edema. Enhancement shows in t1c only and edema in t2f
and t2w, so that no single channel tells the regions. Veins and choroid plexus enhance too, and
white matter lesions look like edema: both are unlabelled. Lengths are in mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
from kdpipe.sources import BrainTumour

CHANNELS = ("t1n", "t1c", "t2w", "t2f")
STRUCTURES = ("background", "NCR", "ED", "ET")
NCR, ED, ET = range(1, 4)
ABSENT = (ET, NCR)
SIGNAL = {  # of t1n, t1c, t2w, t2f in units of white matter's
    "white": (1.00, 1.00, 1.00, 1.00),
    "grey": (0.70, 0.73, 1.35, 1.25),
    "fluid": (0.27, 0.28, 2.30, 0.30),
    "vein": (0.75, 1.60, 0.60, 0.60),
    "plexus": (0.65, 1.45, 1.60, 0.90),
    "lesion": (0.85, 0.87, 1.40, 1.60),
    "edema": (0.72, 0.73, 1.75, 1.75),
    "necrosis": (0.45, 0.42, 2.00, 1.15),
    "enhancing": (0.72, 1.65, 1.45, 1.40),
}
HALF = np.array([44.0, 54.0, 42.0])  # half of a brain's width, length and height
FIELD_OF_VIEW = np.array([112.0, 132.0, 108.0])  # what a grid aims at whatever its spacing


def generate(folder: Path, generator: BrainTumour, labels: Labels) -> None:
    """Write `generator.n_cases` phantoms to `folder` in nnU-Net's raw layout, one file a channel.

    Case `i` is a function of `(generator, i)` other than `n_cases`, to the byte: more cases
    leave the earlier ones as they are.

    Args:
        folder: gets `dataset.json`, `imagesTr/brain_000_0000.nii.gz` and so on in the order of
            `CHANNELS` (int16, uncalibrated, background 0), `labelsTr/brain_000.nii.gz` (uint8).
        generator: grid sizes, spacings, noise and seed.
        labels: label ids by name; structures that it leaves out are painted but not labelled.

    Raises:
        ConfigError: for a structure that the generator does not know, or impossible grid sizes.
    """
    ids = label_ids(labels, STRUCTURES, parts={})
    check_shapes(generator)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(generator.n_cases):
        image, structures, affine, axes = make_case(generator, index)
        for channel, voxels in enumerate(image):
            file = folder / "imagesTr" / f"brain_{index:03d}_{channel:04d}.nii.gz"
            save(file, voxels, affine, axes)
        save(folder / "labelsTr" / f"brain_{index:03d}.nii.gz", ids[structures], affine, axes)
    description = {
        "channel_names": {str(channel): name for channel, name in enumerate(CHANNELS)},
        "labels": {name: i for i, name in labels.raw.items()},
        "numTraining": generator.n_cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)


def make_case(
    generator: BrainTumour, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array, str]:
    """Return one phantom, in RAS+ axes, and how to store it.

    Returns:
        image `(4, X, Y, Z)`, 0 outside the brain; structure map `(X, Y, Z)` of indices into
        `STRUCTURES`; affine `(4, 4)` in mm of these axes; axis codes to store the case in.
    """
    rng = np.random.default_rng([generator.seed, index])
    grid = draw_grid(rng, generator, FIELD_OF_VIEW)
    head = _Head(rng, grid)
    _paint_brain(head)
    _paint_ventricles(head)
    _paint_tumour(head, absent_structure(generator, index, ABSENT))
    return _scan(head, generator.noise_sd), head.label, grid.affine, grid.axes


class _Head(Body):
    """Image and structure map under construction; structures are painted over one another."""

    def __init__(self, rng: np.random.Generator, grid: VoxelGrid) -> None:
        super().__init__(rng, grid)
        self.image = np.zeros((len(SIGNAL["white"]), *self.shape))
        self.label = np.zeros(self.shape, np.uint8)
        self.signal = {name: rng.normal(1, 0.05, 4) * row for name, row in SIGNAL.items()}
        self.half = np.minimum(HALF * rng.normal(1, 0.03, 3), 0.46 * grid.shape * grid.spacing)

        side = rng.choice((-1.0, 1.0))
        focus = self.half * rng.uniform([0.35, -0.45, 0.05], [0.55, 0.40, 0.45])
        self.tumour_radius = rng.uniform(13, 19)  # with its edema
        self.from_tumour = self.mm - focus * [side, 1, 1]
        # The tumour pushes the tissue away: what lies here was nearer to its centre before.
        squared = np.sum((self.from_tumour / self.tumour_radius) ** 2, axis=-1, keepdims=True)
        before = self.mm - 0.4 * np.exp(-squared) * self.from_tumour
        self.u = (before + rng.normal(0, 1.0, 3) + 1.5 * self.warp()) / self.half
        self.x, self.y, self.z = np.moveaxis(self.u, -1, 0)

        folded = np.minimum(self._cerebrum(), self._cerebellum())
        self.brainstem = self._brainstem()
        self.brain = np.minimum(folded, self.brainstem)
        self.pia = self._pia(folded)
        self.ventricles = self._ventricles()

    def paint(self, field: Array, tissue: str, where: Mask | None = None) -> None:
        """Blend a tissue's signal in where `field` is negative and `where` is true."""
        self.blend(share_inside(field), tissue, where)

    def blend(self, share: Array, tissue: str, where: Mask | None = None) -> None:
        """Move the image towards a tissue's signal by `share`, 0 to 1, where `where` is true."""
        inside = share > 0 if where is None else (share > 0) & where
        old = self.image[:, inside]
        self.image[:, inside] = old + share[inside] * (self.signal[tissue][:, None] - old)

    def _cerebrum(self) -> Array:
        """Field of both hemispheres: narrower in front, flat below, with temporal lobes."""
        x, y, z = np.abs(self.x) * (1 + 0.12 * self.y), self.y, self.z + 0.04
        low = np.where(z < 0, 1.55 + 0.5 * y.clip(0, 1), 1.0)
        hemispheres = (x**2.3 + np.abs(y) ** 2.3 + np.abs(z * low) ** 2.3) ** (1 / 2.3) - 1
        lobes = [
            self.ellipsoid((0.55 * side, 0.12, -0.42), (0.27, 0.45, 0.26), 0.04) for side in (-1, 1)
        ]
        return np.asarray(np.min([hemispheres, *lobes], axis=0) * self.half.mean())

    def _cerebellum(self) -> Array:
        field = self.ellipsoid((0, -0.52, -0.66), (0.60, 0.36, 0.30), 0.03)
        return np.asarray(field * 0.42 * self.half.mean())

    def _brainstem(self) -> Array:
        path = [(0, 0.0, -0.3), (0, -0.05, -0.55), (0, -0.10, -0.75), (0, -0.15, -0.95)]
        return self.tube(path, self.rng.uniform(5.5, 7))

    def _pia(self, folded: Array) -> Array:
        """Distance to the nearest fluid on the brain's surface: outside, in sulci, midline."""
        depth = -folded
        sulci = 4.5 * np.abs(self.smooth(15)) + 0.7 * (depth - 9).clip(0)
        callosum = np.hypot(self.y / 0.62, (self.z - 0.02) / 0.36)
        midline = np.abs(self.x) * self.half[0] + 25 * (1 - callosum).clip(0)
        pia = np.min([depth, sulci, midline], axis=0)
        return np.asarray(np.where(self.brainstem < 0, np.maximum(pia, 5 - self.brainstem), pia))

    def _ventricles(self) -> Array:
        """Field of the lateral ventricles, from frontal to occipital horn, and the third."""
        size = self.rng.uniform(2.6, 4.2)
        path = np.array([(0.12, 0.46, 0.04), (0.11, 0.2, 0.16), (0.14, -0.15, 0.2),
                         (0.26, -0.42, 0.08), (0.30, -0.58, 0.0)])  # fmt: skip
        lateral = [self.tube(path * [side, 1, 1], size * self.rng.normal(1, 0.06))
                   for side in (-1, 1)]  # fmt: skip
        third = 3 * self.ellipsoid((0, 0.0, -0.06), (0.035, 0.2, 0.16), 0.05)
        return np.asarray(np.min([*lateral, third], axis=0))


def _paint_brain(head: _Head) -> None:
    """White matter, cortex along the surface and its sulci, deep grey nuclei, veins."""
    head.paint(head.brain, "white")
    head.paint(head.pia - 3.5, "grey", head.brain < 0)
    for side in (-1, 1):
        for centre, radii in (
            ((0.15, -0.06, 0.02), (0.11, 0.17, 0.13)),  # thalamus
            ((0.36, 0.14, -0.04), (0.09, 0.22, 0.16)),  # putamen and pallidum
            ((0.20, 0.30, 0.08), (0.06, 0.16, 0.12)),  # caudate nucleus
        ):
            head.paint(head.ellipsoid(np.multiply(centre, (side, 1, 1)), radii, 0.06), "grey")
    head.paint(head.pia - 0.7, "fluid", head.brain < 0)
    arch = [(0, 0.80, 0.50), (0, 0.45, 0.84), (0, 0.0, 0.93), (0, -0.5, 0.80), (0, -0.85, 0.3)]
    head.paint(head.tube(arch, head.rng.uniform(1.4, 2.0)), "vein")
    for side in (-1, 1):
        path = np.array([(0.75, 0.25, -0.1), (0.7, 0.0, 0.3), (0.5, -0.1, 0.65), (0.1, -0.1, 0.9)])
        path = (path + head.rng.normal(0, 0.06, path.shape)) * [side, 1, 1]
        head.paint(head.tube(path, head.rng.uniform(0.8, 1.3)), "vein")


def _paint_ventricles(head: _Head) -> None:
    """Ventricles with choroid plexus and, in most cases, bright caps of white matter."""
    rng = head.rng
    if rng.random() < 0.6:
        head.paint(head.ventricles - 1.5 - 1.5 * head.smooth(9), "lesion", head.pia > 3)
    head.paint(head.ventricles, "fluid")
    for side in (-1, 1):
        path = [(0.12, 0.0, 0.15), (0.15, -0.2, 0.17), (0.22, -0.36, 0.1), (0.27, -0.45, 0.05)]
        head.paint(head.tube(np.multiply(path, (side, 1, 1)), rng.uniform(1.0, 1.8)), "plexus")


def _paint_tumour(head: _Head, absent: int) -> None:
    """Edema, then the core in it, then the necrosis in that: each region inside the one before.

    Without ET all of the core is necrosis, as in a glioma of low grade; without NCR it is solid.
    """
    rng, inside = head.rng, head.brain < 0
    stretch = np.exp(rng.normal(0, 0.15, 3))
    distance = np.linalg.norm(head.from_tumour * stretch / stretch.prod() ** (1 / 3), axis=-1)

    radius = head.tumour_radius * rng.uniform(0.50, 0.66)
    near = np.minimum(distance / radius, 1)  # no bumps at the centre: it is in every region
    core = distance - radius + 2.0 * near * head.smooth(11)
    rim = radius * rng.uniform(0.22, 0.34) * (1 + 0.4 * head.smooth(9).clip(-1.5, 1.5))
    spared = 4 * (1 - head.pia / 5).clip(0, 1)  # edema spreads in white matter
    edema = distance - head.tumour_radius + 2.8 * head.smooth(8) + spared
    edema = np.minimum(edema, core + 2)
    wet = inside & (head.ventricles > 0) & (head.pia > 0.7)

    head.blend(1 / (1 + np.exp(edema / 0.9)), "edema", wet)
    head.label[wet & (edema < 0)] = ED
    for structure, field, tissue in ((ET, core, "enhancing"), (NCR, core + rim, "necrosis")):
        if structure != absent:
            field = core if absent == ET else field
            head.paint(field, tissue, inside)
            head.label[inside & (field < 0)] = structure


def _scan(head: _Head, noise_sd: float) -> NDArray[np.int16]:
    """Add what a scanner adds: smooth bias, Rician noise, and a scale of each channel's own."""
    rng, scanned = head.rng, np.zeros(head.image.shape, np.int16)
    inside = head.brain < 0
    for channel, tissue in enumerate(head.image):
        biased = tissue * np.exp(0.08 * head.smooth(4))
        real, imaginary = (scanner_noise(rng, head.shape, noise_sd) for _ in range(2))
        scale = np.exp(rng.uniform(np.log(150), np.log(1500)))
        voxels = np.round(scale * np.hypot(biased + real, imaginary))
        scanned[channel, inside] = voxels[inside].clip(1, 32767)  # 0 is the background alone
    return scanned
