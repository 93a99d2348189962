"""Surface distances: analytic cases, and medpy and MONAI as oracles."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from kdpipe.metrics import surface
from kdpipe.metrics.surface import (
    hd95_max,
    hd95_pooled,
    max_hausdorff,
    pooled_hausdorff,
    surface_distances,
)


def _mask(shape: tuple[int, ...], *slices: slice | int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


def test_two_voxels_2_mm_apart() -> None:
    reference, prediction = _mask((9, 9), 4, 3), _mask((9, 9), 4, 5)
    distances = surface_distances(reference, prediction, (3.0, 1.0))
    assert distances.prediction_to_reference.tolist() == [2.0]
    assert distances.reference_to_prediction.tolist() == [2.0]
    assert hd95_pooled(reference, prediction, (3.0, 1.0)) == 2.0
    assert hd95_max(reference, prediction, (3.0, 1.0)) == 2.0


def test_the_spacing_belongs_to_the_axes_in_order() -> None:
    origin = _mask((5, 5, 5), 0, 0, 0)
    spacing = (5.0, 0.7, 2.0)
    for axis, step in enumerate(spacing):
        place = [0, 0, 0]
        place[axis] = 3
        assert hd95_max(origin, _mask((5, 5, 5), *place), spacing) == pytest.approx(3 * step)
    diagonal = hd95_pooled(origin, _mask((5, 5, 5), 1, 2, 1), spacing)
    assert diagonal == pytest.approx(math.sqrt(25 + 1.96 + 4))


def test_shifted_cube_moves_by_the_shift() -> None:
    cube = slice(2, 8)
    reference = _mask((20, 20, 20), cube, cube, cube)
    prediction = _mask((20, 20, 20), cube, cube, slice(5, 11))
    distances = surface_distances(reference, prediction, (4.0, 4.0, 1.5))
    # the two faces across the shift are 36 voxels each; the far one is 3 steps away
    assert distances.prediction_to_reference.max() == 4.5
    assert max_hausdorff(distances, 100.0) == pooled_hausdorff(distances, 100.0) == 4.5
    assert distances.prediction_to_reference.size == 6**3 - 4**3
    assert (distances.prediction_to_reference == 4.5).sum() == 36


def test_pooled_and_max_differ_for_a_one_sided_error() -> None:
    reference = _mask((1, 100), 0, slice(0, 90))
    prediction = _mask((1, 100), 0, slice(0, 50))  # one row: every voxel is surface
    distances = surface_distances(reference, prediction, (1.0, 1.0))
    assert distances.prediction_to_reference.tolist() == [0.0] * 50
    assert distances.reference_to_prediction.tolist() == [0.0] * 50 + list(range(1, 41))
    assert max_hausdorff(distances, 95.0) == pytest.approx(0.95 * 89 - 49)
    assert pooled_hausdorff(distances, 95.0) == pytest.approx(0.95 * 139 - 99)


def test_equal_masks_have_distance_zero() -> None:
    mask = _mask((6, 7, 8), slice(1, 4), slice(0, 7), slice(2, 5))
    assert hd95_pooled(mask, mask, (1.0, 2.0, 3.0)) == hd95_max(mask, mask, (1.0, 2.0, 3.0)) == 0.0


def _rank_slack(distances: np.ndarray) -> float:
    """What torch.quantile may be off: it computes the rank, up to n, in float32."""
    ordered, rank = np.sort(distances), 0.95 * (distances.size - 1)
    around = ordered[max(math.floor(rank) - 1, 0) : math.ceil(rank) + 2]
    return float(np.finfo(np.float32).eps * distances.size * np.ptp(around))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_equals_medpy_to_the_bit_and_monai_to_float32(mask_pairs, ndim: int) -> None:
    differ = 0
    for reference, prediction, spacing in mask_pairs(10 + ndim, 200, ndim):
        distances = surface_distances(reference, prediction, spacing)
        pooled, largest = pooled_hausdorff(distances, 95.0), max_hausdorff(distances, 95.0)
        assert pooled == medpy_hd95(prediction, reference, spacing, connectivity=1)
        one_hot = (torch.from_numpy(m)[None, None].float() for m in (prediction, reference))
        monai = compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=list(spacing)
        )
        directed = distances.prediction_to_reference, distances.reference_to_prediction
        slack = max(_rank_slack(d) for d in directed)
        assert abs(largest - monai.item()) <= 1e-6 * largest + slack
        # with torch's own float32 percentile on these distances the two agree without slack
        in_float32 = max(torch.quantile(torch.from_numpy(d).float(), 0.95) for d in directed)
        assert in_float32.item() == pytest.approx(monai.item(), rel=1e-6)
        assert hd95_pooled(reference, prediction, spacing) == pooled
        assert hd95_max(reference, prediction, spacing) == largest
        differ += abs(pooled - largest) > 1e-3
    assert differ > 50  # the pairs do tell the two definitions apart


def test_every_distance_equals_the_full_volume_transform(mask_pairs) -> None:
    for reference, prediction, spacing in mask_pairs(7, 60, 3):
        border_r, border_p = (m ^ ndimage.binary_erosion(m) for m in (reference, prediction))
        expected = ndimage.distance_transform_edt(~border_r, sampling=spacing)[border_p]
        found = surface_distances(reference, prediction, spacing).prediction_to_reference
        assert np.array_equal(found, expected)


def test_masks_and_their_place_in_a_big_volume_do_not_matter(mask_pairs) -> None:
    for reference, prediction, spacing in mask_pairs(8, 30, 3):
        # not at an edge of the small image, so that padding does not change the surface
        inner = [np.pad(m, 1) for m in (reference, prediction)]
        padded = [np.pad(m, ((5, 30), (11, 3), (0, 17))) for m in inner]
        assert hd95_pooled(*padded, spacing) == hd95_pooled(*inner, spacing)
        fortran = [np.asfortranarray(m) for m in inner]
        assert hd95_pooled(*fortran, spacing) == hd95_pooled(*inner, spacing)


def test_an_empty_mask_is_infinitely_far() -> None:
    empty, mask = np.zeros((4, 4), dtype=bool), _mask((4, 4), slice(0, 2), 1)
    distances = surface_distances(empty, mask, (1.0, 1.0))
    assert distances.prediction_to_reference.tolist() == [math.inf, math.inf]
    assert distances.reference_to_prediction.size == 0
    distances = surface_distances(mask, empty, (1.0, 1.0))
    assert distances.prediction_to_reference.size == 0
    assert distances.reference_to_prediction.tolist() == [math.inf, math.inf]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair in ((empty, mask), (mask, empty), (empty, empty)):
            assert hd95_pooled(*pair, (1.0, 1.0)) == hd95_max(*pair, (1.0, 1.0)) == math.inf


@pytest.mark.parametrize(
    "spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -2.0), (1.0, math.nan), (math.inf, 1.0)]
)
def test_wrong_spacing_is_refused_with_its_value(spacing: tuple[float, ...]) -> None:
    mask = _mask((4, 4), 1, 1)
    with pytest.raises(ValueError, match="spacing_mm needs 2 positive finite") as caught:
        surface_distances(mask, mask, spacing)
    assert str(spacing) in str(caught.value)


def test_wrong_masks_are_refused() -> None:
    mask = _mask((4, 4), 1, 1)
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 5\)"):
        surface_distances(mask, np.zeros((4, 5), dtype=bool), (1.0, 1.0))
    with pytest.raises(ValueError, match="must be boolean, got bool and uint8"):
        surface_distances(mask, mask.astype(np.uint8), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"2 or 3 axes, got shape \(4,\)"):
        surface_distances(mask[0], mask[0], (1.0,))


def test_spacing_has_no_default_anywhere() -> None:
    for name, function in inspect.getmembers(surface, inspect.isfunction):
        parameter = inspect.signature(function).parameters.get("spacing_mm")
        assert parameter is None or parameter.default is inspect.Parameter.empty, name
    assert "spacing_mm" in inspect.signature(surface_distances).parameters
