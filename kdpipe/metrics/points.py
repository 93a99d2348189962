"""Voxels of structures as points of a grid, and the steps between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Spacing = tuple[float, float, float]


def three_axes(spacing: tuple[float, ...]) -> Spacing:
    """Spacing of a volume, or of a picture with a first axis of length 1 before its own."""
    steps = (1.0,) * (3 - len(spacing)) + spacing
    return steps[0], steps[1], steps[2]


@dataclass(frozen=True)
class Points:
    """Voxels of all structures of a volume, by structure, then in C order.

    Attributes:
        index: flat index into the volume, int64, shape `(n,)`.
        starts: structure k owns `index[starts[k]:starts[k + 1]]`; length K + 1.
        shape: of the volume, three axes.
    """

    index: np.ndarray
    starts: np.ndarray
    shape: tuple[int, int, int]

    def of(self, structure: int) -> np.ndarray:
        """Flat indices of one structure."""
        return self.index[self.starts[structure] : self.starts[structure + 1]]

    def numbers(self) -> np.ndarray:
        """Number of each voxel's structure, from 1, in the order of `index`."""
        sizes = np.diff(self.starts)
        return np.repeat(np.arange(1, len(sizes) + 1, dtype=np.uint16), sizes)


def unravel(index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Coordinates of flat indices, shape `(3, n)`."""
    rest, x = np.divmod(index, shape[2])
    z, y = np.divmod(rest, shape[1])
    return np.stack((z, y, x))


def squared_lengths(steps: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Squared lengths of steps of shape `(..., 3)`, summed in scipy's order."""
    squares = np.square(steps * np.array(spacing))
    total: np.ndarray = (squares[..., 0] + squares[..., 1]) + squares[..., 2]
    return total


@lru_cache(maxsize=64)
def exact_sums(spacing: Spacing, shape: tuple[int, int, int]) -> bool:
    """Whether squared distances within the image are sums without rounding, as for 1 mm."""
    unit = min(np.spacing(step) for step in spacing)
    while unit < min(spacing) and all(step % (2 * unit) == 0 for step in spacing):
        unit *= 2
    longest = max(step / unit * n for step, n in zip(spacing, shape, strict=True))
    return bool(longest < 2**25)
