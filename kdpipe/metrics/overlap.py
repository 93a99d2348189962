"""Overlap of two label volumes, every structure from one joint histogram.

One pass over the voxels counts how often reference label r meets predicted label p; the Dice of
any structure, unions of labels included, is then a few sums over that small table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from kdpipe.metrics.labelled import in_memory_order, kernels, words

# Labels index a lookup table; beyond 16 bits a file hardly holds a label map of organs.
MAX_LABEL = 2**16 - 1
# Up to here a table of all pairs of labels is small.
DIRECT_LABELS = 1024
BLOCK_VOXELS = 2**20


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

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard) in [0, 1]; NaN where missing in both volumes."""
        union = self.reference + self.prediction - self.intersection
        return float(self.intersection) / float(union) if union else math.nan


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
        # `np.isin` and `np.unique` would take a good part of the time of a small case
        wanted = np.array(sorted(set(ids)))
        at = np.searchsorted(self.labels[:-1], wanted)
        inside = at[self.labels[at] == wanted]
        rows = self.counts[inside]
        return Overlap(
            reference=int(rows.sum()),
            prediction=int(self.counts[:, inside].sum()),
            intersection=int(rows[:, inside].sum()),
        )


def joint_histogram(
    reference: np.ndarray, prediction: np.ndarray, *, jit: bool | None = None
) -> JointHistogram:
    """Count the label pairs of two volumes.

    Args:
        reference: integer (or boolean) labels in [0, 65535], shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        jit: see `labelled.kernels`.

    Raises:
        ValueError: shapes differ, not 2 or 3 axes, labels not integer or outside the range.
    """
    largest = check_label_volumes(reference, prediction)
    loops = kernels(jit)
    if largest < DIRECT_LABELS:
        counts = _pair_counts(reference, prediction, largest + 1, loops)
        seen: np.ndarray = counts.any(axis=0) | counts.any(axis=1)
        seen[0] = True
        labels = np.flatnonzero(seen)
        return JointHistogram(labels=labels, counts=counts[labels[:, None], labels])
    return _sparse_histogram(reference, prediction, largest + 1)


def _pair_counts(
    reference: np.ndarray, prediction: np.ndarray, labels: int, loops: ModuleType | None
) -> np.ndarray:
    """Counts of all pairs of labels below `labels`, int64, shape `(labels, labels)`."""
    counts = np.zeros((labels, labels), np.int64)
    if loops is not None and reference.dtype == prediction.dtype:
        (r, turned), (p, other) = (in_memory_order(v) for v in (reference, prediction))
        if turned == other:
            loops.count_pairs(r.reshape(-1), p.reshape(-1), words(r), words(p), counts)
            counts[0, 0] += reference.size - counts.sum()
            return counts
    for r, p in _blocks(reference, prediction):
        # Most voxels are background in both volumes: they are counted, never looked up.
        foreground = (r != 0) | (p != 0)
        pairs = r[foreground].astype(np.int64) * labels + p[foreground].astype(np.int64)
        counts += np.bincount(pairs, minlength=labels**2).reshape(counts.shape)
    counts[0, 0] += reference.size - counts.sum()
    return counts


def _sparse_histogram(reference: np.ndarray, prediction: np.ndarray, bound: int) -> JointHistogram:
    """The joint histogram of labels too high for a table of all pairs."""
    seen = np.zeros(bound, bool)
    seen[0] = True
    for blocks in _blocks(reference, prediction):
        for block in blocks:
            seen[block] = True
    labels = np.flatnonzero(seen)
    position = np.zeros(bound, np.int64)
    position[labels] = np.arange(len(labels))
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for r, p in _blocks(reference, prediction):
        pairs = position[r] * len(labels) + position[p]
        counts += np.bincount(pairs.ravel(), minlength=counts.size).reshape(counts.shape)
    return JointHistogram(labels=labels, counts=counts)


def _blocks(*volumes: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut volumes alike into slabs of about `BLOCK_VOXELS`, to bound the memory that work takes."""
    first = volumes[0]
    axis = int(np.argmax(first.strides))
    thickness = max(1, BLOCK_VOXELS * first.shape[axis] // first.size)
    for start in range(0, first.shape[axis], thickness):
        window = (slice(None),) * axis + (slice(start, start + thickness),)
        yield tuple(volume[window] for volume in volumes)


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


def check_label_volumes(reference: np.ndarray, prediction: np.ndarray) -> int:
    """Return the largest label of two label volumes.

    Raises:
        ValueError: see `joint_histogram`.
    """
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction differ in shape: {reference.shape} and {prediction.shape}"
        )
    if reference.ndim not in (2, 3) or reference.size == 0:
        raise ValueError(f"label volumes need 2 or 3 axes with voxels, got shape {reference.shape}")
    largest = 0
    for name, volume in (("reference", reference), ("prediction", prediction)):
        if volume.dtype.kind not in "biu":
            raise ValueError(f"{name} must hold integer labels, got dtype {volume.dtype}")
        # All values of a byte are labels. In a small volume a look costs less than a large table.
        if volume.dtype.kind in "bu" and volume.itemsize == 1 and volume.size > BLOCK_VOXELS:
            high = int(np.iinfo(np.uint8).max)
        else:
            low = int(volume.min()) if volume.dtype.kind == "i" else 0
            high = int(volume.max())
            if low < 0 or high > MAX_LABEL:
                raise ValueError(
                    f"{name} labels must lie in [0, {MAX_LABEL}], they range from {low} to {high}"
                )
        largest = max(largest, high)
    return largest


def mean_of_known(values: Sequence[float]) -> float:
    """Mean without NaN, as a structure that neither volume has is not scored; 0 if none is left."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else 0.0
