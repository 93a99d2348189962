"""From scores on the prepared grid back to a label map on the native grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from kdpipe.atomic import atomic_path
from kdpipe.data.geometry import ON_A_VOXEL, Grid, neighbours, to_image
from kdpipe.data.relabel import labels_between, labels_of
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.images.files import write_nifti


class Restorer:
    """Takes the scores of a case slab by slab and makes its label maps, without keeping scores.

    Where the native and the prepared grid differ by axis order, flips and crop only, voxels are
    copied. Otherwise each channel's score is interpolated linearly, then turned into labels; a
    native voxel whose eight prepared neighbours agree needs no interpolation, so that no native
    score volume ever exists. Voxels outside the prepared (cropped) region are background.

    Args:
        geometry: of the prepared case, `StoredCase.geometry`.
        targets: what the channels stand for.
        threads: that work on a slab.
        keeps_prepared: also keep the labels on the prepared grid.
    """

    def __init__(
        self,
        geometry: dict[str, Any],
        targets: Targets,
        threads: int = 1,
        keeps_prepared: bool = False,
    ):
        self.targets, self.threads = targets, threads
        self.native, self.prepared = (
            Grid.from_dict(geometry[name]) for name in ("native", "prepared")
        )
        self._coordinates, self._order = self.prepared.coordinates_of(self.native)
        self._inside = [
            _range((position >= -0.5 - ON_A_VOXEL) & (position <= n - 0.5 + ON_A_VOXEL))
            for position, n in zip(self._coordinates, self.prepared.size, strict=True)
        ]
        self._labels = np.zeros([len(position) for position in self._coordinates], np.uint8)
        self._own = np.zeros(self.prepared.size, np.uint8) if keeps_prepared else None
        self._end, self._complete = 0, False

    def take(self, axis: int, start: int, scores: np.ndarray) -> None:
        """Label what lies between planes `start` and the end of this slab.

        Args:
            axis: along which slabs follow one another, the same for all.
            start: first plane of `scores`; 0, then always the last plane of the slab before.
            scores: (K, X, Y, Z) float, logits; all planes but those of `axis`.

        Raises:
            DataError: `scores` are not finite, or are no part of this case.
        """
        size = list(self.prepared.size)
        size[axis] = scores.shape[1 + axis]
        end = start + size[axis]
        if scores.ndim != 4 or list(scores.shape[1:]) != size or start != max(0, self._end - 1):
            raise self._misfit(scores.shape)
        labels = labels_of(scores, self.targets, self.threads)
        if self._own is not None:
            self._own[(slice(None),) * axis + (slice(start, end),)] = labels
        places = list(self._inside)
        places[axis] = self._between(axis, end)
        self._end, self._complete = end, end == self.prepared.size[axis]
        near = [where[part] for where, part in zip(self._coordinates, places, strict=True)]
        near[axis] = near[axis] - start
        if all(map(len, near)):
            self._labels[tuple(places)] = labels_between(
                labels, near, scores, self.targets, self.threads
            )

    def _between(self, axis: int, end: int) -> slice:
        """Return the native planes that need plane ``end - 1``, or lie in front of it."""
        part = self._inside[axis]
        n = self.prepared.size[axis]
        _, high, _ = neighbours(self._coordinates[axis][part], n)
        new = (high < end) & (high >= self._end)
        within = _range(new)
        return slice(part.start + within.start, part.start + within.stop)

    def image(self) -> sitk.Image:
        """Return the labels on the native grid, uint8, with the native affine.

        Raises:
            DataError: not all slabs were taken.
        """
        self._check_end()
        return to_image(self._labels.transpose(self._order), self.native)

    def prepared_image(self) -> sitk.Image:
        """Return the labels on the prepared grid, where each voxel has scores of its own.

        Raises:
            DataError: not all slabs were taken.
        """
        self._check_end()
        assert self._own is not None, "keeps_prepared=True was not given"
        return to_image(self._own, self.prepared)

    def _check_end(self) -> None:
        if not self._complete:
            raise self._misfit((self._end,))

    def _misfit(self, shape: tuple[int, ...]) -> DataError:
        return DataError(
            f"scores have shape {shape}, the prepared grid is {self.prepared.size}; "
            "predict with the case that the geometry belongs to"
        )


def _range(where: np.ndarray) -> slice:
    """Return the range of the places that are true; they lie side by side."""
    found = np.flatnonzero(where)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def restore_labels(
    scores: np.ndarray, geometry: dict[str, Any], targets: Targets, threads: int = 1
) -> sitk.Image:
    """Return the label map of a case on its native grid, with the native affine; see `Restorer`.

    Args:
        scores: (K, X, Y, Z) float, logits of the whole prepared grid.
        geometry: of the prepared case, `StoredCase.geometry`.
        targets: what the channels stand for.
        threads: that work on it.

    Returns:
        uint8 image.

    Raises:
        DataError: if `scores` is not finite or does not fit the geometry.
    """
    restorer = Restorer(geometry, targets, threads)
    restorer.take(0, 0, scores)
    return restorer.image()


def write_labels(image: sitk.Image, out: Path, case: str) -> Path:
    """Write `<out>/<case>.nii.gz`, as a whole or not at all, and return it."""
    file = out / f"{case}.nii.gz"
    with atomic_path(file) as temporary:
        write_nifti(image, temporary)
    return file
