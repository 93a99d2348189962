"""Preparation: geometry, intensities, one bad case among good ones, and resuming."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage

from kdpipe.data.geometry import Grid, to_array
from kdpipe.data.manifest import Case
from kdpipe.data.preparation import memory
from kdpipe.data.preparation import prepare as module
from kdpipe.data.preparation.preprocess import CROP_MARGIN, prepare_images, prepare_label
from kdpipe.data.preparation.resampling import one_hot_at
from kdpipe.data.store import FILES, StoredCase
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.presets import Preset

LABELS = Labels(raw={0: "background", 1: "liver", 2: "spleen"}, may_be_absent=("spleen",))
WINDOW = {"kind": "window", "low": -100, "high": 300}
AIL = np.array([[0, 0, -2.0, 30], [1.5, 0, 0, -20], [0, -3.0, 0, 10], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1.2, 2.5, 1.0])


def preset(**changes: Any) -> Preset:
    return Preset.model_validate({"intensity": WINDOW, "patch": (16, 16, 16)} | changes)


def phantom(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two blobs in a body in air; image in HU-like float32, label uint8."""
    grid = np.indices(shape) / (np.array(shape)[:, None, None, None] - 1.0)
    x, y, z = grid
    label = np.zeros(shape, np.uint8)
    label[(x - 0.35) ** 2 + (y - 0.45) ** 2 + (z - 0.5) ** 2 < 0.045] = 1
    label[(x - 0.7) ** 2 + (y - 0.6) ** 2 + (z - 0.5) ** 2 < 0.02] = 2
    body = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    image = np.where(body, 40 + 60 * (label == 1) + 110 * (label == 2) + noise, -1000)
    return image.astype(np.float32), label


def save(file: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return file


def make_case(folder: Path, name: str, affine: np.ndarray = AIL, shape: Any = (24, 20, 16)) -> Case:
    image, label = phantom(shape, seed=len(name))
    files = [
        save(folder / f"{name}_{kind}.nii.gz", array, affine)
        for kind, array in (("image", image), ("label", label))
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return Case(name, f"subject_{name}", (files[0],), files[1], digest)


@dataclass
class Data:
    """A data set of three cases, and where its preparation goes."""

    root: Path
    cases: list[Case] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.root / "prepared" / "cases"

    @property
    def table(self) -> Path:
        return self.root / "prepared" / "cases.tsv"

    @property
    def fingerprint(self) -> Path:
        return self.root / "prepared" / "fingerprint.json"

    def prepare(self, **changes: Any) -> None:
        given = {
            "preset": preset(spacing=(1.5, 1.5, 2.0), crop_foreground=True),
            "labels": LABELS,
            "channels": ("CT",),
            "store": self.store,
            "cases_tsv": self.table,
            "fingerprint": self.fingerprint,
            "digest": "settings",
            "workers": 1,
            "memory_mb": None,
        }
        module.prepare(self.cases, **(given | changes))

    def stored(self) -> list[str]:
        return sorted(entry.name for entry in self.store.iterdir())


@pytest.fixture
def data(tmp_path: Path) -> Data:
    raw = tmp_path / "raw"
    cases = [
        make_case(raw, "c", np.eye(4)),
        make_case(raw, "a", AIL),
        make_case(raw, "b", LPS, (21, 18, 15)),
    ]
    return Data(tmp_path, cases)


# geometry of one case


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("affine", [AIL, LPS, np.eye(4)], ids=["AIL", "LPS", "RAS"])
def test_orientation_has_nibabels_meaning(tmp_path: Path, affine: np.ndarray, code: str) -> None:
    image, label = phantom((9, 8, 7))
    file = save(tmp_path / "image.nii.gz", image, affine)
    labels = save(tmp_path / "label.nii.gz", label, affine)
    got, geometry = prepare_images([sitk.ReadImage(str(file))], preset(orientation=code))
    got_label = prepare_label(sitk.ReadImage(str(labels)), geometry)

    ornt = nibabel.orientations
    turn = ornt.ornt_transform(ornt.io_orientation(affine), ornt.axcodes2ornt(code))
    expected = nibabel.Nifti1Image(image, affine).as_reoriented(turn)
    scaled = (np.clip(expected.get_fdata(), -100, 300) + 100) / 400
    np.testing.assert_allclose(got[0], scaled, atol=1e-6)
    np.testing.assert_array_equal(got_label, ornt.apply_orientation(label, turn))
    assert Grid.from_dict(geometry["native"]).orientation == "".join(nibabel.aff2axcodes(affine))
    lps_to_ras = np.diag([-1, -1, 1])
    np.testing.assert_allclose(
        lps_to_ras @ geometry["prepared"]["origin"], expected.affine[:3, 3], atol=1e-5
    )


@pytest.mark.parametrize("kind", ["linear", "bspline"])
def test_resampled_grid_covers_the_native_extent(kind: str) -> None:
    ramp = np.broadcast_to(np.arange(10.0, dtype=np.float32)[:, None, None], (10, 6, 6))
    image = sitk.GetImageFromArray(np.ascontiguousarray(ramp.transpose(2, 1, 0)))
    image = sitk.DICOMOrient(image, "RAS")
    chosen = preset(
        spacing=(1.2, 1.0, 0.5),
        image_interpolation=kind,
        intensity={"kind": "window", "low": 0, "high": 9},
    )
    got, geometry = prepare_images([image], chosen)
    assert got.shape == (1, 9, 6, 12)
    assert 9 * 1.2 >= 10 * 1.0
    centres = np.clip(10 - ((np.arange(9) + 0.5) * 1.2 + 0.0), 0, 10) - 0.5
    expected = np.clip(centres, 0, 9) / 9
    np.testing.assert_allclose(got[0, :, 3, 6], expected, atol=0.02 if kind == "bspline" else 1e-5)
    assert geometry["prepared"]["spacing"] == (1.2, 1.0, 0.5)


def test_bspline_does_not_overshoot() -> None:
    edge = np.zeros((12, 12, 12), np.float32)
    edge[:, :, 6:] = 1000
    edge[0, 0, 0] = 1
    image = sitk.GetImageFromArray(edge)
    wide = {"kind": "window", "low": -500, "high": 1500}
    got, _ = prepare_images([image], preset(spacing=(0.7, 0.7, 0.7), intensity=wide))
    assert got.min() == pytest.approx(0.25)
    assert got.max() == pytest.approx(0.75)


def test_spacing_null_or_equal_keeps_the_voxels() -> None:
    image = sitk.GetImageFromArray(phantom((9, 8, 7))[0])
    image.SetSpacing((0.8, 0.8, 3.00001))
    kept, geometry = prepare_images([image], preset(orientation="LPS"))
    same, _ = prepare_images([image], preset(orientation="LPS", spacing=(0.8, 0.8, 3.0)))
    np.testing.assert_array_equal(kept, same)
    assert geometry["prepared"]["spacing"] == (0.8, 0.8, 3.00001)


def test_an_axis_without_spacing_keeps_its_own() -> None:
    image = sitk.GetImageFromArray(phantom((9, 8, 7))[0].transpose(2, 1, 0))
    image.SetSpacing((0.8, 1.0, 3.3))
    got, geometry = prepare_images([image], preset(orientation="LPS", spacing=(1.6, None, 1.1)))
    assert geometry["prepared"]["spacing"] == (1.6, 1.0, 1.1)
    assert got.shape == (1, 5, 8, 21)
    own, _ = prepare_images([image], preset(orientation="LPS", spacing=(1.6, 1.0, 1.1)))
    np.testing.assert_array_equal(got, own)
    turned, geometry = prepare_images([image], preset(orientation="SLA", spacing=(1.6, None, 1.1)))
    assert geometry["prepared"]["spacing"] == (1.6, 0.8, 1.1), "axes are those of the orientation"
    assert turned.shape == (1, 15, 9, 8)


@pytest.mark.parametrize("affine", [AIL, LPS, np.eye(4)], ids=["AIL", "LPS", "RAS"])
def test_orientation_null_keeps_the_axes_as_stored(tmp_path: Path, affine: np.ndarray) -> None:
    raw, label = phantom((9, 8, 7))
    image = sitk.ReadImage(str(save(tmp_path / "image.nii.gz", raw, affine)))
    got, geometry = prepare_images([image], preset(orientation=None))
    np.testing.assert_allclose(got[0], (np.clip(raw, -100, 300) + 100) / 400, atol=1e-6)
    assert geometry["prepared"] == geometry["native"]
    stored = sitk.ReadImage(str(save(tmp_path / "label.nii.gz", label, affine)))
    np.testing.assert_array_equal(prepare_label(stored, geometry), label)


@pytest.mark.parametrize("thin", [1, 2, 3])
def test_a_bspline_of_few_slices_is_linear(thin: int) -> None:
    """SimpleITK refuses fewer than four voxels an axis; pictures have one."""
    raw = phantom((12, 10, 8))[0][:, :, :thin]
    image = sitk.GetImageFromArray(raw.transpose(2, 1, 0))
    spline, linear = (
        prepare_images([image], preset(spacing=(0.7, 1.3, None), image_interpolation=kind))[0]
        for kind in ("bspline", "linear")
    )
    np.testing.assert_array_equal(spline, linear)
    assert spline.shape == (1, 18, 8, thin)


def test_label_equals_sitk_label_linear_off_the_ties() -> None:
    label = phantom((24, 20, 16))[1]
    image = sitk.GetImageFromArray(label.transpose(2, 1, 0))
    grid = Grid.of(image).respaced((0.83, 1.37, 0.71))
    coordinates, _ = Grid.of(image).coordinates_of(grid)
    got = one_hot_at(label, coordinates)
    shares = np.stack(
        [
            ndimage.map_coordinates(
                (label == i).astype(float),
                np.stack(np.meshgrid(*coordinates, indexing="ij")),
                order=1,
                mode="nearest",
            )
            for i in range(3)
        ]
    )
    ranked = np.sort(shares, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-6
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(got[clear], shares.argmax(axis=0)[clear])
    by_sitk = to_array(
        sitk.Resample(
            image, grid.size, sitk.Transform(), sitk.sitkLabelLinear,
            grid.origin, grid.spacing, grid.direction, 0, sitk.sitkUInt8, True,
        )
    )  # fmt: skip
    inner = tuple(slice(1, -1) for _ in range(3))
    assert (got[inner] == by_sitk[inner])[clear[inner]].all()


# intensities


def test_zscore_over_nonzero_voxels_keeps_the_background_zero() -> None:
    raw = phantom((24, 20, 16))[0]
    raw[raw == -1000] = 0
    image = sitk.GetImageFromArray(raw.transpose(2, 1, 0))
    chosen = preset(intensity={"kind": "zscore"}, orientation="LPS", crop_foreground=True)
    got, geometry = prepare_images([image], chosen)
    inside = raw[raw != 0]
    assert [done["mean"] for done in geometry["intensity"]] == [
        pytest.approx(inside.mean(), rel=1e-5)
    ]
    assert [done["sd"] for done in geometry["intensity"]] == [pytest.approx(inside.std(), rel=1e-4)]
    values = got[got != 0]
    assert len(values) == len(inside)
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std() == pytest.approx(1, abs=1e-4)
    assert geometry["pad_value"] == 0

    resampled, _ = prepare_images(
        [image], chosen.model_copy(update={"spacing": (0.8, 0.8, 0.8), "crop_foreground": False})
    )
    assert (resampled == 0).mean() == pytest.approx((raw == 0).mean(), abs=0.03)


def test_zscore_over_all_voxels() -> None:
    raw = phantom((24, 20, 16))[0]
    image = sitk.GetImageFromArray(raw)
    got, _ = prepare_images([image], preset(intensity={"kind": "zscore", "nonzero": False}))
    assert got.mean() == pytest.approx(0, abs=1e-4)
    assert got.std() == pytest.approx(1, abs=1e-4)


def test_channels_are_scaled_each_by_itself() -> None:
    raw = phantom((12, 10, 8))[0]
    images = [sitk.GetImageFromArray(raw), sitk.GetImageFromArray(raw * 1000 + 5)]
    got, geometry = prepare_images(images, preset(intensity={"kind": "zscore", "nonzero": False}))
    assert got.shape[0] == 2
    np.testing.assert_allclose(got[0], got[1], atol=1e-3)
    assert ["mean" in done for done in geometry["intensity"]] == [True, True]


def test_each_channel_may_have_a_transform_of_its_own() -> None:
    raw = phantom((12, 10, 8))[0]
    images = [sitk.GetImageFromArray(raw.transpose(2, 1, 0))] * 5
    kinds = [
        WINDOW,
        {"kind": "zscore", "nonzero": False},
        {"kind": "standardize", "low": -200, "high": 100, "mean": 20, "sd": 40},
        {"kind": "rescale"},
        {"kind": "unchanged"},
    ]
    got, geometry = prepare_images(images, preset(intensity=kinds, orientation="LPS"))
    expected = [
        (np.clip(raw, -100, 300) + 100) / 400,
        (raw - raw.mean()) / raw.std(),
        (np.clip(raw, -200, 100) - 20) / 40,
        (raw - raw.min()) / (raw.max() - raw.min()),
        raw,
    ]
    for channel, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(channel, wanted, atol=1e-3)
    assert [done["kind"] for done in geometry["intensity"]] == [kind["kind"] for kind in kinds]
    assert geometry["intensity"][3]["low"] == -1000
    assert geometry["pad_value"] == 0
    with pytest.raises(ValueError, match="5 intensity entries for 2 channels"):
        prepare_images(images[:2], preset(intensity=kinds))


def test_rescaled_to_its_own_range_after_resampling() -> None:
    image = sitk.GetImageFromArray(phantom((12, 10, 8))[0])
    chosen = preset(intensity={"kind": "rescale"}, spacing=(1.7, 0.8, 1.2))
    got, _ = prepare_images([image], chosen)
    assert (got.min(), got.max()) == (0, 1)


def test_crop_follows_the_image_and_not_the_label() -> None:
    raw = np.full((20, 20, 20), -1000, np.float32)
    raw[6:12, 5:9, 4:10] = 50
    raw[6, 5, 4] = 60
    image = sitk.GetImageFromArray(raw.transpose(2, 1, 0))
    chosen = preset(crop_foreground=True, orientation="LPS")
    got, geometry = prepare_images([image], chosen)
    assert geometry["crop_start"] == [6 - CROP_MARGIN, 5 - CROP_MARGIN, 4 - CROP_MARGIN]
    assert got.shape == (1, 6 + 2 * CROP_MARGIN, 4 + 2 * CROP_MARGIN, 6 + 2 * CROP_MARGIN)
    assert geometry["pad_value"] == 0
    label = np.ones((20, 20, 20), np.uint8)
    assert prepare_label(sitk.GetImageFromArray(label), geometry).all()


def test_specks_that_resampling_removes_leave_the_whole_volume() -> None:
    raw = np.zeros((9, 9, 9), np.float32)
    raw[3, 3, 3], raw[5, 5, 4] = 5, 9
    chosen = preset(spacing=(2.3, 2.3, 2.3), crop_foreground=True, intensity={"kind": "zscore"})
    got, geometry = prepare_images([sitk.GetImageFromArray(raw)], chosen)
    assert got.shape == (1, 4, 4, 4)
    assert geometry["crop_start"] == [0, 0, 0]


def test_pad_value_is_the_smallest_of_a_windowed_image() -> None:
    image = sitk.GetImageFromArray(np.linspace(0, 200, 1000, dtype=np.float32).reshape(10, 10, 10))
    _, geometry = prepare_images([image], preset())
    assert geometry["pad_value"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intensity": {"kind": "window", "low": 5000, "high": 6000}}, "one side of the window"),
        ({"intensity": {"kind": "zscore"}}, "all non-zero voxels are equal.* nonzero: false"),
        (
            {"intensity": {"kind": "standardize", "low": 50, "high": 60, "mean": 0, "sd": 1}},
            r"one side of the window \[50, 60\]",
        ),
        (
            {"intensity": {"kind": "standardize", "low": 0, "high": 1e6, "mean": 0, "sd": 1e-5}},
            r"channel 0: intensities up to 700000 in size .*, 65504 can be stored",
        ),
    ],
)
def test_image_that_the_preset_empties_is_refused(change: Any, message: str) -> None:
    raw = np.zeros((8, 8, 8), np.float32)
    raw[2:4] = 7
    with pytest.raises(DataError, match=message):
        prepare_images([sitk.GetImageFromArray(raw)], preset(**change))


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize(
    ("intensity", "message"),
    [
        (WINDOW, "channel 1: all voxels are of one value or on one side"),
        (
            {"kind": "standardize", "low": -9, "high": 9, "mean": 0, "sd": 1},
            "channel 1: all voxels",
        ),
        (
            {"kind": "rescale"},
            r"channel 1: every voxel is \d, a range of \[0, 1\] needs two values",
        ),
        (
            {"kind": "zscore", "nonzero": False},
            "channel 1: all voxels are equal.*replace the image$",
        ),
    ],
    ids=["window", "standardize", "rescale", "zscore"],
)
def test_constant_channels_are_refused(intensity: Any, message: str, value: int) -> None:
    images = [phantom((8, 8, 8))[0], np.full((8, 8, 8), value, np.float32)]
    kinds = ({"kind": "unchanged"}, intensity)
    with pytest.raises(DataError, match=message):
        prepare_images([sitk.GetImageFromArray(image) for image in images], preset(intensity=kinds))


def test_what_half_precision_cannot_hold_is_refused() -> None:
    image = sitk.GetImageFromArray(np.linspace(-65504, 65504, 1000).reshape(10, 10, 10))
    chosen = preset(intensity={"kind": "unchanged"})
    assert np.isfinite(prepare_images([image], chosen)[0].astype(np.float16)).all()
    with pytest.raises(DataError, match="channel 0: intensities up to 66000 in size"):
        prepare_images([image - 496], chosen)


# whole data sets


def test_tables_and_store(data: Data) -> None:
    data.prepare()
    assert data.stored() == ["a", "b", "c"]
    table = pd.read_csv(data.table, sep="\t", keep_default_na=False)
    assert list(table.case) == ["a", "b", "c"]
    assert list(table.subject) == ["subject_a", "subject_b", "subject_c"]
    assert list(table.native_orientation) == ["AIL", "LPS", "RAS"]
    assert table.native_shape[1] == "21x18x15"
    assert table.native_spacing[0] == "1.5x3x2"
    for row in table.itertuples():
        case = StoredCase(data.store / row.case)
        image, label = case.whole()
        assert row.prepared_shape == "x".join(map(str, case.shape))
        assert row.digest == case.geometry["digest"]
        assert image.min() == 0
        assert image.max() <= 1
        assert [row.voxels_liver, row.voxels_spleen] == np.bincount(label.ravel())[1:].tolist()
    summary = json.loads(data.fingerprint.read_text())
    assert summary["n_cases"] == 3
    assert summary["classes"]["spleen"]["n_cases"] == 3
    assert summary["classes"]["liver"]["voxels"] == table.voxels_liver.sum()
    assert 90 < summary["foreground_intensity"]["CT"]["p50"]["median"] < 150
    assert summary["native_spacing"]["min"] == [1.0, 1.0, 1.0]
    assert "worst" not in summary
    assert str(data.root) not in data.fingerprint.read_text() + data.table.read_text()


def test_workers_and_order_do_not_change_a_byte(data: Data, tmp_path: Path) -> None:
    data.prepare()
    other = Data(tmp_path / "again", list(reversed(data.cases)))
    other.prepare(workers=2)
    names = [f"{case}/{file}" for case in "abc" for file in FILES]
    for name in names:
        assert (data.store / name).read_bytes() == (other.store / name).read_bytes(), name
    assert data.table.read_bytes() == other.table.read_bytes()
    assert data.fingerprint.read_bytes() == other.fingerprint.read_bytes()


def spoil_image(case: Case) -> None:
    content = case.images[0].read_bytes()
    case.images[0].write_bytes(content[:-500])


def spoil_label(case: Case) -> None:
    save(case.label, np.full((24, 20, 16), 7, np.uint8), AIL)


def spoil_window(case: Case) -> None:
    image = phantom((24, 20, 16))[0]
    save(case.images[0], image - 5000, AIL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_bad_case_is_named_and_the_others_finish(data: Data, workers: int) -> None:
    data.prepare()
    bad = [make_case(data.root / "raw", name) for name in ("p", "q", "r")]
    for case, spoil in zip(bad, (spoil_image, spoil_label, spoil_window), strict=True):
        spoil(case)
    good = make_case(data.root / "raw", "z")
    data.cases += [*bad, good]
    with pytest.raises(DataError) as caught:
        data.prepare(workers=workers)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 cases cannot be prepared:"
    assert [line.split(",")[0].strip() for line in lines[1:]] == [
        "case 'p'",
        "case 'q'",
        "case 'r'",
    ]
    assert "damaged" in lines[1]
    assert "not in the card: 7" in lines[2]
    assert "window" in lines[3]
    assert data.stored() == ["a", "b", "c", "z"]
    assert not data.table.exists()
    assert not data.fingerprint.exists()


def test_case_that_turned_bad_loses_its_old_arrays(data: Data) -> None:
    data.prepare()
    spoil_image(data.cases[0])
    data.cases[0] = replace(data.cases[0], sha256="changed")
    with pytest.raises(DataError, match="case 'c'"):
        data.prepare()
    assert data.stored() == ["a", "b"]


def stamps(data: Data) -> dict[str, tuple[int, int]]:
    found = {}
    for name in data.stored():
        status = os.stat(data.store / name / "image.b2nd")
        found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def test_interrupted_run_goes_on_with_what_is_missing(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., None] = module.write_case

    def dies_at_b(folder: Path, *arguments: Any) -> None:
        if folder.name == "b":
            raise KeyboardInterrupt
        real(folder, *arguments)

    monkeypatch.setattr(module, "write_case", dies_at_b)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    assert data.stored() == ["a"]
    assert not data.table.exists()
    before = stamps(data)
    monkeypatch.setattr(module, "write_case", real)
    data.prepare()
    after = stamps(data)
    assert sorted(after) == ["a", "b", "c"]
    assert after["a"] == before["a"]


def test_second_run_does_nothing_and_changes_redo_what_they_touch(data: Data) -> None:
    data.prepare()
    first, tables = stamps(data), (data.table.read_bytes(), data.fingerprint.read_bytes())
    data.prepare()
    assert stamps(data) == first
    assert (data.table.read_bytes(), data.fingerprint.read_bytes()) == tables

    data.cases[0] = replace(data.cases[0], sha256="new content")
    data.prepare()
    second = stamps(data)
    assert {name for name in first if first[name] != second[name]} == {"c"}

    data.prepare(digest="other settings")
    third = stamps(data)
    assert {name for name in first if second[name] != third[name]} == {"a", "b", "c"}


def test_damaged_stored_case_is_made_again(data: Data) -> None:
    data.prepare()
    (data.store / "a" / "label.b2nd").unlink()
    (data.store / "b" / "geometry.json").write_text("{")
    data.prepare()
    assert StoredCase(data.store / "a").whole()[1].any()
    assert StoredCase(data.store / "b").geometry["crop_start"]


def test_case_that_left_the_data_set_is_removed(data: Data) -> None:
    data.prepare()
    data.cases.pop(0)
    data.prepare()
    assert data.stored() == ["a", "b"]


def test_absent_structure_is_reported(data: Data) -> None:
    label = phantom((24, 20, 16))[1]
    save(data.cases[1].label, np.where(label == 1, 0, label).astype(np.uint8), AIL)
    data.prepare()
    table = pd.read_csv(data.table, sep="\t", keep_default_na=False).set_index("case")
    assert table.warnings.to_dict() == {"a": "lacks liver", "b": "", "c": ""}
    assert StoredCase(data.store / "a").classes == (2,)


def test_structure_too_thin_for_the_spacing_is_reported(data: Data) -> None:
    label = phantom((24, 20, 16))[1]
    label[label == 2] = 0
    label[12, 10, 8] = 2
    save(data.cases[1].label, label, AIL)
    data.prepare(preset=preset(spacing=(6.0, 6.0, 6.0)))
    table = pd.read_csv(data.table, sep="\t", keep_default_na=False).set_index("case")
    assert table.warnings["a"] == "spleen is lost by the preparation"


def test_memory_bounds_the_workers(data: Data) -> None:
    big = preset(spacing=(0.1, 0.1, 0.1))
    need = memory.estimated_mb(data.cases[1], big)
    voxels = 24 * 20 * 16 * 1.5 * 3 * 2 / 0.001
    assert need == pytest.approx(voxels * 8 / 2**20, rel=0.01)
    assert module.affordable_workers(data.cases, big, 8, 10**6) == 3
    assert module.affordable_workers(data.cases, big, 3, 2 * (need + 200)) == 2
    assert module.affordable_workers(data.cases, big, 3, 1) == 1


def test_wrong_manifests_and_cards(data: Data) -> None:
    with pytest.raises(DataError, match="twice: c"):
        Data(data.root, [*data.cases, data.cases[0]]).prepare()
    with pytest.raises(DataError, match="no cases"):
        Data(data.root, []).prepare()
    with pytest.raises(ConfigError, match="257 ids"):
        data.prepare(labels=Labels(raw={i: f"s{i}" for i in range(257)}))


def test_released_images_are_gone() -> None:
    image = sitk.GetImageFromArray(np.arange(1000, dtype=np.float32).reshape(10, 10, 10))
    images = [image]
    chosen = Preset.model_validate({"intensity": {"kind": "rescale"}, "patch": (8, 8, 8)})
    kept, _ = prepare_images([image], chosen)
    released, _ = prepare_images(images, chosen, release=True)
    assert images == []
    np.testing.assert_array_equal(kept, released)
