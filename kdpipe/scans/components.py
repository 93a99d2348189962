"""Keep the largest connected component of a structure.

Voxels that touch at a face, an edge or a corner (26 neighbours) are connected. Of components of
equal size the first in storage order stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kdpipe.data.targets import Targets
from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.labels import paint_order

_NEIGHBOURS = np.ones((3, 3, 3), bool)


class Cleanup(NamedTuple):
    """A structure of which one component stays.

    Attributes:
        name: of the structure.
        ids: labels whose union it is.
        instead: label of the voxels that do not stay.
    """

    name: str
    ids: tuple[int, ...]
    instead: int


def cleanups(
    targets: Targets, labels: Mapping[int, str], names: Sequence[str] = ()
) -> list[Cleanup]:
    """Return what to clean up, in order.

    Of regions, a name means the region that is painted with the label of that name, with all that
    lies in it: for whole tumour {1, 2, 3} painted as label 2, the name of label 2. What does not
    stay becomes part of the region around it, else background.

    Args:
        targets: of the network.
        labels: label id -> name.
        names: of structures; none: all.

    Raises:
        ConfigError: there is no such structure.
    """
    known = {cleanup.name: cleanup for cleanup in _all(targets, labels)}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--largest-component: no structure {name!r}, {did_you_mean(name, known)} (scans "
                "are given before this option)"
            )
    return [cleanup for cleanup in known.values() if not names or cleanup.name in names]


def _all(targets: Targets, labels: Mapping[int, str]) -> list[Cleanup]:
    if targets.regions is None:
        return [Cleanup(labels[i], (i,), 0) for i in range(1, targets.n_labels)]
    painted = {frozenset(targets.regions[at]): label for at, label in paint_order(targets.regions)}
    found = []
    for ids, label in painted.items():
        around = [other for other in painted if ids < other]  # larger regions come first
        found.append(
            Cleanup(labels[label], tuple(sorted(ids)), painted[around[-1]] if around else 0)
        )
    return found


def keep_largest(labels: np.ndarray, todo: Sequence[Cleanup]) -> None:
    """Clean a label map (*S) uint8 of three axes up in place, each structure within its box."""
    boxes = ndimage.find_objects(labels)
    for cleanup in todo:
        found = [boxes[i - 1] for i in cleanup.ids if i <= len(boxes) and boxes[i - 1]]
        if found:
            box = tuple(
                slice(min(side.start for side in sides), max(side.stop for side in sides))
                for sides in zip(*found, strict=True)
            )
            _keep_one(labels[box], cleanup)


def _keep_one(part: np.ndarray, cleanup: Cleanup) -> None:
    inside = np.zeros(256, bool)
    inside[list(cleanup.ids)] = True
    components, count = ndimage.label(inside[part], _NEIGHBOURS)
    if count < 2:
        return
    sizes = np.zeros(count + 1, np.int64)
    for plane in components:  # of the whole, counting would need eight bytes a voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    largest = int(sizes[1:].argmax()) + 1
    for plane, component in zip(part, components, strict=True):
        plane[(component != 0) & (component != largest)] = cleanup.instead
