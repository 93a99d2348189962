"""Distance from surface voxels to the nearest surface voxel of the same structure.

Most surface voxels of a fair prediction lie within millimetres of the reference's. With JIT they
look around in order of distance, in a volume that holds the other surface; those that find nothing
are searched line by line, where the structure's box is not too large for that. What is left, and
all of them without JIT, asks a k-d tree. Every distance is the square root of `(dx² + dy²) + dz²`
in float64, as scipy's transform computes it, to the same voxel where several are equally near (see
`ties`): equal to medpy to the last bit.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

from kdpipe.metrics.ball import ball_of
from kdpipe.metrics.lines import in_lines
from kdpipe.metrics.points import Points, Spacing
from kdpipe.metrics.tree import in_tree


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
        threads: that share the work.

    Returns:
        From prediction to reference and from reference to prediction: for each structure float64
        of shape `(n,)`, in the order of its voxels; all `inf` where the other side has none.
    """
    sides = ((prediction, reference), (reference, prediction))
    if kernels is None or not (reference.index.size and prediction.index.size):
        walked = [np.full(source.index.size, -1.0) for source, _ in sides]
    else:
        walked = _walk(reference, prediction, spacing, kernels, threads)
    tasks = [
        (distances[source.starts[k] : source.starts[k + 1]], source.of(k), target.of(k))
        for (source, target), distances in zip(sides, walked, strict=True)
        for k in range(len(source.starts) - 1)
    ]

    def complete(task: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        return _completed(*task, reference.shape, spacing, lines=kernels is not None)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(complete, tasks))
    else:
        answers = list(map(complete, tasks))
    half = len(tasks) // 2
    return answers[:half], answers[half:]


def _completed(
    distances: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    shape: tuple[int, int, int],
    spacing: Spacing,
    lines: bool,
) -> np.ndarray:
    """`distances` of one structure, with those found that are negative; `lines`: with JIT."""
    missing = np.flatnonzero(distances < 0)
    if not target.size:
        distances[:] = math.inf
    elif missing.size:
        found = in_lines(source[missing], target, shape, spacing) if lines else None
        if found is None:
            found = in_tree(source[missing], target, shape, spacing)
        distances[missing] = found
    return distances


def _walk(
    reference: Points,
    prediction: Points,
    spacing: Spacing,
    kernels: ModuleType,
    threads: int,
) -> list[np.ndarray]:
    """Distances within the ball from prediction to reference and back; negative beyond it."""
    ball = ball_of(spacing, reference.shape)
    places, strides, size = _into_box(reference, prediction, ball.reach, kernels)
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
    reference: Points, prediction: Points, reach: tuple[int, ...], kernels: ModuleType
) -> tuple[list[np.ndarray], tuple[int, int, int], int]:
    """Flat indices of both in the box that holds them, with room for every move around it.

    Returns:
        The indices, the strides of the box's axes and its size, in voxels.
    """
    both, shape = (reference.index, prediction.index), reference.shape
    low, high = kernels.bounds(*both, shape)
    low, high = low - reach, high + reach
    planes, rows, columns = (high - low + 1).tolist()
    strides = (rows * columns, columns, 1)
    first = int(low @ strides)
    places = [kernels.moved(index, shape, strides, first) for index in both]
    return places, strides, planes * rows * columns
