"""Pictures and 2D images as cases: read, prepared, restored and scored as slices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from medpy.metric.binary import dc, hd95
from PIL import Image
from scipy import ndimage

from kdpipe.data.folders.layout import list_files
from kdpipe.data.manifest import Case
from kdpipe.data.preparation.memory import estimated_mb
from kdpipe.data.preparation.prepare import prepare
from kdpipe.data.store import StoredCase
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError
from kdpipe.infer.restore import restore_labels, write_labels
from kdpipe.labels import Labels
from kdpipe.layouts import Layout
from kdpipe.metrics.folders import evaluate_folders
from kdpipe.presets import Preset

SHAPE = (40, 30)  # x, y
LABELS = Labels(raw={0: "background", 1: "kidney", 2: "tumour"}, may_be_absent="all")
AFFINE = np.array([[-0.8, 0, 0, 30], [0, 1.7, 0, -7], [0, 0, 1, 0], [0, 0, 0, 1]])
COLOURS = ("red", "green", "blue")


def picture(seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image (x, y, C) uint8 and label (x, y) uint8 of two discs."""
    rng = np.random.default_rng(seed)
    x, y = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[(x - 18 - seed) ** 2 + (y - 14) ** 2 < 90] = 1
    label[(x - 15) ** 2 + (y - 11 - seed) ** 2 < 12] = 2
    image = rng.integers(0, 60, (*SHAPE, channels)) + 80 * label[..., None]
    return image.astype(np.uint8), label


def save(file: Path, array: np.ndarray, **options: Any) -> Path:
    """Write (x, y) or (x, y, C) as a picture, whose first axis is y."""
    Image.fromarray(array.squeeze().swapaxes(0, 1)).save(file, **options)
    return file


def save_nifti(file: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return file


def cases_of(folder: Path, kind: str) -> list[Case]:
    cases = []
    for seed, name in enumerate(("one", "two")):
        image, label = picture(seed, 3 if kind in ("rgb", "jpeg") else 1)
        stems = folder / name, folder / f"{name}_label"
        if kind == "nifti":
            files = [
                save_nifti(stem.with_suffix(".nii.gz"), array.squeeze(), AFFINE)
                for stem, array in zip(stems, (image, label), strict=True)
            ]
        else:
            ending = {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, ".png")
            files = [
                save(stems[0].with_suffix(ending), image, dpi=(72, 72)),
                save(stems[1].with_suffix(".png"), label),
            ]
        cases.append(Case(name, name, (files[0],), files[1], f"digest of {name}"))
    return cases


def prepared(folder: Path, cases: Sequence[Case], channels: int = 1, **changes: Any) -> Path:
    given = {"orientation": None, "intensity": {"kind": "rescale"}, "patch": (16, 16)} | changes
    names = COLOURS[:channels]
    prepare(
        cases, Preset.model_validate(given), LABELS, names, folder / "cases",
        folder / "cases.tsv", folder / "fingerprint.json", "digest", 1, None,
    )  # fmt: skip
    return folder / "cases"


def distorted(label: np.ndarray) -> np.ndarray:
    """What a network might say: moved and grown."""
    moved = ndimage.shift(label, (2, 1), order=0)
    grown = ndimage.grey_dilation(moved, (3, 3))
    return grown.astype(np.uint8)


@pytest.mark.parametrize("kind", ["png", "rgb", "jpeg", "tiff", "nifti"])
@pytest.mark.parametrize("code", [None, "RAS"])
def test_from_a_picture_to_its_scores(tmp_path: Path, kind: str, code: str | None) -> None:
    cases = cases_of(tmp_path, kind)
    channels = 3 if kind in ("rgb", "jpeg") else 1
    store = prepared(tmp_path / "prepared", cases, channels, orientation=code)
    predicted = {}
    for seed, case in enumerate(cases):
        stored = StoredCase(store / case.case)
        image, label = stored.whole()
        assert image.shape == (channels, *SHAPE, 1)
        assert [(part.min(), part.max()) for part in image] == [(0, 1)] * channels
        expected = picture(seed)[1]
        assert (label[..., 0] == expected).all() == (code is None)
        guess = distorted(label[..., 0])[..., None]
        scores = np.moveaxis(np.eye(3, dtype=np.float32)[guess], -1, 0)
        restored = restore_labels(scores, stored.geometry, Targets(3))
        write_labels(restored, tmp_path / "out", case.case)
        found = sitk.ReadImage(str(tmp_path / "out" / f"{case.case}.nii.gz"))
        predicted[case.case] = sitk.GetArrayFromImage(found).squeeze().T, expected

    spacing = (0.8, 1.7) if kind == "nifti" else (1.0, 1.0)
    table = evaluate_folders(
        None, tmp_path / "out", LABELS.scored, "medpy",
        references={case.case: case.label for case in cases}, in_voxels=kind != "nifti",
    )  # fmt: skip
    table = table[table["metric"].isin(("dice", "hd95_pooled"))]
    assert len(table) == 8
    for row in table.itertuples():
        masks = [array == LABELS.structures[row.structure] for array in predicted[row.case]]
        assert 0.4 < dc(*masks) < 0.99
        if row.metric == "dice":
            assert row.value == dc(*masks)
        else:
            assert row.metric == "hd95_pooled"
            assert row.value == pytest.approx(hd95(*masks, spacing, connectivity=1), rel=1e-6)
            assert row.unit == ("mm" if kind == "nifti" else "voxel")


def test_distances_of_slices_are_those_of_the_plane(tmp_path: Path) -> None:
    """In a volume of one slice every voxel is surface: the hole would count in full."""
    (case, _) = cases_of(tmp_path, "nifti")
    disc, ring = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    disc[5:25, 5:25] = ring[5:25, 5:25] = 1
    ring[9:21, 9:21] = 0
    save_nifti(case.label, disc, AFFINE)
    (tmp_path / "out").mkdir()
    save_nifti(tmp_path / "out" / "one.nii.gz", ring, AFFINE)
    for in_voxels, spacing in ((False, (0.8, 1.7)), (True, (1.0, 1.0))):
        table = evaluate_folders(
            None, tmp_path / "out", {"kidney": (1,)}, "medpy",
            references={"one": case.label}, in_voxels=in_voxels,
        ).set_index("metric")  # fmt: skip
        flat = hd95(ring, disc, spacing, connectivity=1)
        assert table.loc["hd95_pooled", "value"] == pytest.approx(flat, rel=1e-6)
        solid = hd95(ring[..., None], disc[..., None], (*spacing, 1.0), connectivity=1)
        assert solid != pytest.approx(flat, rel=0.01)


def test_dots_per_inch_are_no_spacing(tmp_path: Path) -> None:
    """SimpleITK makes 0.35 mm of 72 dpi in a JPEG, but nothing of those in a PNG."""
    (case, _) = cases_of(tmp_path, "jpeg")
    assert sitk.ReadImage(str(case.images[0])).GetSpacing()[0] == pytest.approx(25.4 / 72)
    geometry = StoredCase(prepared(tmp_path / "p", [case], 3) / "one").geometry
    assert geometry["native"]["spacing"] == [1, 1, 1]


def test_nnunets_colour_pictures_are_one_file_with_all_channels(tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for seed, name in enumerate(("road_1", "road_2")):
        image, label = picture(seed, 3)
        save(tmp_path / "imagesTr" / f"{name}_0000.png", image)
        save(tmp_path / "labelsTr" / f"{name}.png", label)
    (tmp_path / "dataset.json").write_text('{"file_ending": ".png", "numTraining": 2}')
    cases = list_files(tmp_path, Layout(), 3)
    assert [case.case for case in cases] == ["road_1", "road_2"]
    stored = StoredCase(prepared(tmp_path / "p", cases, 3) / "road_1")
    image = picture(0, 3)[0].transpose(2, 0, 1)[..., None].astype(float)
    low, high = (image.min((1, 2, 3), keepdims=True), image.max((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(stored.image(), (image - low) / (high - low), atol=1e-3)

    save(cases[0].images[0], picture(0)[0])
    with pytest.raises(DataError, match="1 channels found, the card names 3"):
        prepared(tmp_path / "grey", cases, 3)


def test_colours_count_for_the_memory(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (900, 800, 3)).astype(np.uint8)
    cases = [
        Case(name, name, (save(tmp_path / f"{name}.png", array),), tmp_path / "label.png")
        for name, array in (("grey", image[..., 0]), ("colour", image))
    ]
    chosen = Preset.model_validate({"intensity": {"kind": "rescale"}, "patch": (16, 16)})
    grey, colour = (estimated_mb(case, chosen) for case in cases)
    assert colour == pytest.approx(3 * grey, abs=3)


def test_empty_slices_warn_and_are_counted(tmp_path: Path) -> None:
    one, two = cases_of(tmp_path, "png")
    save(two.label, np.zeros(SHAPE, np.uint8))
    store = prepared(tmp_path / "prepared", [one, two])
    table = pd.read_csv(tmp_path / "prepared" / "cases.tsv", sep="\t", keep_default_na=False)
    assert table.warnings.tolist() == ["", "empty label map"]
    assert table.voxels_kidney.tolist() == [(picture(0)[1] == 1).sum(), 0]
    assert StoredCase(store / "two").classes == ()
    fingerprint = json.loads((tmp_path / "prepared" / "fingerprint.json").read_text())
    assert fingerprint["classes"]["tumour"]["n_cases"] == 1
    found = fingerprint["foreground_intensity"]["red"]["p50"]
    assert found["min"] == found["max"] > 60, "of the only slice that shows something"


def test_a_data_set_of_empty_slices_is_described(tmp_path: Path) -> None:
    (one, _) = cases_of(tmp_path, "png")
    save(one.label, np.zeros(SHAPE, np.uint8))
    prepared(tmp_path / "prepared", [one])
    fingerprint = json.loads((tmp_path / "prepared" / "fingerprint.json").read_text())
    assert fingerprint["foreground_intensity"] == {"red": {}}


def test_an_empty_slice_is_scored_as_the_protocol_says(tmp_path: Path) -> None:
    (one, _) = cases_of(tmp_path, "png")
    save(one.label, np.zeros(SHAPE, np.uint8))
    stored = StoredCase(prepared(tmp_path / "prepared", [one]) / "one")
    scores = np.zeros((3, *SHAPE, 1), np.float32)
    scores[1, 3:5] = 1
    restored = restore_labels(scores, stored.geometry, Targets(3))
    write_labels(restored, tmp_path / "out", "one")
    table = evaluate_folders(
        None, tmp_path / "out", LABELS.scored, "strict_mm",
        references={"one": one.label}, in_voxels=True,
    ).set_index(["structure", "metric"])  # fmt: skip
    assert set(table.loc["kidney"].status) == {"missing_in_reference"}
    assert set(table.loc["tumour"].status) == {"missing_in_both"}
    diagonal = table.loc["kidney", "hd95_max"].value
    assert diagonal == pytest.approx(np.hypot(*SHAPE)), "of the picture, in pixels"


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_pictures_are_refused(tmp_path: Path, ending: str, kept: float) -> None:
    (case, _) = cases_of(tmp_path, "png")
    file = save(tmp_path / f"broken{ending}", picture(0, 3)[0])
    whole = file.read_bytes()
    broken = Case("one", "one", (file,), case.label, "0")
    prepared(tmp_path / "whole", [broken], 3)
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=rf"case 'one', .*broken{ending}: (damaged|not readable)"):
        prepared(tmp_path / "cut", [broken], 3)


def test_a_jpeg_with_something_behind_its_end_is_whole(tmp_path: Path) -> None:
    """Cameras put previews there."""
    (case, _) = cases_of(tmp_path, "jpeg")
    case.images[0].write_bytes(case.images[0].read_bytes() + b"preview" * 99)
    assert StoredCase(prepared(tmp_path / "p", [case], 3) / "one").n_channels == 3


def colour_label(case: Case) -> None:
    save(case.label, picture(0, 3)[1][..., None].repeat(3, axis=-1))


def other_size(case: Case) -> None:
    save(case.label, picture(0)[1][:-1])


def constant(case: Case) -> None:
    save(case.images[0], np.full(SHAPE, 9, np.uint8))


def colours(case: Case) -> None:
    save(case.images[0], picture(0, 3)[0])


def eight_bit_mask(case: Case) -> None:
    save(case.label, (picture(0)[1] > 0).astype(np.uint8) * 255)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (colour_label, "label map of colour or vector voxels; store one label id"),
        (other_size, r"shape \(39, 30, 1\) differs from the first image's \(40, 30, 1\)"),
        (constant, "constant image, every voxel is 9"),
        (colours, "3 channels found, the card names 1: red"),
        (eight_bit_mask, r"label values not in the card: 255; the card has \[0, 1, 2\]"),
    ],
)
def test_wrong_pictures_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    (case, _) = cases_of(tmp_path, "png")
    spoil(case)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "p", [case])


@pytest.mark.parametrize("shape", [(1, 12, 10), (12, 1, 10)])
def test_slices_lie_along_the_last_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    label = (image > 0.5).astype(np.uint8)
    files = [
        save_nifti(tmp_path / f"{name}.nii.gz", array, np.eye(4))
        for name, array in (("image", image), ("label", label))
    ]
    case = Case("one", "one", (files[0],), files[1], "0")
    with pytest.raises(DataError, match="only the last axis may have a single voxel; store slices"):
        prepared(tmp_path / "p", [case])


def test_a_sagittal_slice_without_its_third_axis_is_refused(tmp_path: Path) -> None:
    """Two axes cannot say where it lies; stored as (X, Y, 1) it can."""
    (case, _) = cases_of(tmp_path, "nifti")
    affine = np.array([[0, 0, 3.0, 1], [1, 0, 0, 2], [0, 1.0, 0, 3], [0, 0, 0, 1]])
    image, label = picture(0)
    save_nifti(case.images[0], image.squeeze(), affine)
    with pytest.raises(
        DataError, match=r"not readable \(Bad direction, determinant is 0.*\(X, Y, 1\)"
    ):
        prepared(tmp_path / "flat", [case])
    save_nifti(case.images[0], image, affine)
    save_nifti(case.label, label[..., None], affine)
    stored = StoredCase(prepared(tmp_path / "solid", [case]) / "one")
    np.testing.assert_array_equal(stored.whole()[1][..., 0], label)
