"""Scores on the prepared grid come back to the native grid: exactly where that is possible."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from kdpipe.data.geometry import Grid, to_array
from kdpipe.data.preparation.preprocess import prepare_images, prepare_label
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.infer.restore import Restorer, restore_labels, write_labels
from kdpipe.presets import Preset

AFFINES = {
    "RAS": np.diag([1.1, 0.9, 2.7, 1.0]),
    "LPS": np.array([[-0.8, 0, 0, 90.5], [0, -0.8, 0, 12.25], [0, 0, 3.0, -7.1], [0, 0, 0, 1]]),
    "AIL": np.array([[0, 0, -2.0, 30], [1.5, 0, 0, -20], [0, -3.0, 0, 10], [0, 0, 0, 1]]),
    "SPR": np.array([[0, 0, 0.7, 3], [0, -1.3, 0, 4], [2.2, 0, 0, -500.3], [0, 0, 0, 1]]),
}
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]] @ np.diag([1.2, 1.2, 2.5])
AFFINES["oblique"] = OBLIQUE


SHAPE = (58, 52, 44)
CLASSES = Targets(3)


def preset(**changes: Any) -> Preset:
    window = {"kind": "window", "low": 0, "high": 100}
    return Preset.model_validate({"intensity": window, "patch": (8, 8, 8)} | changes)


def blobs(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    x, y, z = np.indices(shape) / (np.array(shape)[:, None, None, None] - 1.0)
    label = np.zeros(shape, np.uint8)
    label[(x - 0.4) ** 2 + (y - 0.45) ** 2 + (z - 0.5) ** 2 < 0.06] = 1
    label[(x - 0.7) ** 2 + (y - 0.6) ** 2 + (z - 0.5) ** 2 < 0.03] = 2
    return label


def native_case(folder: Path, affine: np.ndarray) -> tuple[sitk.Image, sitk.Image, Path]:
    label = blobs()
    image = np.where(label > 0, 80, 0) + np.random.default_rng(0).integers(1, 9, label.shape)
    image[:3] = image[-2:] = image[:, :, :2] = 0
    files = folder / "image.nii.gz", folder / "label.nii.gz"
    for file, array in zip(files, (image.astype(np.int16), label), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return sitk.ReadImage(str(files[0])), sitk.ReadImage(str(files[1])), files[1]


def one_hot(label: np.ndarray, n: int = 3) -> np.ndarray:
    return np.stack([label == i for i in range(n)]).astype(np.float32)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.logical_and(one, other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("code", ["RAS", "IPL"])
@pytest.mark.parametrize("crop", [False, True])
def test_way_back_is_exact_without_resampling(
    tmp_path: Path, name: str, code: str, crop: bool
) -> None:
    image, label, file = native_case(tmp_path, AFFINES[name])
    _, geometry = prepare_images([image], preset(orientation=code, crop_foreground=crop))
    prepared = prepare_label(label, geometry)
    assert (prepared.size < label.GetNumberOfPixels()) == crop

    found = restore_labels(one_hot(prepared), geometry, CLASSES)
    written = nibabel.load(write_labels(found, tmp_path / "out", "case_1"))
    expected = nibabel.load(file)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(written.affine, expected.affine, atol=1e-6)
    assert written.get_data_dtype() == np.uint8
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["case_1.nii.gz"]


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.7, 1.9), (1.5, 1.5, 2.0)])
def test_way_back_is_close_after_resampling(tmp_path: Path, name: str, spacing: Any) -> None:
    image, label, file = native_case(tmp_path, AFFINES[name])
    chosen = preset(spacing=spacing, crop_foreground=True)
    _, geometry = prepare_images([image], chosen)
    prepared = prepare_label(label, geometry)
    written = restore_labels(one_hot(prepared), geometry, CLASSES)
    assert Grid.of(written) == Grid.of(image)
    for i in (1, 2):
        got, expected = to_array(written) == i, to_array(label) == i
        assert overlap(got, expected) > 0.95, i
        moved = np.subtract(*[np.argwhere(mask).mean(axis=0) for mask in (got, expected)])
        assert np.abs(moved).max() < 0.3, "a shift of half a voxel would show here"


def smooth_scores(channels: int, geometry: dict[str, Any]) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=(channels, *geometry["prepared"]["size"]))
    return np.stack([ndimage.gaussian_filter(part, 1.0) for part in noise]).astype(np.float32)


def fully_interpolated(scores: np.ndarray, geometry: dict[str, Any]) -> np.ndarray:
    """Every channel at every native voxel, (K, X, Y, Z): what `restore_labels` never holds."""
    native, prepared = (Grid.from_dict(geometry[key]) for key in ("native", "prepared"))
    index = np.indices(native.size).reshape(3, -1)
    points = native.axes @ (index * np.array(native.spacing)[:, None])
    points += np.array(native.origin)[:, None] - np.array(prepared.origin)[:, None]
    where = (prepared.axes.T @ points) / np.array(prepared.spacing)[:, None]
    full = [ndimage.map_coordinates(s, where, order=1, mode="nearest") for s in scores]
    size = np.array(prepared.size)[:, None]
    outside = ((where < -0.5 - 1e-3) | (where > size - 0.5 + 1e-3)).any(axis=0)
    return np.where(outside, -np.inf, np.stack(full)).reshape(-1, *native.size)


@pytest.mark.parametrize("name", AFFINES)
def test_interpolated_labels_are_those_of_the_full_interpolation(tmp_path: Path, name: str) -> None:
    """The shortcut for agreeing neighbours must not change one voxel."""
    image, _, _ = native_case(tmp_path, AFFINES[name])
    _, geometry = prepare_images([image], preset(spacing=(1.7, 1.4, 2.1)))
    scores = smooth_scores(5, geometry)
    full = fully_interpolated(scores, geometry)
    ranked = np.sort(full, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    assert clear.mean() > 0.99

    got = to_array(restore_labels(scores, geometry, CLASSES))
    np.testing.assert_array_equal(got[clear], full.argmax(axis=0)[clear])


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("regions", [((1, 2, 3), (1, 3), (3,)), ((1, 2), (2, 3), (2,))])
@pytest.mark.parametrize(
    "changes",
    [
        {"spacing": (1.7, 1.4, 2.1)},
        {"spacing": (0.53, None, 3.7), "crop_foreground": True},
        {"spacing": (None, 0.9, 1.1), "orientation": None},
    ],
    ids=["coarse", "one axis kept, cropped", "not oriented"],
)
def test_interpolated_regions_are_those_of_the_full_interpolation(
    tmp_path: Path, name: str, regions: Any, changes: dict[str, Any]
) -> None:
    """Each region is interpolated, then painted; not the label map that they make."""
    image, _, _ = native_case(tmp_path, AFFINES[name])
    _, geometry = prepare_images([image], preset(**changes))
    scores = smooth_scores(3, geometry)
    full = fully_interpolated(scores, geometry)
    clear = (np.abs(full) > 1e-4).all(axis=0)
    assert clear.mean() > 0.98

    order = sorted(range(3), key=lambda channel: -len(regions[channel]))
    expected = np.zeros(full.shape[1:], np.uint8)
    for channel in order:
        inner = set().union(*(set(ids) for ids in regions if set(ids) < set(regions[channel])))
        (label,) = set(regions[channel]) - inner
        expected[full[channel] > 0] = label
    got = to_array(restore_labels(scores, geometry, Targets(4, regions)))
    assert set(np.unique(got)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(got[clear], expected[clear])


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("code", [None, "RAS", "IPL"])
def test_regions_come_back_exactly_without_resampling(
    tmp_path: Path, name: str, code: str | None
) -> None:
    image, label, _ = native_case(tmp_path, AFFINES[name])
    chosen = preset(orientation=code, spacing=(None, None, None), crop_foreground=True)
    _, geometry = prepare_images([image], chosen)
    prepared = prepare_label(label, geometry)
    scores = np.stack([prepared > 0, prepared == 2]).astype(np.float32) - 0.5
    written = restore_labels(scores, geometry, Targets(3, ((1, 2), (2,))))
    assert Grid.of(written) == Grid.of(image)
    np.testing.assert_array_equal(to_array(written), to_array(label))


def test_outside_the_crop_is_background(tmp_path: Path) -> None:
    image, _, _ = native_case(tmp_path, AFFINES["AIL"])
    _, geometry = prepare_images([image], preset(spacing=(1.0, 1.0, 1.0), crop_foreground=True))
    everywhere_1 = np.zeros((2, *geometry["prepared"]["size"]), np.float32)
    everywhere_1[1] = 1
    got = to_array(restore_labels(everywhere_1, geometry, CLASSES))
    assert got.max() == 1
    assert not got[0].any()
    assert got[to_array(image) > 0].all()


def test_ties_go_to_the_background(tmp_path: Path) -> None:
    image, _, _ = native_case(tmp_path, AFFINES["RAS"])
    _, geometry = prepare_images([image], preset())
    assert not to_array(restore_labels(np.zeros((3, *SHAPE), np.float32), geometry, CLASSES)).any()


def test_logits_of_any_sign_and_layout_are_taken(tmp_path: Path) -> None:
    image, label, _ = native_case(tmp_path, AFFINES["LPS"])
    _, geometry = prepare_images([image], preset(spacing=(1.0, 1.0, 2.0)))
    scores = one_hot(prepare_label(label, geometry)) * 7 - 20
    turned = np.ascontiguousarray(scores.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    expected = to_array(restore_labels(scores, geometry, CLASSES))
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(to_array(restore_labels(turned, geometry, CLASSES)), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    image, _, _ = native_case(tmp_path, AFFINES["RAS"])
    _, geometry = prepare_images([image], preset())
    scores = np.zeros((3, *SHAPE), np.float32)
    scores[2, 5, 5, 5] = value
    with pytest.raises(DataError, match="scores have NaN or infinite"):
        restore_labels(scores, geometry, CLASSES)


def test_scores_of_another_case_are_refused(tmp_path: Path) -> None:
    image, _, _ = native_case(tmp_path, AFFINES["RAS"])
    _, geometry = prepare_images([image], preset())
    with pytest.raises(DataError, match=r"\(3, 58, 52, 43\), the prepared grid is \(58, 52, 44\)"):
        restore_labels(np.zeros((3, 58, 52, 43), np.float32), geometry, CLASSES)


def test_memory_is_bounded_by_the_label_map() -> None:
    """No native score volume, let alone one a class: 20 of those would be 128 MB."""
    scores = np.zeros((20, 30, 30, 30), np.float32)
    scores[1:, 5:25, 5:25, 5:25] = np.random.default_rng(0).normal(size=(19, 20, 20, 20)) + 3
    prepared = Grid((30, 30, 30), (4.0,) * 3, (1.5,) * 3, tuple(np.eye(3).ravel()))
    native = Grid((120, 120, 120), (1.0,) * 3, (0.0,) * 3, prepared.direction)
    geometry = {"native": native._asdict(), "prepared": prepared._asdict()}
    tracemalloc.start()
    restore_labels(scores, geometry, CLASSES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


SLABS = [
    {"spacing": (1.7, 1.4, 2.1)},
    {"spacing": (0.53, None, 3.7), "crop_foreground": True},
    {"spacing": (None, None, None), "crop_foreground": True, "orientation": "IPL"},
    {"spacing": (9.0, 9.0, 9.0)},
]


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("changes", SLABS)
@pytest.mark.parametrize("targets", [CLASSES, Targets(4, ((1, 2, 3), (1, 3), (3,)))])
def test_slabs_make_the_labels_of_the_whole(
    tmp_path: Path, name: str, axis: int, changes: dict[str, Any], targets: Targets
) -> None:
    image, _, _ = native_case(tmp_path, AFFINES[name])
    _, geometry = prepare_images([image], preset(**changes))
    scores = smooth_scores(3, geometry)
    restorer = Restorer(geometry, targets, keeps_prepared=True)
    rng, end, n = np.random.default_rng(2), 0, scores.shape[1 + axis]
    while end < n:
        start, end = max(0, end - 1), min(n, end + int(rng.integers(1, 9)))
        restorer.take(axis, start, scores.take(range(start, end), 1 + axis))
    expected = to_array(restore_labels(scores, geometry, targets))
    np.testing.assert_array_equal(to_array(restorer.image()), expected)
    own = to_array(restorer.prepared_image())
    np.testing.assert_array_equal(own, targets.decode(scores))


def test_slabs_that_are_missing_are_noticed(tmp_path: Path) -> None:
    image, _, _ = native_case(tmp_path, AFFINES["RAS"])
    _, geometry = prepare_images([image], preset())
    scores = smooth_scores(3, geometry)
    restorer = Restorer(geometry, CLASSES)
    restorer.take(0, 0, scores[:, :9])
    with pytest.raises(DataError, match="scores have shape"):
        restorer.image()
    with pytest.raises(DataError, match="scores have shape"):
        restorer.take(0, 9, scores[:, 9:])
