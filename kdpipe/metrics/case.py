"""One case under evaluation: two label volumes, and the structures that they hold.

What all structures share (the joint histogram, the bounding box of every label) is computed once;
what only some metrics need (surface distances) is computed when first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from kdpipe.metrics.bands import BAND_EDGES_MM, Bands, band_names, error_bands
from kdpipe.metrics.elements import SurfaceElements, surface_elements
from kdpipe.metrics.labelled import (
    Box,
    Ids,
    disjoint_groups,
    kernels,
    label_boxes,
    labelled_distances,
    mask_of,
    union_box,
)
from kdpipe.metrics.overlap import Overlap, joint_histogram
from kdpipe.metrics.surface import SurfaceDistances

Status = Literal["ok", "missing_in_prediction", "missing_in_reference", "missing_in_both"]


class LabelPair:
    """The two label volumes of a case with what all structures share: histogram and surfaces."""

    def __init__(
        self,
        reference: np.ndarray,
        prediction: np.ndarray,
        spacing: tuple[float, ...],
        structures: Mapping[str, Sequence[int]] | None = None,
        *,
        jit: bool | None = None,
        threads: int = 1,
    ) -> None:
        """Count the label pairs.

        Args:
            reference: labels as `joint_histogram` says.
            prediction: likewise, same shape.
            spacing: one step an axis.
            structures: name -> labels; surfaces of those that share no label are searched
                together. Others may still be asked for, each on its own.
            jit: see `labelled.kernels`.
            threads: that share the search of surfaces, with JIT.
        """
        self.volumes = (reference, prediction)
        self.spacing = spacing
        self.histogram = joint_histogram(reference, prediction, jit=jit)
        self.jit, self.threads = jit, threads
        self._structures = [tuple(ids) for ids in (structures or {}).values()]
        self._distances: dict[Ids, SurfaceDistances] = {}
        self._overlaps: dict[Ids, Overlap] = {}
        extent = (n * step for n, step in zip(reference.shape, spacing, strict=True))
        # Edge to edge, not between the centres of corner voxels: the BraTS penalty of 373.13.
        self.diagonal = math.hypot(*extent)

    def overlap(self, ids: Sequence[int]) -> Overlap:
        """Voxel counts of the union of `ids`."""
        wanted = tuple(ids)
        if wanted not in self._overlaps:
            self._overlaps[wanted] = self.histogram.overlap(wanted)
        return self._overlaps[wanted]

    def distances(self, ids: Sequence[int]) -> SurfaceDistances:
        """Directed surface distances of the union of `ids`, and of all that are found with it."""
        wanted = tuple(ids)
        if wanted not in self._distances:
            together = next((group for group in self._groups if wanted in group), [wanted])
            found = labelled_distances(
                *self.volumes, together, self.spacing, kernels(self.jit), self.threads
            )
            for one, directed in zip(together, found, strict=True):
                self._distances[one] = SurfaceDistances(*directed)
        return self._distances[wanted]

    @cached_property
    def _groups(self) -> list[list[Ids]]:
        """Structures that are searched together: those in both volumes that share no label."""
        overlaps = [self.overlap(ids) for ids in self._structures]
        present = [bool(overlap.reference and overlap.prediction) for overlap in overlaps]
        found = [ids for ids, there in zip(self._structures, present, strict=True) if there]
        return disjoint_groups(list(dict.fromkeys(found)))

    @cached_property
    def _boxes(self) -> list[list[Box | None]]:
        """Bounding box of every label, for both volumes: label i is at index i - 1."""
        return [label_boxes(volume) for volume in self.volumes]

    def masks(self, ids: Sequence[int], margin_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Boolean masks of the union of `ids`, cropped to what both need.

        Args:
            ids: labels, of which one occurs at least.
            margin_mm: more than 0 crops to the reference and this much around it.
        """
        box = union_box(self._boxes[:1] if margin_mm else self._boxes, ids)
        assert box is not None, f"none of the labels {ids} occurs"
        margins = (math.ceil(margin_mm / step) for step in self.spacing)
        box = tuple(
            slice(max(axis.start - margin, 0), axis.stop + margin)
            for axis, margin in zip(box, margins, strict=True)
        )
        reference, prediction = (mask_of(volume[box], ids) for volume in self.volumes)
        return reference, prediction


class StructurePair:
    """One structure in reference and prediction; surfaces are searched when first asked for."""

    def __init__(self, labels: LabelPair, ids: Sequence[int]) -> None:
        """Look at the union of the labels `ids`."""
        self._labels, self._ids = labels, ids
        self.overlap: Overlap = labels.overlap(ids)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Directed surface distances, in the unit of the spacing."""
        return self._labels.distances(self._ids)

    @cached_property
    def elements(self) -> SurfaceElements:
        """Directed distances between surface elements with their areas."""
        if self.status == "missing_in_both":
            return SurfaceElements(*(np.empty(0) for _ in range(4)))
        masks = self._labels.masks(self._ids)
        return surface_elements(*masks, self._labels.spacing, jit=self._labels.jit)

    def bands(self, edges_mm: Sequence[float] = BAND_EDGES_MM) -> Bands:
        """Voxels and wrong voxels by distance from the reference, see `bands.error_bands`."""
        if not self.overlap.reference:
            return dict.fromkeys(band_names(edges_mm), (0, 0))
        masks = self._labels.masks(self._ids, margin_mm=edges_mm[-1])
        return error_bands(*masks, self._labels.spacing, edges_mm, kernels(self._labels.jit))

    @property
    def status(self) -> Status:
        """Which of the two volumes lack the structure."""
        if self.overlap.reference:
            return "ok" if self.overlap.prediction else "missing_in_prediction"
        return "missing_in_reference" if self.overlap.prediction else "missing_in_both"
