"""Small pictures of prepared cases with their label maps, for the report on a data set."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from kdpipe.data.geometry import Grid
from kdpipe.data.store import StoredCase

COLOURS = (
    (230, 75, 60), (60, 140, 230), (70, 180, 90), (240, 190, 40), (160, 90, 200), (40, 190, 190),
    (240, 130, 40), (220, 110, 180), (140, 190, 50), (110, 110, 230), (190, 140, 90), (90, 99, 150),
)  # fmt: skip
"""Of the structures in the order of their ids; they begin again after the last."""
SIDE = 240
"""Longest side of a picture, pixels."""
_FILL = 0.25
_PERCENTILES = (1.0, 99.5)


def colour_of(index: int) -> tuple[int, int, int]:
    """Return the colour of a label id, red green blue; ids begin at 1."""
    return COLOURS[(index - 1) % len(COLOURS)]


def draw_case(case: StoredCase) -> dict[str, bytes]:
    """Draw three slices through the labels, each where it shows most of them.

    Args:
        case: prepared; only these slices and the sampled coordinates of its labels are read.

    Returns:
        Plane -> PNG of the first channel. Axial and coronal slices are seen from the feet and
        from the front, with the patient's right on the left; a sagittal one has the front on the
        left. A volume of one slice gives that one, as ``slice``, as it is stored.
    """
    grid = Grid.from_dict(case.geometry["prepared"])
    points = np.concatenate([np.zeros((0, 3), np.int16), *map(case.foreground, case.classes)])
    flat = case.shape[2] == 1
    slices = [_slice(case, points, axis) for axis in ((2,) if flat else (0, 1, 2))]
    low, high = np.percentile(np.concatenate([image.ravel() for image, _ in slices]), _PERCENTILES)
    slices = [
        (np.clip((image - low) / max(high - low, 1e-6), 0, 1), label) for image, label in slices
    ]
    if flat:
        ((image, label),) = slices
        return {"slice": _png(image[..., 0].T, label[..., 0].T, grid.spacing[1::-1])}
    drawn = dict(_plane(*pair, grid, axis) for axis, pair in enumerate(slices))
    return {plane: drawn[plane] for plane in ("axial", "coronal", "sagittal")}


def _slice(case: StoredCase, points: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label, (X, Y, Z) with one voxel along `axis`, where most points lie."""
    size, start = list(case.shape), [0, 0, 0]
    counts = np.bincount(points[:, axis], minlength=1)
    start[axis] = int(counts.argmax()) if len(points) else size[axis] // 2
    size[axis] = 1
    image, label = case.crop(start, size)
    return image[0], label


def _plane(image: np.ndarray, label: np.ndarray, grid: Grid, axis: int) -> tuple[str, bytes]:
    """Name and draw a slice of one voxel along `axis`."""
    codes = grid.orientation
    order = [next(i for i, c in enumerate(codes) if c in pair) for pair in ("LR", "PA", "SI")]
    flips = tuple(slice(None, None, 1 if codes[i] in "LPS" else -1) for i in order)
    left, back, head = (grid.spacing[i] for i in order)
    image, label = (array.transpose(order)[flips] for array in (image, label))
    if codes[axis] in "SI":
        return "axial", _png(image[:, :, 0].T, label[:, :, 0].T, (back, left))
    if codes[axis] in "PA":
        return "coronal", _png(image[:, 0, ::-1].T, label[:, 0, ::-1].T, (head, left))
    return "sagittal", _png(image[0, :, ::-1].T, label[0, :, ::-1].T, (head, back))


def _png(image: np.ndarray, label: np.ndarray, steps: tuple[float, ...]) -> bytes:
    """Draw a slice (rows, columns) in [0, 1]; pixels are `steps` mm (down, across)."""
    extent = [n * step for n, step in zip(image.shape, steps, strict=True)]
    height, width = (max(1, round(SIDE * length / max(extent))) for length in extent)
    grey = Image.fromarray((image * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    ids = np.asarray(
        Image.fromarray(np.ascontiguousarray(label, np.uint8)).resize(
            (width, height), Image.Resampling.NEAREST
        )
    )
    picture = np.repeat(np.asarray(grey, np.float32)[..., None], 3, axis=2)
    edge = _edges(ids)
    for index in np.unique(ids[ids > 0]).tolist():
        colour = np.array(colour_of(index), np.float32)
        inside = ids == index
        picture[inside] = (1 - _FILL) * picture[inside] + _FILL * colour
        picture[inside & edge] = colour
    stream = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _edges(ids: np.ndarray) -> np.ndarray:
    """Say of each pixel whether a neighbour has another id."""
    edge = np.zeros(ids.shape, bool)
    down, across = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge
