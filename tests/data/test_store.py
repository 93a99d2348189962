"""A prepared case reads back as it was written, is replaced as a whole, and pads crops."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.data import _handles, store
from kdpipe.data.store import StoredCase, remove_stale, sample_foreground, write_case
from kdpipe.errors import DataError

SHAPE = (70, 40, 33)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *SHAPE)).astype(np.float16).astype(np.float32)
    return image, rng.integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, arrays: Any) -> Path:
    write(tmp_path / "case_1", *arrays)
    return tmp_path / "case_1"


def write(folder: Path, image: np.ndarray, label: np.ndarray, pad_value: float = -0.5) -> None:
    write_case(folder, image, label, {"pad_value": pad_value}, sample_foreground(label, 4))


def test_whole_case_reads_back(folder: Path, arrays: Any) -> None:
    case = StoredCase(folder)
    image, label = case.whole()
    assert case.shape == SHAPE
    assert case.n_channels == 2
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(image, arrays[0])
    np.testing.assert_array_equal(label, arrays[1])


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ((3, 4, 5), (20, 20, 20)),
        ((-4, 35, 30), (16, 16, 16)),
        ((-5, -5, -5), (96, 64, 48)),
        ((90, 0, 0), (8, 8, 8)),
        ((-30, 0, 0), (8, 8, 8)),
    ],
    ids=["inside", "over two edges", "larger than the volume", "beyond", "before"],
)
def test_crop_pads_what_lies_outside(folder: Path, arrays: Any, start: Any, size: Any) -> None:
    image, label = StoredCase(folder).crop(start, size)
    wide = 100
    padded_image = np.pad(arrays[0], ((0, 0), *[(wide, wide)] * 3), constant_values=-0.5)
    padded_label = np.pad(arrays[1], wide)
    box = tuple(slice(wide + b, wide + b + n) for b, n in zip(start, size, strict=True))
    np.testing.assert_array_equal(image, padded_image[:, *box])
    np.testing.assert_array_equal(label, padded_label[box])


def test_volume_smaller_than_a_block(tmp_path: Path) -> None:
    image, label = np.ones((1, 2, 3, 4), np.float32), np.ones((2, 3, 4), np.uint8)
    write(tmp_path / "tiny", image, label, pad_value=0.0)
    got, _ = StoredCase(tmp_path / "tiny").crop((-1, -1, -1), (4, 5, 6))
    assert got.sum() == 24
    assert got.shape == (1, 4, 5, 6)


def test_foreground_is_of_its_class_bounded_and_repeatable(folder: Path, arrays: Any) -> None:
    case, label = StoredCase(folder), arrays[1]
    assert case.classes == (1, 2)
    for class_id in (1, 2):
        voxels = case.foreground(class_id)
        assert voxels.dtype == np.int16
        assert voxels.shape == (5000, 3)
        assert len(np.unique(voxels, axis=0)) == 5000
        assert set(label[tuple(voxels.T)]) == {class_id}
        np.testing.assert_array_equal(voxels, sample_foreground(label, 4)[class_id])
    assert case.foreground(3).shape == (0, 3)
    with pytest.raises(DataError, match="no class 4, only 1..3"):
        case.foreground(4)


def test_small_class_is_sampled_completely() -> None:
    label = np.zeros((5, 5, 5), np.uint8)
    label[1, 2, 3] = label[4, 4, 4] = 1
    assert sample_foreground(label, 2)[1].tolist() == [[1, 2, 3], [4, 4, 4]]


def test_equal_cases_are_equal_files(folder: Path, arrays: Any) -> None:
    write(folder.with_name("twin"), *arrays)
    for name in store.FILES:
        assert (folder / name).read_bytes() == (folder.with_name("twin") / name).read_bytes()


def test_replaces_an_old_case(folder: Path, arrays: Any) -> None:
    write(folder, arrays[0] * 0, arrays[1])
    assert not StoredCase(folder).whole()[0].any()
    assert [entry.name for entry in folder.parent.iterdir()] == ["case_1"]


def test_open_files_are_those_of_the_present_case(folder: Path, arrays: Any) -> None:
    case = StoredCase(folder)
    np.testing.assert_array_equal(case.image(), arrays[0])
    assert case._open("image.b2nd") is case._open("image.b2nd")
    for sign in (-1, 1, -1):  # replaced while it is open, by files of about the same size
        write(folder, arrays[0] * sign, arrays[1])
        np.testing.assert_array_equal(case.image(), arrays[0] * sign)
    (folder / "image.b2nd").unlink()
    with pytest.raises(DataError, match=r"image\.b2nd: missing"):
        case.image()


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handles, "N_KEPT", 3)
    _handles._KEPT.arrays.clear()
    voxels = np.zeros((1, 8, 8, 8), np.float32)
    for number in range(6):
        write(tmp_path / f"case_{number}", voxels + number, voxels[0].astype(np.uint8))
        assert (StoredCase(tmp_path / f"case_{number}").image() == number).all()
    assert len(_handles._KEPT.arrays) <= 3


def test_failure_keeps_the_old_case(
    folder: Path, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store.np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        write(folder, arrays[0] * 0, arrays[1])
    np.testing.assert_array_equal(StoredCase(folder).whole()[0], arrays[0])
    assert [entry.name for entry in folder.parent.iterdir()] == ["case_1"]


def test_geometry_that_is_no_json_is_refused(tmp_path: Path, arrays: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "case_1", *arrays, pad_value=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_threads_and_pickled_copies_read_the_same(folder: Path, arrays: Any) -> None:
    case = StoredCase(folder)
    case.whole()
    copy = pickle.loads(pickle.dumps(case))
    starts = [(i % 50, i % 20, i % 13) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        crops = list(pool.map(lambda start: copy.crop(start, (20, 20, 20)), starts))
    for (x, y, z), (image, label) in zip(starts, crops, strict=True):
        box = (slice(x, x + 20), slice(y, y + 20), slice(z, z + 20))
        np.testing.assert_array_equal(image, arrays[0][:, *box])
        np.testing.assert_array_equal(label, arrays[1][box])


@pytest.mark.parametrize("name", store.FILES)
@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_damaged_case_is_a_data_error(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    case = StoredCase(folder)
    with pytest.raises(DataError, match=f"case 'case_1'.*{name}.*delete the folder .*cases.tsv"):
        case.foreground(1) if name == "foreground.npz" else case.whole()


def test_pickled_arrays_are_refused(folder: Path) -> None:
    np.savez(folder / "foreground.npz", **{"1": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="allow_pickle"):
        StoredCase(folder).foreground(1)


def test_remove_stale_touches_prepared_cases_only(folder: Path, arrays: Any) -> None:
    root = folder.parent
    write(root / "case_2", *arrays)
    (root / "notes").mkdir()
    (root / f"{store.TEMPORARY}deadbeef-new-case_3").mkdir()
    assert remove_stale(root, {"case_2"}) == ["case_1"]
    assert sorted(entry.name for entry in root.iterdir()) == ["case_2", "notes"]
    assert remove_stale(root / "absent", set()) == []


def test_sampled_foreground_is_that_of_a_draw_from_all_voxels() -> None:
    label = np.random.default_rng(1).integers(0, 3, (40, 30, 20)).astype(np.uint8)
    for class_id, found in sample_foreground(label, 3).items():
        index = np.flatnonzero(label.ravel() == class_id)
        if len(index) > 5000:
            index = np.sort(np.random.default_rng(class_id).choice(index, 5000, replace=False))
        expected = np.stack(np.unravel_index(index, label.shape), axis=1)
        np.testing.assert_array_equal(found, expected)


def stepped(folder: Path, image: np.ndarray) -> StoredCase:
    label = np.zeros(image.shape[1:], np.uint8)
    write_case(folder, image, label, {"pad_value": 0.0}, {}, stepped=True)
    return StoredCase(folder)


def test_steps_are_half_a_step_off_at_most(tmp_path: Path) -> None:
    """The definition of what a network sees: whole multiples of 1/1024, halves to the even one."""
    image = np.random.default_rng(0).normal(0, 2, (2, 20, 30, 40)).astype(np.float32)
    image[0, 0, 0, :4] = 0.5 / 1024, 1.5 / 1024, -0.5 / 1024, 31.5
    case = stepped(tmp_path / "case_1", image)
    read = case.image()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.rint(image * 1024) / 1024)
    assert np.abs(read - image).max() <= 1 / 2048
    assert read[0, 0, 0, :4].tolist() == [0, 2 / 1024, 0, 31.5]
    crop, _ = case.crop((-2, 3, 4), (8, 8, 8))
    np.testing.assert_array_equal(crop[:, 2:], read[:, :6, 3:11, 4:12])


@pytest.mark.parametrize("outlier", [32.0, -40.0, 60000.0])
def test_what_steps_cannot_hold_is_stored_as_floats(tmp_path: Path, outlier: float) -> None:
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    image[0, 1, 2, 3] = outlier
    read = stepped(tmp_path / "case_1", image).image()
    np.testing.assert_array_equal(read, image.astype(np.float16).astype(np.float32))
