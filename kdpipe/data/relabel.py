"""From scores to labels, on their own grid and on another, one slab of the volume after another.

Compiled where numba can be imported and `KDPIPE_JIT` is not `0`; the labels are the same without.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np

from kdpipe.data.geometry import Coordinates, labels_at, neighbours
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.jit import compiled

Part = tuple[int, int]


def kernels() -> ModuleType | None:
    """Return the compiled loops; None where numba is not there or switched off."""
    return compiled(_loops)


def _loops() -> ModuleType:
    from kdpipe.data import relabel_jit

    return relabel_jit


class _Flat(NamedTuple):
    """Scores (K, X, Y, Z) as one run of numbers; channel k begins at ``k * stride``."""

    values: np.ndarray
    stride: int

    @classmethod
    def of(cls, scores: np.ndarray) -> _Flat:
        """Return it; no copy where each channel is a run of float32 in storage order."""
        runs = scores.dtype == np.float32 and scores[0].flags.c_contiguous
        if not runs or scores.strides[0] < scores[0].nbytes or scores.strides[0] % 4:
            scores = np.ascontiguousarray(scores, np.float32)
        stride = scores.strides[0] // 4 if len(scores) > 1 else scores[0].size
        length = (len(scores) - 1) * stride + scores[0].size
        return cls(np.lib.stride_tricks.as_strided(scores, (length,), (4,)), stride)


def labels_of(scores: np.ndarray, targets: Targets, threads: int = 1) -> np.ndarray:
    """Turn logits into the labels that they stand for, as `Targets.decode` does.

    Args:
        scores: (K, X, Y, Z) float.
        targets: what the channels stand for.
        threads: of the compiled way.

    Returns:
        (X, Y, Z) uint8.

    Raises:
        DataError: a score is NaN or infinite.
    """
    loops = kernels()
    if loops is None or targets.kind != "classes" or scores.dtype != np.float32:
        finite = all(np.isfinite([score.min(), score.max()]).all() for score in scores)
        labels = targets.decode(scores) if finite else None
    else:
        flat, labels = _Flat.of(scores), np.empty(scores.shape[1:], np.uint8)
        voxels = labels.reshape(-1)
        largest = loops.largest_of_few if len(scores) <= 8 else loops.largest_of_many

        def part(limits: Part) -> bool:
            begin, end = limits
            return bool(largest(flat.values, begin, flat.stride, len(scores), voxels[begin:end]))

        finite = all(in_parts(part, voxels.size, threads, 1 << 20))
    if not finite or labels is None:
        raise DataError("scores have NaN or infinite values; the network's weights are broken")
    return labels


def labels_between(
    labels: np.ndarray,
    coordinates: Coordinates,
    scores: np.ndarray,
    targets: Targets,
    threads: int = 1,
) -> np.ndarray:
    """Label the points of a rectilinear grid by the linearly interpolated scores.

    The same labels as `kdpipe.data.geometry.labels_at`, where it is said why only the points
    between voxels of different labels are interpolated.

    Args:
        labels: (X, Y, Z) uint8, what `labels_of` makes of `scores`.
        coordinates: three vectors, in voxels; beyond the edge the nearest voxel counts.
        scores: (K, X, Y, Z) finite.
        targets: what the channels stand for.
        threads: of the compiled way.

    Returns:
        uint8, as long along each axis as the vectors.
    """
    loops = kernels()
    if loops is None:
        return labels_at(labels, coordinates, scores, targets.decode)
    sides = [neighbours(c, n) for c, n in zip(coordinates, labels.shape, strict=True)]
    low, high, weight = (tuple(side[i] for side in sides) for i in range(3))
    if not any(w.any() for w in weight):
        nearest: np.ndarray = labels[np.ix_(*low)]
        return nearest
    labels, flat = np.ascontiguousarray(labels), _Flat.of(scores)
    result = np.empty([len(c) for c in coordinates], np.uint8)
    paint = np.array(targets.paint, np.int64).reshape(-1, 2)

    def part(limits: Part) -> None:
        planes = slice(*limits)
        where = [(side[0][planes], *side[1:]) for side in (low, high, weight)]
        loops.between(labels, flat.values, flat.stride, *where, paint, result[planes])

    in_parts(part, len(result), threads, 8)
    return result


def in_parts(work: Callable[[Part], object], n: int, threads: int, least: int) -> list[object]:
    """Do `work` on the ranges that 0..n is divided into, `least` long or more, in threads."""
    count = max(1, min(4 * threads, n // least)) if threads > 1 else 1
    edges = np.linspace(0, n, count + 1).astype(int).tolist()
    parts = list(zip(edges[:-1], edges[1:], strict=True))
    if count == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
