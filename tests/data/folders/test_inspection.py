"""What a folder holds is read off it, and what cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from kdpipe.data.folders.inspection import SAMPLE, inspect_folder
from kdpipe.data.folders.layout import list_files
from kdpipe.data.folders.proposal import _patch, propose
from kdpipe.errors import ConfigError, DataError
from kdpipe.layouts import Layout

SHAPE = (24, 30, 20)


def volume(seed: int, kind: str = "CT") -> tuple[np.ndarray, np.ndarray]:
    """An image with air, or zeros, around a body; and a label map of two organs."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    label[8:14, 10:18, 8:14] = 1
    label[14:17, 10:14, 8:12] = 2
    image = rng.normal(0, 10, SHAPE) + 100 * label
    if kind == "CT":
        image[label == 0] -= 40
        image[:, :5] = image[:, 25:] = image[:4] = image[20:] = -1000
        image[10, 12, 9] = 1500
    else:
        image = 10 * image + 1000
        image[:, :5] = 0
    return image.astype(np.int16), label


def save(
    file: Path, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), turn: Any = 1
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0]) * np.array([*np.broadcast_to(turn, 3), 1])
    nib.save(nib.Nifti1Image(array, affine), file)


def describe(folder: Path, **content: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def nnunet(folder: Path, n: int = 4, channels: int = 1, kind: str = "CT", **content: Any) -> Path:
    for case in range(n):
        image, label = volume(case, kind)
        for channel in range(channels):
            spacing = (0.8, 0.8, 1.5 + 0.5 * (case % 2))
            save(folder / f"imagesTr/p{case:02d}_{channel:04d}.nii.gz", image, spacing, (-1, -1, 1))
        save(folder / f"labelsTr/p{case:02d}.nii.gz", label, spacing, (-1, -1, 1))
    labels = {"background": 0, "liver": 1, "spleen": 2}
    names = {str(c): "T1" if kind == "MR" else "x" for c in range(channels)}
    return describe(folder, **{"labels": labels, "channel_names": names} | content)


def bids(folder: Path, n: int = 3, tsv: str = "index\tname\n0\tbackground\n1\tliver\n") -> Path:
    for number in range(n):
        for session in ("ses-1", "ses-2"):
            image, label = volume(number, "MR")
            inner, stem = f"sub-{number:02d}/{session}/anat", f"sub-{number:02d}_{session}"
            for suffix in ("T1w", "FLAIR"):
                save(folder / inner / f"{stem}_{suffix}.nii.gz", image)
            segmentation = folder / "derivatives/manual" / inner / f"{stem}_desc-x_dseg.nii.gz"
            save(segmentation, label.clip(0, 1) * 17)
    (folder / "derivatives/manual/dseg.tsv").write_text(tsv)
    return folder


def test_ct_in_nnunet_layout(tmp_path: Path) -> None:
    seen = inspect_folder(nnunet(tmp_path / "d"))
    assert seen.folder.layout == {"kind": "nnunet"}
    assert seen.folder.names == {0: "background", 1: "liver", 2: "spleen"}
    assert seen.headers[1].spacing == pytest.approx((0.8, 0.8, 2.0))
    assert seen.headers[0].orientation == "LPS"
    assert seen.present == {1: 4, 2: 4}
    assert seen.voxels[1] == pytest.approx(288 / 336)
    chosen = propose(seen)
    assert chosen.modality.value == "CT"
    assert chosen.spacing.value == [0.8, 0.8, 1.75]
    window = chosen.intensity.value
    assert 60 < window["low"] < 100
    assert 190 < window["high"] < 230
    assert seen.box == pytest.approx((16 / 24, 20 / 30, 1))
    assert chosen.crop_foreground.value is True
    assert chosen.patch.value == [16, 16, 16]
    assert chosen.split.value == {"kind": "kfold", "n": 4}


def test_axes_are_in_the_order_of_ras(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "d", kind="MR")
    for file in folder.glob("*Tr/*.nii.gz"):
        image = nib.load(file)
        affine = np.array([[0, 0, -3, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)
    seen = inspect_folder(folder)
    assert seen.headers[0].orientation == "ASL"
    assert seen.headers[0].size == (20, 24, 30)
    assert seen.headers[0].spacing == pytest.approx((3, 2, 1))
    assert seen.box == pytest.approx((1, 1, 25 / 30))
    assert propose(seen).intensity.value == {"kind": "zscore", "nonzero": True}


def test_bids_with_two_sequences_sessions_and_a_table_of_names(tmp_path: Path) -> None:
    tsv = "index\tname\tabbreviation\n0\tbackground\tb\n17\tHippocampus\tH\n"
    seen = inspect_folder(bids(tmp_path / "d", tsv=tsv))
    assert seen.folder.names == {0: "background", 17: "Hippocampus"}
    assert seen.folder.channels == ("T1w", "FLAIR")
    assert [(c.case, c.subject) for c in seen.folder.cases[:2]] == [
        ("sub-00_ses-1", "sub-00"),
        ("sub-00_ses-2", "sub-00"),
    ]
    assert seen.folder.cases[0].images[1].name == "sub-00_ses-1_FLAIR.nii.gz"
    assert list_files(tmp_path / "d", Layout(**seen.folder.layout), 2) == seen.folder.cases
    assert propose(seen).subject_pattern is None
    assert propose(seen).split.value["n"] == 3


def pictures(folder: Path, names: list[str], colours: int = 1) -> Path:
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(names):
        image = rng.integers(0, 256, (40, 60, colours)).squeeze().astype(np.uint8)
        Image.fromarray(image).save(folder / f"imagesTr/{name}.png")
        label = np.zeros((40, 60), np.uint8)
        label[5:20, 5:30] = number % 2
        Image.fromarray(label).save(folder / f"labelsTr/{name}.png")
    return describe(folder, labels={"0": "background", "1": "polyp"})


@pytest.mark.parametrize(("colours", "channels"), [(1, ["image"]), (3, ["red", "green", "blue"])])
def test_pictures(tmp_path: Path, colours: int, channels: list[str]) -> None:
    names = [f"video{i // 4}_frame{i:03d}" for i in range(16)]
    seen = inspect_folder(pictures(tmp_path / "d", names, colours))
    chosen = propose(seen)
    assert seen.pictures and seen.flat
    assert chosen.channels.value == channels
    assert chosen.orientation.value is chosen.spacing.value is chosen.slices is None
    assert chosen.intensity.value == {"kind": "rescale"}
    assert chosen.patch.value == [64, 32]
    assert chosen.subject_pattern is not None
    assert "16 cases of 4 patients" in chosen.subject_pattern.why
    assert chosen.absent.value == [1]
    assert chosen.split.value == {"kind": "kfold", "n": 4, "stratify": True}


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (
            [
                "patient001_frame01",
                "patient001_frame12",
                "patient002_frame01",
                "patient003_frame07",
            ],
            3,
        ),
        (["liver_1", "liver_2", "liver_3"], None),
        (["BraTS-00001-000", "BraTS-00002-000", "BraTS-00003-001"], None),
        (["ct_1001", "mr_1001", "mr_1002"], None),
    ],
)
def test_case_ids_that_name_patients(
    tmp_path: Path, names: list[str], patients: int | None
) -> None:
    guessed = propose(inspect_folder(pictures(tmp_path / "d", names))).subject_pattern
    assert (guessed is None) == (patients is None)
    if guessed is not None:
        assert f"of {patients} patients" in guessed.why


def test_a_sample_is_read_of_many_cases(tmp_path: Path) -> None:
    seen = inspect_folder(pictures(tmp_path / "d", [f"c{i:03d}x" for i in range(45)]))
    assert len(seen.headers) == 45
    assert len(seen.sample) == SAMPLE
    assert seen.sample[0] == "c000x"
    assert seen.sample[-1] > "c040x"
    assert propose(seen).split.value["kind"] == "fractions"


@pytest.mark.parametrize(
    ("size", "flat", "sides"),
    [
        ((256, 216, 36), False, [160, 160, 32]),
        ((35, 50, 36), False, [32, 48, 32]),
        ((240, 240, 155), False, [96, 96, 96]),
        ((300, 300, 10), False, [304, 304, 8]),
        ((27, 28, 3), False, [16, 32, 2]),
        ((512, 512, 1), True, [256, 256]),
        ((600, 90, 1), True, [592, 80]),
    ],
)
def test_patches(size: tuple[int, ...], flat: bool, sides: list[int]) -> None:
    chosen = _patch(np.array(size, float), flat)
    assert chosen.value == sides
    assert ("strides" in chosen.why) == (min(sides) < 16 or max(sides) >= 4 * min(sides))


def thick(folder: Path, axis: int) -> Path:
    """Half of the cases have slices of 5 mm, the others of 4 mm, across `axis`."""
    shape = np.array([40, 44, 48])
    shape[axis] = 10
    for case in range(12):
        spacing = np.array([1.0, 1.0, 1.0])
        spacing[axis] = 4 + case % 2
        label = np.zeros(shape, np.uint8)
        label[5:9, 5:9, 5:9] = 1
        image = np.random.default_rng(case).integers(1, 99, shape).astype(np.int16)
        save(folder / f"imagesTr/c{case}.nii.gz", image, tuple(spacing))
        save(folder / f"labelsTr/c{case}.nii.gz", label, tuple(spacing))
    return describe(folder, modality={"0": "MRI"}, labels={"0": "background", "1": "cord"})


@pytest.mark.parametrize(
    ("axis", "spacing", "patch", "slices"),
    [
        (2, [1, 1, 4], [32, 48, 8], {"spacing": [1, 1, None], "patch": [32, 48]}),
        (0, [4, 1, 1], [8, 48, 48],
         {"spacing": [1, 1, None], "patch": [48, 48], "orientation": "ASR"}),
        (1, [1, 4, 1], [32, 8, 48],
         {"spacing": [1, 1, None], "patch": [32, 48], "orientation": "RSA"}),
    ],
)  # fmt: skip
def test_slices_run_across_the_thick_axis(
    tmp_path: Path, axis: int, spacing: list, patch: list, slices: dict[str, Any]
) -> None:
    chosen = propose(inspect_folder(thick(tmp_path / "d", axis)))
    assert chosen.spacing.value == spacing
    assert f"along {'xyz'[axis]}" in chosen.spacing.why
    assert chosen.patch.value == patch
    assert chosen.slices is not None
    assert {key: value.value for key, value in chosen.slices.items()} == slices


def rewrite(folder: Path, name: str, change: Any) -> None:
    """Change the voxels of a file."""
    file = folder / name
    image = nib.load(file)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), file)


def test_float_label_maps_are_noted_and_fractions_refused(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "d")
    rewrite(folder, "labelsTr/p01.nii.gz", lambda label: label.astype(np.float32))
    assert "floating-point numbers: p01" in inspect_folder(folder).notes[0]
    rewrite(folder, "labelsTr/p01.nii.gz", lambda label: label * 0.5)
    with pytest.raises(DataError, match=r"case 'p01': label values that are no integers.*0.5"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"background": 0, "liver": 1}}, "case 'p00': labels 2 have no name"),
        ({"labels": {"background": 0, "ignore": 3}}, "has an 'ignore' label"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"no channel p00_0001"),
        ({"channel_names": {"T1": 0}}, r"dataset.json: 'labels' and 'channel_names' .* are not as"),
        ({"labels": ["liver"]}, r"dataset.json: 'labels' and"),
        ({"labels": {"liver": "one"}}, r"dataset.json: 'labels' and"),
    ],
)
def test_what_dataset_json_says_must_fit(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        inspect_folder(nnunet(tmp_path / "d", **content))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        inspect_folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"neither imagesTr and labelsTr .* nor sub-\*"):
        inspect_folder(tmp_path)
    folder = nnunet(tmp_path / "d")
    for file in folder.glob("labelsTr/*"):
        rewrite(folder, f"labelsTr/{file.name}", np.zeros_like)
    with pytest.raises(DataError, match="all label maps of 4 cases are empty, such as 'p00'"):
        inspect_folder(folder)
    for file in folder.glob("labelsTr/*"):
        file.unlink()
    with pytest.raises(DataError, match="labelsTr: no file ends in"):
        inspect_folder(folder)
    with pytest.raises(DataError, match="2 patients cannot be split"):
        propose(inspect_folder(nnunet(tmp_path / "two", n=2)))


def test_mixed_channels_are_named(tmp_path: Path) -> None:
    folder = thick(tmp_path / "d", 2)
    rewrite(folder, "imagesTr/c7.nii.gz", lambda image: np.stack([image, image], axis=-1))
    with pytest.raises(DataError, match=r"1 in 11 of 12 cases, another number in c7"):
        inspect_folder(folder)


def test_volumes_and_slices_are_not_mixed(tmp_path: Path) -> None:
    folder = thick(tmp_path / "d", 2)
    for part in ("imagesTr", "labelsTr"):
        rewrite(folder, f"{part}/c3.nii.gz", lambda array: array[..., 5:6])
    with pytest.raises(DataError, match="mixed; slices are c3"):
        inspect_folder(folder)


def test_bids_that_cannot_be_described(tmp_path: Path) -> None:
    folder = bids(tmp_path / "d", tsv="index\tlabel\n0\tx\n")
    with pytest.raises(DataError, match=r"dseg.tsv: no table with columns index and name"):
        inspect_folder(folder)
    (folder / "derivatives/manual/dseg.tsv").unlink()
    lost = folder / "sub-01/ses-2/anat"
    for file in lost.iterdir():
        file.rename(file.with_name(f"other_{file.name}"))
    with pytest.raises(DataError, match=r"no image in .*sub-01/ses-2/anat begins as its name"):
        inspect_folder(folder)
    for file in folder.glob("derivatives/**/*dseg.nii.gz"):
        file.unlink()
    with pytest.raises(DataError, match="no label maps derivatives"):
        inspect_folder(folder)
