"""The moves from a voxel to all voxels of a ball around it, nearest first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdpipe.metrics.points import Spacing, squared_lengths
from kdpipe.metrics.ties import TIE

BALL_VOXELS = 300
"""Voxels of a ball; what lies beyond it is found sooner in other ways."""


@dataclass(frozen=True)
class Ball:
    """Moves to the voxels of a ball; see `labelled_jit.walk` for the arrays.

    Attributes:
        reach: longest move along each axis, in voxels.
    """

    steps: np.ndarray
    distance: np.ndarray
    ends: np.ndarray
    mixed: np.ndarray
    reach: tuple[int, ...]

    def sure(self, squares: np.ndarray) -> np.ndarray:
        """Whether a voxel at this squared distance is at it whichever of the nearest is taken."""
        at = np.searchsorted(self.distance, np.sqrt(squares) * (1 - 10 * TIE))
        found: np.ndarray = (at < len(self.distance)) & ~self.mixed[
            np.minimum(at, len(self.distance) - 1)
        ]
        return found


@lru_cache(maxsize=64)
def ball_of(spacing: Spacing, shape: tuple[int, int, int]) -> Ball:
    """Moves by growing length; an axis of one voxel gets none."""
    axes = [axis for axis in range(3) if shape[axis] > 1] or [2]
    voxel = math.prod(spacing[axis] for axis in axes)
    unit_ball = {1: 2.0, 2: math.pi, 3: 4 / 3 * math.pi}[len(axes)]
    radius = (BALL_VOXELS * voxel / unit_ball) ** (1 / len(axes))
    reach = tuple(
        min(int(radius / spacing[axis]), shape[axis] - 1) if axis in axes else 0
        for axis in range(3)
    )
    grid = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    steps = np.stack([axis.ravel() for axis in grid], axis=1)
    squares = squared_lengths(steps, spacing)
    # Whole runs of equally long moves only, hence nothing right at the radius.
    inside = squares < radius**2 * (1 - 1e-9)
    steps, squares = steps[inside], squares[inside]
    order = np.argsort(squares, kind="stable")
    breaks = np.flatnonzero(np.diff(squares[order]) > TIE * squares[order][1:]) + 1
    run = np.zeros(len(order), np.int64)
    run[breaks] = 1
    run_of = np.empty(len(order), np.int64)
    run_of[order] = np.cumsum(run)
    order = np.lexsort((steps[:, 0], steps[:, 1], steps[:, 2], run_of))
    ends = np.append(breaks, len(order))[np.cumsum(run)]
    distance = np.sqrt(squares[order])
    starts = np.append(0, breaks)
    differ = np.maximum.reduceat(distance, starts) != np.minimum.reduceat(distance, starts)
    mixed = differ[np.cumsum(run)]
    return Ball(steps[order], distance, ends, mixed, reach)
