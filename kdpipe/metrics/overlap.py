"""Overlap of two label volumes, every structure from one joint histogram.

One pass over the voxels counts how often reference label r meets predicted label p; the Dice of
any structure, unions of labels included, is then a few sums over that small table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Labels index a lookup table; beyond 16 bits a file hardly holds a label map of organs.
MAX_LABEL = 2**16 - 1


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one structure: in the reference, in the prediction, in both."""

    reference: int
    prediction: int
    intersection: int

    @property
    def dice(self) -> float:
        """Dice coefficient in [0, 1]; NaN where the structure is missing in both volumes."""
        total = self.reference + self.prediction
        return 2.0 * self.intersection / float(total) if total else math.nan


@dataclass(frozen=True)
class JointHistogram:
    """Counts of label pairs.

    Attributes:
        labels: labels that occur in either volume and 0, ascending, shape `(K,)`.
        counts: voxels with reference label `labels[r]` and predicted label `labels[p]`, at
            `[r, p]`, shape `(K, K)`.
    """

    labels: np.ndarray
    counts: np.ndarray

    def overlap(self, ids: Sequence[int]) -> Overlap:
        """Counts of the structure that is the union of the labels `ids`."""
        inside = np.isin(self.labels, ids)
        rows = self.counts[inside]
        return Overlap(
            reference=int(rows.sum()),
            prediction=int(self.counts[:, inside].sum()),
            intersection=int(rows[:, inside].sum()),
        )


def joint_histogram(reference: np.ndarray, prediction: np.ndarray) -> JointHistogram:
    """Count the label pairs of two volumes.

    Args:
        reference: integer (or boolean) labels in [0, 65535], shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.

    Raises:
        ValueError: shapes differ, not 2 or 3 axes, labels not integer or outside the range.
    """
    check_label_volumes(reference, prediction)
    # Most voxels are background in both volumes: they are counted, never looked up.
    foreground = (reference != 0) | (prediction != 0)
    r, p = (volume[foreground].astype(np.int64) for volume in (reference, prediction))
    labels = np.flatnonzero(np.bincount(np.concatenate((r, p, [0]))))
    position = np.zeros(int(labels[-1]) + 1, dtype=np.int64)
    position[labels] = np.arange(len(labels))
    pairs = position[r] * len(labels) + position[p]
    counts = np.bincount(pairs, minlength=len(labels) ** 2).reshape(len(labels), len(labels))
    counts[0, 0] = reference.size - r.size
    return JointHistogram(labels=labels, counts=counts)


def dice(
    reference: np.ndarray, prediction: np.ndarray, structures: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Dice coefficient of every structure, equal to `medpy.metric.binary.dc` of its masks.

    Args:
        reference: integer labels in [0, 65535], shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        structures: name -> labels whose union is the structure; none of them the background 0.

    Returns:
        Name -> Dice in [0, 1]: 0 where the structure is missing in one volume, NaN where it is
        missing in both.

    Raises:
        ValueError: as `joint_histogram`.
    """
    histogram = joint_histogram(reference, prediction)
    return {name: histogram.overlap(ids).dice for name, ids in structures.items()}


def check_label_volumes(reference: np.ndarray, prediction: np.ndarray) -> None:
    """Raise ValueError unless both are label volumes of one shape (see `joint_histogram`)."""
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction differ in shape: {reference.shape} and {prediction.shape}"
        )
    if reference.ndim not in (2, 3) or reference.size == 0:
        raise ValueError(f"label volumes need 2 or 3 axes with voxels, got shape {reference.shape}")
    for name, volume in (("reference", reference), ("prediction", prediction)):
        if volume.dtype.kind not in "biu":
            raise ValueError(f"{name} must hold integer labels, got dtype {volume.dtype}")
        low, high = int(volume.min()), int(volume.max())
        if low < 0 or high > MAX_LABEL:
            raise ValueError(
                f"{name} labels must lie in [0, {MAX_LABEL}], they range from {low} to {high}"
            )
