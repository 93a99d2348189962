"""Recognise the same image in two files: by its exact voxels, and by its rough look.

Both hashes are of the volume turned to RAS axes, so another storage order makes no difference. The
exact one sees no header and no number type. The rough one also withstands another intensity
window, rounding to 8 bits and lossy compression; cropping and coarse resampling it does not.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.data.geometry import Grid, to_array

if TYPE_CHECKING:
    import SimpleITK as sitk

BLOCKS = 32
"""Blocks along each axis, whose means the rough hash looks at."""
QUANTILES = (0.7, 0.8, 0.9)
"""Of the block means. Below is mostly air, whose noise a window turns into one value."""
NEAR = 0.15
"""Rough hashes of one image differ by less. Copies in another window or in 8 bits were found to
differ by up to 0.03, volumes of different patients by 0.47 and more, phantoms by 0.27."""
_ROWS = 64
_ORDER = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}


def hash_image(image: sitk.Image) -> tuple[str, str]:
    """Return the exact and the rough hash of a 3D image, reading it slice by slice.

    Returns:
        SHA-256 (hex) of the size and the voxels as float32; and base64 of the compressed bits
        that say which of 32 x 32 x 32 block means exceed the quantiles of all block means.
    """
    voxels = _as_ras(image)
    exact = hashlib.sha256(str(voxels.shape).encode())
    x, y, z = (np.arange(BLOCKS) * n // BLOCKS for n in voxels.shape)
    sums = np.empty((voxels.shape[2], BLOCKS, BLOCKS))
    for number in range(voxels.shape[2]):
        # adding 0 makes a negative zero a positive one
        plane = np.ascontiguousarray(voxels[:, :, number], np.float32) + np.float32(0)
        exact.update(plane.tobytes())
        rows = np.add.reduceat(plane, x, axis=0, dtype=np.float64)
        sums[number] = np.add.reduceat(rows, y, axis=1)
    lengths = [
        np.maximum(1, np.diff([*edges, n]))  # an axis shorter than 32 has a voxel in several blocks
        for edges, n in zip((z, x, y), np.roll(voxels.shape, 1), strict=True)
    ]
    means = np.add.reduceat(sums, z, axis=0) / np.einsum("i,j,k->ijk", *lengths)
    bits = np.stack([means > level for level in np.quantile(means, QUANTILES)])
    return exact.hexdigest(), _pack(bits)


def near_pairs(
    hashes: Sequence[str], others: Sequence[str] | None = None, limit: float = NEAR
) -> list[tuple[int, int, float]]:
    """Find the pairs of rough hashes whose distance is below `limit`.

    The distance is the Hamming distance over the number of bits that either has: 0 for equal
    hashes, 1 if they have nothing in common.

    Args:
        hashes: of one set of images.
        others: of another set, with which the first is compared; None: the first with itself.
        limit: exclusive.

    Returns:
        (index in `hashes`, index in `others`, distance); within one set the first is the smaller.
    """
    left = [_unpack(text) for text in hashes]
    right = left if others is None else [_unpack(text) for text in others]
    found = []
    for i in range(0, len(left), _ROWS):
        rows = _as_float(left[i : i + _ROWS])
        for j in range(i if others is None else 0, len(right), _ROWS):
            columns = _as_float(right[j : j + _ROWS])
            both = rows @ columns.T
            either = rows.sum(axis=1)[:, None] + columns.sum(axis=1) - both
            distance = 1 - both / np.maximum(1, either)
            for p, q in np.argwhere(distance < limit):
                if others is not None or i + p < j + q:
                    found.append((int(i + p), int(j + q), float(distance[p, q])))
    return found


def _as_ras(image: sitk.Image) -> np.ndarray:
    """Return the voxels (x, y, z) with their axes turned to the nearest RAS order."""
    codes = Grid.of(image).orientation
    order = np.argsort([_ORDER[code] for code in codes])
    flips = tuple(slice(None, None, 1 if codes[axis] in "RAS" else -1) for axis in order)
    return to_array(image).transpose(order)[flips]


def _pack(bits: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def _as_float(packed: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([np.unpackbits(row) for row in packed]).astype(np.float32)
