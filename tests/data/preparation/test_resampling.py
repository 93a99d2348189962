"""Resampled images are scipy's, skimage's and nnU-Net's; labels those of linear one-hot codes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from threadpoolctl import threadpool_limits

from kdpipe.data.geometry import Grid, to_array, to_image
from kdpipe.data.preparation import resampling
from kdpipe.data.preparation.resampling import CUBIC, LINEAR, image_at, one_hot_at

RNG = np.random.default_rng(0)
SHAPES = [
    ((50, 40, 20), (27, 22, 40)),
    ((21, 70, 150), (45, 38, 77)),
    ((9, 4, 1), (5, 11, 3)),
    ((13, 13, 13), (13, 13, 13)),
]


def centred(shape: tuple[int, ...], new: tuple[int, ...]) -> list[np.ndarray]:
    return [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(shape, new, strict=True)]


def resampled(image: np.ndarray, coordinates: list[np.ndarray], order: int) -> np.ndarray:
    out = np.full([len(c) for c in coordinates], np.nan, np.float32)
    image_at(image, coordinates, order, out)
    return out


@pytest.mark.parametrize("order", [LINEAR, CUBIC])
@pytest.mark.parametrize(("shape", "new"), SHAPES)
def test_images_equal_scipys(shape: tuple[int, ...], new: tuple[int, ...], order: int) -> None:
    image = RNG.integers(-1000, 1000, shape).astype(np.int16)
    expected = ndimage.zoom(
        image.astype(float),
        [m / n for n, m in zip(shape, new, strict=True)],
        order=order,
        mode="nearest",
        grid_mode=True,
    ).clip(image.min(), image.max())
    for stored in (image, np.asfortranarray(image)):
        found = resampled(stored, centred(shape, new), order)
        assert np.abs(found - expected).max() <= 1e-6 * np.ptp(image.astype(float))


def test_images_equal_nnunets() -> None:
    pytest.importorskip("nnunetv2")
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    shape, new = SHAPES[0]
    image = RNG.normal(0, 100, shape).astype(np.float32)
    theirs = resample_data_or_seg_to_shape(
        image[None], new, (0.8, 0.8, 3.0), (1.5, 1.5, 1.5), order=3
    )[0]
    found = resampled(image, centred(shape, new), CUBIC)
    assert np.abs(found - theirs).max() <= 1e-6 * np.ptp(image)


@pytest.mark.parametrize(
    ("order", "kind", "rim"), [(CUBIC, sitk.sitkBSpline, 14), (LINEAR, sitk.sitkLinear, 0)]
)
def test_images_equal_simpleitks_away_from_the_edges(order: int, kind: int, rim: int) -> None:
    """SimpleITK mirrors the image at its edges; the spline forgets it by 0.27 a voxel."""
    shape = (50, 44, 38)
    image = RNG.normal(0, 100, shape).astype(np.float32)
    grid = Grid(shape, (1.0, 1.1, 0.9), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    wanted = grid.respaced((0.73, 0.8, 1.0))
    positions, _ = grid.coordinates_of(wanted)
    theirs = to_array(
        sitk.Resample(
            to_image(image, grid), wanted.size, sitk.Transform(), kind, wanted.origin,
            wanted.spacing, wanted.direction, 0.0, sitk.sitkFloat32, True,
        )
    ).clip(image.min(), image.max())  # fmt: skip
    inner = [
        np.flatnonzero((p >= rim) & (p <= n - 1 - rim))
        for p, n in zip(positions, shape, strict=True)
    ]
    off = np.abs(resampled(image, positions, order) - theirs)[np.ix_(*inner)]
    assert off.size > 1000
    assert off.max() <= 1e-6 * np.ptp(image)


def test_beyond_the_edge_the_nearest_voxel_counts() -> None:
    image = RNG.normal(size=(8, 8, 8)).astype(np.float32)
    whole = np.arange(8.0)
    far = np.array([-9.0, 0.0, 3.0, 7.0, 20.0])
    found = resampled(image, [far, whole, whole], LINEAR)
    np.testing.assert_array_equal(found, image[[0, 0, 3, 7, 7]])
    cubic = resampled(image, [np.array([-9.0, 20.0]), whole, whole], CUBIC)
    np.testing.assert_allclose(cubic, image[[0, 7]], atol=1e-4)


def test_threads_change_no_bit() -> None:
    shape, new = SHAPES[1]
    image, results = RNG.normal(size=shape).astype(np.float32), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            results.append(resampled(image, centred(shape, new), CUBIC))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("slab", [1, 5, 1000])
@pytest.mark.parametrize("points", [97, 1 << 14])
@pytest.mark.parametrize(("shape", "new"), [SHAPES[0], SHAPES[2]])
def test_labels_are_those_of_one_hot_codes(
    shape: tuple[int, ...],
    new: tuple[int, ...],
    points: int,
    slab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "_SLAB", slab)
    monkeypatch.setattr(resampling, "_POINTS", points)
    smooth = ndimage.gaussian_filter(RNG.normal(size=shape), 1.5)
    label = np.digitize(smooth, np.quantile(smooth, [0.3, 0.5, 0.7, 0.9])).astype(np.uint8)
    label[:: shape[0] // 2] = RNG.integers(0, 255, label[:: shape[0] // 2].shape)
    coordinates = centred(shape, new)
    mesh = np.stack(np.meshgrid(*coordinates, indexing="ij"))
    ids = np.unique(label)
    best, runner_up = np.zeros((2, *new))
    expected = np.zeros(new, np.uint8)
    for label_id in ids:
        share = ndimage.map_coordinates((label == label_id) * 1.0, mesh, order=1, mode="nearest")
        better = share > best + 1e-9
        runner_up = np.maximum(runner_up, np.where(better, best, share))
        expected[better], best = label_id, np.maximum(best, share)
    clear = best - runner_up > 1e-6
    found = one_hot_at(label, coordinates)
    np.testing.assert_array_equal(found[clear], expected[clear])
    np.testing.assert_array_equal(found, one_hot_at(np.asfortranarray(label), coordinates))


def test_ties_go_to_the_lowest_label() -> None:
    label = np.zeros((2, 2, 2), np.uint8)
    label[1] = 3
    half = np.array([0.5])
    assert one_hot_at(label, [half, np.zeros(1), np.zeros(1)]).item() == 0
    label[:, 1] = 2
    assert one_hot_at(label, [half, half, half]).item() == 2
