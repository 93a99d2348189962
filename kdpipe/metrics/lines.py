"""The nearest voxel of one structure, line by line in the box that holds it: far, and many at once.

A k-d tree looks at many voxels that lie almost as near. Here, a first pass over the box finds for
each of its voxels the nearest one along the last axis; then a point asks one number of each line
around it, and no more lines than the distance of the point before it allows.
"""

from __future__ import annotations

import numpy as np

from kdpipe.metrics.points import Spacing, exact_sums, unravel

# A tree costs as much as so many voxels of a box for each of its own and for each that asks.
BUILT, ASKED = 250, 5000
# Voxels of the largest box, of two bytes each.
MOST_VOXELS = 2**24


def in_lines(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, int, int], spacing: Spacing
) -> np.ndarray | None:
    """Distances from flat indices to the nearest of other flat indices, by compiled loops.

    Args:
        source: indices into a volume, shape `(n,)`; quickest in C order.
        target: likewise, not empty.
        shape: of the volume.
        spacing: one step an axis.

    Returns:
        The values of `tree.in_tree` to the bit, or None where the box is so large that a tree is
        quicker.
    """
    from kdpipe.metrics import lines_jit  # heavy, and not everywhere

    points, voxels = unravel(source, shape), unravel(target, shape)
    low, high = voxels.min(axis=1), voxels.max(axis=1)
    low[2], high[2] = min(low[2], points[2].min()), max(high[2], points[2].max())
    planes, rows, columns = (high - low + 1).tolist()
    rows += -rows % lines_jit.VECTOR
    worth = min(BUILT * len(target) + ASKED * len(source), MOST_VOXELS)
    if planes * rows * columns > worth or columns > lines_jit.FAR:
        return None
    near = np.empty((planes, columns, rows), np.uint16)
    lines_jit.fill_lines(near, voxels - low[:, None])
    found = np.empty(len(source))
    exact = exact_sums(spacing, shape)
    lines_jit.search_lines(near, points - low[:, None], np.array(spacing), exact, found)
    return found
