"""The metric engine against medpy, MONAI and DeepMind's package, with JIT and without.

Random mask pairs, 10,000 of them with `make soak`: every pair against medpy (exactly) and against
the other path (to the bit), every fourth one against MONAI (float32) and every fourth one against
surface-distance.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import hd as medpy_hd
from medpy.metric.binary import hd95 as medpy_hd95
from metrics.oracles import (
    deepmind_distances,
    deepmind_scores,
    medpy_scores,
    monai_scores,
)

from kdpipe import metrics
from kdpipe.jit import _imported
from kdpipe.metrics import labelled
from kdpipe.metrics.case import LabelPair, StructurePair
from kdpipe.metrics.elements import (
    average_surface_distance,
    robust_hausdorff,
    surface_dice_at_tolerance,
    surface_elements,
)
from kdpipe.metrics.overlap import joint_histogram
from kdpipe.metrics.surface import (
    SurfaceDistances,
    assd,
    max_hausdorff,
    nsd,
    pooled_hausdorff,
    surface_distances,
)

TOLERANCE_MM = 1.7


def _same(one: SurfaceDistances, other: SurfaceDistances) -> bool:
    return np.array_equal(one.prediction_to_reference, other.prediction_to_reference) and (
        np.array_equal(one.reference_to_prediction, other.reference_to_prediction)
    )


def _monai_agrees(distances: SurfaceDistances, scores: list[float]) -> None:
    """MONAI's ranks are float32 too: its percentile is compared by its own function."""
    directed = [distances.prediction_to_reference, distances.reference_to_prediction]
    in_float32 = max(torch.quantile(torch.from_numpy(d).float(), 0.95) for d in directed)
    assert in_float32.item() == pytest.approx(scores[0], rel=1e-6)
    assert max_hausdorff(distances, 100.0) == pytest.approx(scores[1], rel=1e-6)
    assert nsd(distances, TOLERANCE_MM) == pytest.approx(scores[2], rel=1e-6)


def _deepmind_agrees(reference: np.ndarray, prediction: np.ndarray, spacing: tuple) -> None:
    theirs = deepmind_distances(reference, prediction, spacing)
    for jit in (True, False):
        ours = surface_elements(reference, prediction, spacing, jit=jit)
        assert np.array_equal(ours.reference_to_prediction, theirs["distances_gt_to_pred"])
        assert np.array_equal(ours.prediction_to_reference, theirs["distances_pred_to_gt"])
        np.testing.assert_allclose(ours.reference_areas, theirs["surfel_areas_gt"], rtol=1e-12)
        np.testing.assert_allclose(ours.prediction_areas, theirs["surfel_areas_pred"], rtol=1e-12)
        scores = [
            robust_hausdorff(ours, 95.0),
            surface_dice_at_tolerance(ours, TOLERANCE_MM),
            *average_surface_distance(ours),
        ]
        assert scores == pytest.approx(deepmind_scores(theirs, TOLERANCE_MM), rel=1e-9)


@pytest.mark.parametrize("pairs", [1000, pytest.param(5000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_mask_pairs(mask_pairs, ndim: int, pairs: int) -> None:
    for i, (reference, prediction, spacing) in enumerate(mask_pairs(100 + ndim, pairs, ndim)):
        distances = surface_distances(reference, prediction, spacing, jit=True)
        assert _same(distances, surface_distances(reference, prediction, spacing, jit=False))
        fast, slow = (joint_histogram(reference, prediction, jit=jit) for jit in (True, False))
        assert np.array_equal(fast.counts, slow.counts)
        overlap = fast.overlap((1,))
        scores = [
            overlap.dice,
            overlap.iou,
            max_hausdorff(distances, 100.0),
            pooled_hausdorff(distances, 95.0),
            assd(distances),
        ]
        assert scores == medpy_scores(reference, prediction, spacing)
        if i % 4 == 0:
            scores = monai_scores(reference, prediction, spacing, TOLERANCE_MM)
            _monai_agrees(distances, scores)
        if i % 4 == 1:
            _deepmind_agrees(reference, prediction, spacing)


def test_medpy_scores_are_what_its_functions_return(mask_pairs) -> None:
    for reference, prediction, spacing in mask_pairs(1, 40, 3):
        scores = medpy_scores(reference, prediction, spacing)
        masks = prediction, reference
        assert scores[2:] == [f(*masks, spacing) for f in (medpy_hd, medpy_hd95, medpy_assd)]


@pytest.mark.parametrize("step", [0.7, 0.8, 1 / 3, 1.1])
def test_equally_near_voxels_are_chosen_as_scipy_does(step: float) -> None:
    """Scattered voxels at equal steps: many are equally near but for the last place."""
    rng, mixed = np.random.default_rng(3), 0
    for turn in range(40):
        shape, spacing = (
            ((24, 25, 26), (step,) * 3) if turn % 2 else ((20, 30, 30), (3.0, step, step))
        )
        reference, prediction = (rng.random(shape) < share for share in (0.004, 0.02))
        theirs = medpy_scores(reference, prediction, spacing)
        for jit in (True, False):
            distances = surface_distances(reference, prediction, spacing, jit=jit)
            assert assd(distances) == theirs[4]
        values = np.unique(distances.prediction_to_reference)
        mixed += int((np.diff(values) < 1e-12).sum())
    assert mixed > 20  # there were such voxels


def test_every_pattern_has_its_area() -> None:
    for pattern in range(1, 256):
        mask = np.zeros((4, 4, 4), bool)
        mask[1:3, 1:3, 1:3] = np.array(list(f"{pattern:08b}"), int).reshape(2, 2, 2)
        _deepmind_agrees(mask, mask, (0.7, 1.9, 3.1))
    for pattern in range(1, 16):
        flat = np.zeros((4, 4), bool)
        flat[1:3, 1:3] = np.array(list(f"{pattern:04b}"), int).reshape(2, 2)
        _deepmind_agrees(flat, flat, (0.7, 1.9))


def test_empty_masks_by_every_definition() -> None:
    empty, mask = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    for pair in ((empty, mask), (mask, empty)):
        distances = surface_distances(*pair, (1.0, 2.0))
        assert assd(distances) == math.inf
        assert nsd(distances, 1.0) == 0.0
        elements = surface_elements(*pair, (1.0, 2.0))
        assert robust_hausdorff(elements, 95.0) == math.inf
        assert surface_dice_at_tolerance(elements, 1.0) == 0.0
        assert average_surface_distance(elements) == (math.inf, math.inf)
    assert math.isnan(nsd(surface_distances(empty, empty, (1.0, 2.0)), 1.0))
    elements = surface_elements(empty, empty, (1.0, 2.0))
    assert robust_hausdorff(elements, 95.0) == math.inf
    assert math.isnan(surface_dice_at_tolerance(elements, 1.0))


def _label_volume(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    volume = np.zeros(shape, dtype)
    for label in (1, 2, 3, 5, 90):
        low = [int(rng.integers(0, n)) for n in shape]
        window = tuple(
            slice(a, a + int(rng.integers(1, n + 1))) for a, n in zip(low, shape, strict=True)
        )
        volume[window] = label
    return volume


STRUCTURES = {
    "1": (1,),
    "2": (2,),
    "90": (90,),
    "region": (1, 2),
    "union": (3, 5),
    "all": (1, 2, 3, 5, 90),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("jit", [True, False])
def test_label_volumes_equal_their_masks_one_by_one(
    dtype: type, order: str, jit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdpipe.metrics.labelled.WORTH_THREADS", 0)
    rng = np.random.default_rng(np.dtype(dtype).itemsize)
    for shape in ((9, 17, 20), (23, 31), (1, 12, 13), (6, 8, 16)):
        spacing = tuple(rng.uniform(0.5, 3.0, len(shape)).tolist())
        volumes = [np.asarray(_label_volume(rng, shape, dtype), order=order) for _ in range(2)]
        volumes[0].flags.writeable = dtype != np.uint8  # files are read into read-only arrays
        labels = LabelPair(*volumes, spacing, STRUCTURES, jit=jit, threads=2)
        for ids in STRUCTURES.values():
            masks = [np.isin(volume, ids) for volume in volumes]
            pair = StructurePair(labels, ids)
            if pair.status != "ok":
                continue
            assert _same(pair.distances, surface_distances(*masks, spacing, jit=False))
            alone = StructurePair(LabelPair(*volumes, spacing, jit=jit), ids)
            assert _same(pair.distances, alone.distances)
            expected = surface_elements(*masks, spacing, jit=False)
            assert np.array_equal(
                pair.elements.reference_to_prediction, expected.reference_to_prediction
            )
            assert np.array_equal(pair.elements.prediction_areas, expected.prediction_areas)


def test_dice_alone_searches_no_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a surface was searched")

    for loops in (labelled.kernels(jit=True), None):
        monkeypatch.setattr("kdpipe.metrics.case.labelled_distances", fail)
        volume = np.ones((4, 5, 6), np.uint8)
        pair = StructurePair(LabelPair(volume, volume, (1.0,) * 3, jit=loops is not None), (1,))
        assert (pair.overlap.dice, pair.overlap.iou, pair.status) == (1.0, 1.0, "ok")


def test_structures_without_a_common_label_are_searched_in_one_pass(monkeypatch) -> None:
    passes = []
    search = labelled.labelled_distances
    monkeypatch.setattr(
        "kdpipe.metrics.case.labelled_distances",
        lambda *arguments: passes.append(arguments[2]) or search(*arguments),
    )
    volume = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)
    structures = {"a": (1,), "b": (2,), "region": (1, 2), "c": (3,), "absent": (9,)}
    labels = LabelPair(volume, volume, (1.0, 1.0), structures)
    for name, ids in structures.items():
        if name != "absent":
            assert StructurePair(labels, ids).distances.prediction_to_reference.max() == 0.0
    assert passes == [[(1,), (2,), (3,)], [(1, 2)]]


def test_the_way_without_jit_is_taken_where_numba_is_missing_or_unwanted(monkeypatch) -> None:
    assert labelled.kernels() is labelled.kernels(jit=True)
    monkeypatch.setenv("KDPIPE_JIT", "0")
    assert labelled.kernels() is None
    monkeypatch.delenv("KDPIPE_JIT")
    _imported.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "kdpipe.metrics.labelled_jit")
    monkeypatch.delattr(metrics, "labelled_jit")
    assert labelled.kernels() is None
    with pytest.raises(ImportError):
        labelled.kernels(jit=True)
    _imported.cache_clear()
