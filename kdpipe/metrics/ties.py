"""Which of several equally near voxels scipy's Euclidean distance transform takes.

Equally near in exact arithmetic, not in floating point: at steps of 0.8 mm, 5 voxels along an
axis come out one unit in the last place shorter than 3 and 4 along two. medpy and MONAI report the
distance to the voxel that scipy's transform happens to keep, so exact agreement needs its choice.
"""

from __future__ import annotations

import numpy as np

# Squared distances that differ by less, relatively, are equal in exact arithmetic.
TIE = 1e-12


def chosen(steps: np.ndarray, spacing: np.ndarray) -> float:
    """Squared distance to the one of equally near voxels that scipy's transform keeps.

    The transform (Maurer et al. 2003) settles axis after axis: along each line it drops a site
    whose cell between its neighbours is empty, then walks on while the distance falls. Voxels
    that are farther away cannot change its choice among the nearest ones.

    Args:
        steps: from the voxel to each of the equally near ones, integers, shape `(n, 3)`, sorted
            by the last, then the middle axis. Is overwritten.
        spacing: of the three axes, float64, shape `(3,)`.
    """
    count = len(steps)
    # Of the site that a line holds: the square of its distance within the axes done so far.
    rest = np.empty(count)
    for i in range(count):
        rest[i] = (steps[i, 0] * spacing[0]) ** 2
    kept = np.empty(count, np.int64)
    for axis in (1, 2):
        step, first, lines = spacing[axis], 0, 0
        while first < count:
            stop = first + 1
            while stop < count and (axis == 2 or steps[stop, 2] == steps[first, 2]):
                stop += 1
            top = -1
            for new in range(first, stop):
                if top >= 0 and steps[new, axis] == steps[kept[top], axis]:
                    continue  # on either side along the first axis: one site of the line's
                while top >= 1:
                    left, middle = kept[top - 1], kept[top]
                    a = (steps[middle, axis] - steps[left, axis]) * step
                    b = (steps[new, axis] - steps[middle, axis]) * step
                    c = a + b
                    if c * rest[middle] - b * rest[left] - a * rest[new] - a * b * c <= 0.0:
                        break
                    top -= 1
                top += 1
                kept[top] = new
            at = 0
            best = rest[kept[0]] + (steps[kept[0], axis] * step) ** 2
            while at < top:
                following = rest[kept[at + 1]] + (steps[kept[at + 1], axis] * step) ** 2
                if best <= following:
                    break
                best, at = following, at + 1
            steps[lines, 2] = steps[kept[at], 2]
            rest[lines] = best
            first, lines = stop, lines + 1
        count = lines
    return float(rest[0])
