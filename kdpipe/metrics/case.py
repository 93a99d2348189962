"""One case under evaluation: two label volumes, and the structures that they hold.

What all structures share (the joint histogram, the bounding box of every label) is computed once;
what only some metrics need (surface distances) is computed when first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage

from kdpipe.metrics.overlap import joint_histogram
from kdpipe.metrics.surface import SurfaceDistances, surface_distances

Status = Literal["ok", "missing_in_prediction", "missing_in_reference", "missing_in_both"]
Box = tuple[slice, ...]


class LabelPair:
    """The two label volumes of a case with what all structures share: histogram and boxes."""

    def __init__(
        self, reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]
    ) -> None:
        """Count the label pairs; volumes as `joint_histogram` says, spacing one step an axis."""
        self.volumes = (reference, prediction)
        self.spacing = spacing
        self.histogram = joint_histogram(reference, prediction)
        extent = (n * step for n, step in zip(reference.shape, spacing, strict=True))
        # Edge to edge, not between the centres of corner voxels: the BraTS penalty of 373.13.
        self.diagonal = math.hypot(*extent)

    @cached_property
    def _boxes(self) -> list[list[Box | None]]:
        """Bounding box of every label, for both volumes: label i is at index i - 1."""
        return [ndimage.find_objects(volume.astype(np.uint16)) for volume in self.volumes]

    def masks(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Boolean masks of the union of `ids`, cropped to what both need; ids must occur."""
        found = [boxes[i - 1] for boxes in self._boxes for i in ids if i <= len(boxes)]
        corners = [[(axis.start, axis.stop) for axis in box] for box in found if box is not None]
        low, high = np.min(corners, axis=0)[:, 0], np.max(corners, axis=0)[:, 1]
        box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        reference, prediction = (_mask(volume[box], ids) for volume in self.volumes)
        return reference, prediction


class StructurePair:
    """One structure in reference and prediction; distances are computed when first asked for."""

    def __init__(self, labels: LabelPair, ids: Sequence[int]) -> None:
        """Look at the union of the labels `ids`."""
        self._labels, self._ids = labels, ids
        self.overlap = labels.histogram.overlap(ids)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Directed surface distances, in the unit of the spacing."""
        return surface_distances(*self._labels.masks(self._ids), self._labels.spacing)

    @property
    def status(self) -> Status:
        """Which of the two volumes lack the structure."""
        if self.overlap.reference:
            return "ok" if self.overlap.prediction else "missing_in_prediction"
        return "missing_in_reference" if self.overlap.prediction else "missing_in_both"


def _mask(volume: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    mask: np.ndarray = volume == ids[0]
    for label in ids[1:]:
        mask |= volume == label
    return mask
