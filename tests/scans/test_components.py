"""The largest component stays, of classes and of regions that lie in one another."""

from __future__ import annotations

import numpy as np
import pytest

from kdpipe.data.targets import Targets
from kdpipe.errors import ConfigError
from kdpipe.scans.components import Cleanup, cleanups, keep_largest

NAMES = {0: "background", 1: "core", 2: "edema", 3: "enhancing"}
CLASSES = Targets(4)
NESTED = Targets(4, [[1, 2, 3], [1, 3], [3]])


def cleaned(labels: np.ndarray, *todo: Cleanup) -> np.ndarray:
    found = labels.copy()
    keep_largest(found, todo)
    return found


def test_small_components_of_the_chosen_structure_go() -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    labels[7, 6, 5] = 1
    labels[0, 7, 6] = labels[8, 0, 0] = 2
    expected = labels.copy()
    expected[7, 6, 5] = 0
    np.testing.assert_array_equal(cleaned(labels, *cleanups(CLASSES, NAMES, ["core"])), expected)
    expected[8, 0, 0] = 0  # of two of one size the first stays
    np.testing.assert_array_equal(cleaned(labels, *cleanups(CLASSES, NAMES)), expected)


def test_voxels_that_touch_at_a_corner_are_connected() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 1] = labels[3, 3, 3] = 1
    expected = labels.copy()
    expected[3, 3, 3] = 0
    np.testing.assert_array_equal(cleaned(labels, Cleanup("core", (1,), 0)), expected)


def test_a_structure_that_touches_another_is_one_by_itself() -> None:
    labels = np.zeros((6, 3, 3), np.uint8)
    labels[0:3], labels[3], labels[4:6] = 1, 2, 1
    expected = labels.copy()
    expected[4:6] = 0
    np.testing.assert_array_equal(cleaned(labels, Cleanup("core", (1,), 0)), expected)


def test_nothing_is_made_of_nothing() -> None:
    for labels in (np.zeros((3, 3, 3), np.uint8), np.full((3, 3, 3), 2, np.uint8)):
        found = cleaned(labels, *cleanups(CLASSES, NAMES))
        np.testing.assert_array_equal(found, labels)


def test_regions_are_cleaned_as_unions_and_fall_back_to_the_region_around() -> None:
    """A tumour whose core cuts its edema in two stays whole."""
    labels = np.zeros((20, 5, 5), np.uint8)
    labels[0:4], labels[4:8], labels[8:10] = 2, 1, 2
    labels[5, 2, 2] = 3
    labels[7, 2, 2:4] = 3
    labels[9, 4, 4] = 1  # core within the edema, apart from the core
    labels[15:17] = 2
    labels[16, 0, 0] = 3
    expected = labels.copy()
    expected[15:17] = 0
    expected[9, 4, 4] = 2
    expected[5, 2, 2] = 1
    np.testing.assert_array_equal(cleaned(labels, *cleanups(NESTED, NAMES)), expected)
    expected[9, 4, 4], expected[5, 2, 2] = 1, 3
    np.testing.assert_array_equal(cleaned(labels, *cleanups(NESTED, NAMES, ["edema"])), expected)


def test_names_of_regions_are_those_of_the_labels_that_they_paint() -> None:
    assert cleanups(NESTED, NAMES) == [
        Cleanup("edema", (1, 2, 3), 0),
        Cleanup("core", (1, 3), 2),
        Cleanup("enhancing", (3,), 1),
    ]


def test_an_unknown_structure_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no structure 'edma', did you mean 'edema'\?"):
        cleanups(CLASSES, NAMES, ["edma"])
    with pytest.raises(ConfigError, match="no structure 'scan.nii.gz'.*scans are given before"):
        cleanups(CLASSES, NAMES, ["scan.nii.gz"])
