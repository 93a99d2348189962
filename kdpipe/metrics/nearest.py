"""Distance from surface voxels to the nearest surface voxel of the same structure.

Most surface voxels of a fair prediction lie within millimetres of the reference's. With JIT they
look around in order of distance, in a volume that holds the other surface; the few that find
nothing, and all of them without JIT, ask a k-d tree. Every distance is
the square root of `(dx² + dy²) + dz²` in float64, as scipy's transform computes it, to the same
voxel where several are equally near (see `ties`): equal to medpy to the last bit.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.metrics.ties import TIE, chosen

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

Spacing = tuple[float, float, float]

# Voxels in the ball that is walked around a surface voxel; beyond it a tree is quicker.
BALL_VOXELS = 1500
# Neighbours asked of the tree to settle a tie: enough for most.
TREE_NEIGHBOURS = 8


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


def surface_to_surface(
    reference: Points,
    prediction: Points,
    spacing: Spacing,
    kernels: ModuleType | None,
    threads: int = 1,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Distance of every voxel to the nearest one of its structure on the other side.

    Args:
        reference: voxels of K structures.
        prediction: likewise, of the same image.
        spacing: one step an axis.
        kernels: `labelled_jit`, or None for the way without JIT.
        threads: that share the walk.

    Returns:
        From prediction to reference and from reference to prediction: for each structure float64
        of shape `(n,)`, in the order of its voxels; all `inf` where the other side has none.
    """
    sides = ((prediction, reference), (reference, prediction))
    if kernels is None or not (reference.index.size and prediction.index.size):
        walked = [np.full(source.index.size, -1.0) for source, _ in sides]
    else:
        walked = _walk(reference, prediction, spacing, kernels, threads)
    answers = []
    for (source, target), distances in zip(sides, walked, strict=True):
        parts = np.split(distances, source.starts[1:-1])
        for k, part in enumerate(parts):
            missing = np.flatnonzero(part < 0)
            if not target.of(k).size:
                part[:] = math.inf
            elif missing.size:
                part[missing] = _in_tree(source.of(k)[missing], target.of(k), source.shape, spacing)
        answers.append(parts)
    return answers[0], answers[1]


def _walk(
    reference: Points,
    prediction: Points,
    spacing: Spacing,
    kernels: ModuleType,
    threads: int,
) -> list[np.ndarray]:
    """Distances within the ball from prediction to reference and back; negative beyond it."""
    ball = _ball(spacing, reference.shape)
    places, strides, size = _into_box(reference, prediction, ball.reach)
    numbers = [points.numbers() for points in (reference, prediction)]
    volume = np.zeros(size, np.uint16 if len(reference.starts) > 256 else np.uint8)
    moves = ball.steps @ np.array(strides)
    answers = []
    for there, here in ((0, 1), (1, 0)):
        kernels.mark(volume, places[there], numbers[there])
        points, number, found = places[here], numbers[here], np.empty(len(places[here]))

        def search(
            part: slice,
            points: np.ndarray = points,
            number: np.ndarray = number,
            found: np.ndarray = found,
        ) -> None:
            kernels.walk(
                volume, points[part], number[part], moves, ball.ends, ball.mixed, ball.steps,
                ball.distance, np.array(spacing), found[part],
            )  # fmt: skip

        if threads > 1:
            cuts = np.linspace(0, len(points), threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(search, map(slice, cuts[:-1], cuts[1:])))
        else:
            search(slice(None))
        kernels.mark(volume, places[there], np.zeros_like(numbers[there]))
        answers.append(found)
    return answers


def _into_box(
    reference: Points, prediction: Points, reach: tuple[int, ...]
) -> tuple[list[np.ndarray], tuple[int, int, int], int]:
    """Flat indices of both in the box that holds them, with room for every move around it.

    Returns:
        The indices, the strides of the box's axes and its size, in voxels.
    """
    both = [unravel(points.index, points.shape) for points in (reference, prediction)]
    low = np.min([axes.min(axis=1) for axes in both], axis=0) - reach
    high = np.max([axes.max(axis=1) for axes in both], axis=0) + reach
    planes, rows, columns = (high - low + 1).tolist()
    strides = (rows * columns, columns, 1)
    first = int(low @ strides)
    places = [(z * strides[0] + y * columns) + (x - first) for z, y, x in both]
    return places, strides, planes * rows * columns


@dataclass(frozen=True)
class _Ball:
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
def _ball(spacing: Spacing, shape: tuple[int, int, int]) -> _Ball:
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
    squares = _squares(steps, spacing)
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
    return _Ball(steps[order], distance, ends, mixed, reach)


def unravel(index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Coordinates of flat indices, shape `(3, n)`."""
    rest, x = np.divmod(index, shape[2])
    z, y = np.divmod(rest, shape[1])
    return np.stack((z, y, x))


def _squares(steps: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Squared lengths of steps of shape `(..., 3)`, summed in scipy's order."""
    squares = np.square(steps * np.array(spacing))
    total: np.ndarray = (squares[..., 0] + squares[..., 1]) + squares[..., 2]
    return total


def _in_tree(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, int, int], spacing: Spacing
) -> np.ndarray:
    """Distances from flat indices to the nearest of other flat indices, by a k-d tree."""
    answer = np.zeros(source.size)
    away = np.flatnonzero(~np.isin(source, target, assume_unique=True))
    if not away.size:
        return answer
    from scipy.spatial import cKDTree  # heavy, and a training does not need it

    steps = np.array(spacing)
    start, goal = unravel(source[away], shape).T, unravel(target, shape).T
    tree = cKDTree(goal * steps, balanced_tree=False, compact_nodes=False)
    exact = _exact(spacing, shape) or len(goal) == 1
    asked = np.arange(1, 2 if exact else 3)
    _, found = tree.query(start * steps, k=asked)
    both = _squares(goal[found] - start[:, None], spacing)
    squares = both.min(axis=1)
    if not exact:
        tied = (both <= squares[:, None] * (1 + TIE)).all(axis=1)
        unsure = np.flatnonzero(tied & ~_ball(spacing, shape).sure(squares))
        squares[unsure] = _settle_ties(tree, start[unsure], goal, squares[unsure], spacing)
    answer[away] = np.sqrt(squares)
    return answer


def _settle_ties(
    tree: cKDTree, start: np.ndarray, goal: np.ndarray, lowest: np.ndarray, spacing: Spacing
) -> np.ndarray:
    """Squared distances to the voxels that scipy would take among the nearest ones."""
    if not len(start):
        return lowest
    steps, asked = np.array(spacing), min(TREE_NEIGHBOURS, len(goal))
    _, found = tree.query(start * steps, k=np.arange(1, asked + 1))
    squares = _squares(goal[found] - start[:, None], spacing)
    lowest = squares.min(axis=1)
    tied = squares <= lowest[:, None] * (1 + TIE)
    differ = np.where(tied, squares, lowest[:, None]).max(axis=1) != lowest
    for i in np.flatnonzero(differ | (tied.all(axis=1) & (asked < len(goal)))):
        near = tree.query_ball_point(start[i] * steps, math.sqrt(lowest[i]) * (1 + 1e-9))
        lowest[i] = _choose(goal[near] - start[i], spacing)
    return lowest


def _choose(steps: np.ndarray, spacing: Spacing) -> float:
    squares = _squares(steps, spacing)
    tied = steps[squares <= squares.min() * (1 + TIE)]
    return chosen(tied[np.lexsort((tied[:, 1], tied[:, 2]))], np.array(spacing))


@lru_cache(maxsize=64)
def _exact(spacing: Spacing, shape: tuple[int, int, int]) -> bool:
    """Whether squared distances within the image are sums without rounding, as for 1 mm."""
    unit = min(np.spacing(step) for step in spacing)
    while unit < min(spacing) and all(step % (2 * unit) == 0 for step in spacing):
        unit *= 2
    longest = max(step / unit * n for step, n in zip(spacing, shape, strict=True))
    return bool(longest < 2**25)
