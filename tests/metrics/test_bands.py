"""Errors by distance from the boundary."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kdpipe.metrics import bands
from kdpipe.metrics.bands import BAND_EDGES_MM, band_names
from kdpipe.metrics.case import LabelPair, StructurePair

NAMES = ["in_4_up", "in_2_4", "in_1_2", "in_0_1", "out_0_1", "out_1_2", "out_2_4", "out_4_8"]


def _by_definition(reference: np.ndarray, prediction: np.ndarray, spacing: tuple) -> dict:
    surface = reference ^ ndimage.binary_erosion(reference)
    distance = np.round(ndimage.distance_transform_edt(~surface, sampling=spacing), 9)
    signed = np.where(reference, -distance, distance)
    wrong = reference != prediction
    limits = ((-np.inf, -4), (-4, -2), (-2, -1), (-1, 0), (0, 1), (1, 2), (2, 4), (4, 8))
    answer = {}
    for name, (low, high) in zip(NAMES, limits, strict=True):
        if name.startswith("out"):
            inside = ~reference & (signed > low) & (signed <= high)
        else:
            inside = reference & (signed >= low) & ((signed < high) | (high == 0))
        answer[name] = (int(inside.sum()), int((inside & wrong).sum()))
    return answer


def test_names_from_the_deepest_to_the_farthest() -> None:
    assert band_names(BAND_EDGES_MM) == NAMES
    assert band_names((0.5, 2.0)) == ["in_0.5_up", "in_0_0.5", "out_0_0.5", "out_0.5_2"]


def test_a_row_of_voxels_counted_by_hand() -> None:
    reference, prediction = np.zeros((1, 30), np.uint8), np.zeros((1, 30), np.uint8)
    reference[0, 10:12] = 1
    prediction[0, 11:15] = 1
    found = StructurePair(LabelPair(reference, prediction, (1.0, 1.0)), (1,)).bands()
    # One row: both voxels are surface. Wrong are voxel 10, and 12, 13, 14 at 1, 2 and 3 mm.
    assert found == {
        "in_4_up": (0, 0), "in_2_4": (0, 0), "in_1_2": (0, 0), "in_0_1": (2, 1),
        "out_0_1": (2, 1), "out_1_2": (2, 1), "out_2_4": (4, 1), "out_4_8": (8, 0),
    }  # fmt: skip


@pytest.mark.parametrize("ndim", [2, 3])
def test_equals_the_transform_of_the_whole_volume(mask_pairs, monkeypatch, ndim: int) -> None:
    monkeypatch.setattr(bands, "SLAB_VOXELS", 300)  # several slabs even in small volumes
    for reference, prediction, spacing in mask_pairs(20 + ndim, 150, ndim):
        expected = _by_definition(reference, prediction, spacing)
        volumes = [mask.astype(np.uint8) * 3 for mask in (reference, prediction)]
        for jit in (True, False):
            assert StructurePair(LabelPair(*volumes, spacing, jit=jit), (3,)).bands() == expected


def test_missing_structures() -> None:
    empty, full = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    in_reference = StructurePair(LabelPair(full, empty, (1.0, 1.0)), (1,)).bands()
    assert in_reference["in_0_1"] == (16, 16)
    in_prediction = StructurePair(LabelPair(empty, full, (1.0, 1.0)), (1,)).bands()
    assert in_prediction == dict.fromkeys(NAMES, (0, 0))
