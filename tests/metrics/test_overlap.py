"""Dice from the joint histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest
from medpy.metric.binary import dc

from kdpipe.metrics.overlap import Overlap, dice, joint_histogram


def test_counts_and_dice_of_a_hand_made_case() -> None:
    reference = np.array([[0, 1, 1], [2, 2, 7]], dtype=np.uint8)
    prediction = np.array([[0, 1, 2], [2, 2, 0]], dtype=np.uint8)
    histogram = joint_histogram(reference, prediction)
    assert histogram.labels.tolist() == [0, 1, 2, 7]
    assert histogram.counts.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0]]
    assert histogram.overlap((2,)) == Overlap(reference=2, prediction=3, intersection=2)
    scores = dice(reference, prediction, {"one": (1,), "two": (2,), "both": (1, 2), "seven": (7,)})
    assert scores == {"one": 2 / 3, "two": 4 / 5, "both": 1.0, "seven": 0.0}


def test_a_union_counts_voxels_that_swapped_labels() -> None:
    reference = np.array([[1, 2], [3, 0]])
    prediction = np.array([[2, 1], [3, 3]])
    assert dice(reference, prediction, {"a": (1,), "region": (2, 1)}) == {"a": 0.0, "region": 1.0}


def test_missing_in_both_is_nan_and_missing_in_one_is_zero() -> None:
    reference = np.array([[0, 1]])
    prediction = np.array([[2, 0]])
    scores = dice(reference, prediction, {"1": (1,), "2": (2,), "3": (3,)})
    assert scores["1"] == scores["2"] == 0.0
    assert math.isnan(scores["3"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_equals_medpy_exactly(mask_pairs, ndim: int) -> None:
    for reference, prediction, _ in mask_pairs(ndim, 150, ndim):
        assert dice(reference, prediction, {"x": (1,)})["x"] == dc(prediction, reference)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64, np.int64])
def test_many_labels_equal_medpy_for_every_integer_type(dtype: type) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([0, 0, 0, 1, 2, 5, 100])
    reference, prediction = (rng.choice(ids, (9, 8, 7)).astype(dtype) for _ in range(2))
    structures = {str(i): (int(i),) for i in ids[3:]} | {"union": (1, 5, 100)}
    for name, value in dice(reference, prediction, structures).items():
        masks = [np.isin(v, structures[name]) for v in (prediction, reference)]
        assert value == dc(*masks)


def test_all_background_and_the_largest_label() -> None:
    empty = np.zeros((3, 3), dtype=np.uint16)
    assert joint_histogram(empty, empty).counts.tolist() == [[9]]
    large = empty.copy()
    large[0, 0] = 65535
    assert joint_histogram(large, empty).overlap((65535,)) == Overlap(1, 0, 0)


@pytest.mark.parametrize(
    ("reference", "prediction", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\) and \(3, 2\)"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), "prediction must hold integer .* float64"),
        (np.full((2, 3), -1), np.zeros((2, 3), int), "reference labels .* from -1 to -1"),
        (np.zeros((2, 3), int), np.full((2, 3), 70000), "prediction labels .* to 70000"),
        (np.zeros(3, int), np.zeros(3, int), r"2 or 3 axes with voxels, got shape \(3,\)"),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), r"got shape \(0, 3\)"),
    ],
)
def test_wrong_volumes_are_refused(reference, prediction, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joint_histogram(reference, prediction)
