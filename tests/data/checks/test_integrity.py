"""Every kind of bad case is refused with its name, its file and a way to mend it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.data.checks.integrity import check_case, read_case
from kdpipe.data.manifest import Case
from kdpipe.errors import DataError
from kdpipe.images.files import count_non_finite
from kdpipe.labels import Labels

SHAPE = (12, 10, 8)
LABELS = Labels(raw={0: "background", 1: "liver", 2: "spleen"})


def save(file: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    affine = np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return file


def voxels() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)


def label_map() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:6, 2:6] = 1
    label[7:9, 7:9, 2:5] = 2
    return label


@pytest.fixture
def case(tmp_path: Path) -> Case:
    image = save(tmp_path / "image.nii.gz", voxels())
    label = save(tmp_path / "label.nii.gz", label_map())
    return Case("patient_7", "patient", (image,), label, "0" * 64)


def check(case: Case, labels: Labels = LABELS, channels: tuple[str, ...] = ("CT",)) -> list[str]:
    images, label = read_case(case)
    return [finding.text for finding in check_case(case, images, label, labels, channels)]


def test_sound_case_passes_without_warnings(case: Case) -> None:
    assert check(case) == []


def test_integer_label_stored_as_float_passes(case: Case) -> None:
    save(case.label, label_map().astype(np.float64))
    assert check(case) == []


def nan(case: Case) -> Path:
    array = voxels()
    array[3, 3, 3] = np.nan
    return save(case.images[0], array)


def infinite(case: Case) -> Path:
    array = voxels()
    array[0, 0, 0] = np.inf
    return save(case.images[0], array)


def nan_label(case: Case) -> Path:
    array = label_map().astype(np.float32)
    array[0, 0, 0] = np.nan
    return save(case.label, array)


def constant(case: Case) -> Path:
    return save(case.images[0], np.full(SHAPE, 5, np.int16))


def other_shape(case: Case) -> Path:
    return save(case.label, label_map()[:-1])


def shifted(case: Case) -> Path:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = 0.02
    return save(case.label, label_map(), affine)


def stretched(case: Case) -> Path:
    return save(case.label, label_map(), np.diag([1.0, 1.5, 2.01, 1.0]))


def flipped(case: Case) -> Path:
    return save(case.label, label_map(), np.diag([-1.0, 1.5, 2.0, 1.0]))


def unknown_id(case: Case) -> Path:
    array = label_map()
    array[0, 0, 0] = 9
    return save(case.label, array)


def negative_id(case: Case) -> Path:
    array = label_map().astype(np.int16)
    array[0, 0, 0] = -1
    return save(case.label, array)


def fractional_id(case: Case) -> Path:
    return save(case.label, label_map() * np.float32(0.5))


def empty_label(case: Case) -> Path:
    return save(case.label, np.zeros(SHAPE, np.uint8))


def single_row(case: Case) -> Path:
    save(case.label, label_map()[2:3])
    return save(case.images[0], voxels()[2:3])


def two_dimensional(case: Case) -> Path:
    return save(case.label, label_map()[:, :, 2])


def four_dimensional(case: Case) -> Path:
    return save(case.images[0], np.stack([voxels()] * 2, axis=-1))


def four_dimensional_label(case: Case) -> Path:
    return save(case.label, np.stack([label_map()] * 2, axis=-1))


def five_dimensional(case: Case) -> Path:
    return save(case.images[0], np.stack([voxels()] * 3, axis=-1)[:, :, :, None, :])


def colour(case: Case) -> Path:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return save(case.images[0], rgb)


def colour_label(case: Case) -> Path:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return save(case.label, rgb)


def sheared(case: Case) -> Path:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nibabel.Nifti1Image(voxels(), affine)
    image.set_qform(None, 0)
    nibabel.save(image, case.images[0])
    return case.images[0]


def truncated(case: Case) -> Path:
    content = case.images[0].read_bytes()
    case.images[0].write_bytes(content[: len(content) // 2])
    return case.images[0]


def short_inside(case: Case) -> Path:
    content = gzip.decompress(case.images[0].read_bytes())
    case.images[0].write_bytes(gzip.compress(content[:-100]))
    return case.images[0]


def wrong_checksum(case: Case) -> Path:
    content = bytearray(case.images[0].read_bytes())
    content[-8] ^= 0xFF
    case.images[0].write_bytes(bytes(content))
    return case.images[0]


def damaged_label(case: Case) -> Path:
    content = case.label.read_bytes()
    case.label.write_bytes(content[:-12])
    return case.label


def not_gzip(case: Case) -> Path:
    case.images[0].write_bytes(b"<html>not found</html>")
    return case.images[0]


def not_nifti(case: Case) -> Path:
    case.images[0].write_bytes(gzip.compress(b"no image" * 100))
    return case.images[0]


def empty_file(case: Case) -> Path:
    case.images[0].write_bytes(b"")
    return case.images[0]


def voxels_without_a_size(case: Case) -> Path:
    content = bytearray(gzip.decompress(case.images[0].read_bytes()))
    struct.pack_into("<f", content, 84, 0)  # of the second axis
    case.images[0].write_bytes(gzip.compress(bytes(content)))
    return case.images[0]


def voxels_of_no_finite_size(case: Case) -> Path:
    image = nibabel.Nifti2Image(voxels(), np.diag([1.0, 1.5, 2.0, 1.0]))
    nibabel.save(image, case.images[0])
    content = bytearray(gzip.decompress(case.images[0].read_bytes()))
    struct.pack_into("<d", content, 128, np.nan)  # of the third axis
    case.images[0].write_bytes(gzip.compress(bytes(content)))
    return case.images[0]


def missing(case: Case) -> Path:
    case.label.unlink()
    return case.label


BAD: dict[Callable[[Case], Path], str] = {
    nan: "1 voxels are NaN",
    infinite: "1 voxels are NaN or infinite",
    nan_label: "1 voxels are NaN",
    constant: "constant image, every voxel is 5",
    other_shape: r"shape \(11, 10, 8\) differs",
    shifted: "affine differs .* 0.02 mm",
    stretched: "affine differs",
    flipped: "affine differs",
    unknown_id: "not in the card: 9",
    negative_id: "not in the card: -1",
    fractional_id: "no integers: 0.5",
    empty_label: "empty label map",
    single_row: "only the last axis may have a single voxel",
    two_dimensional: r"shape \(12, 10, 1\) differs from the first image's \(12, 10, 8\)",
    four_dimensional: "2 channels found, the card names 1",
    four_dimensional_label: "4 axes",
    five_dimensional: "5 axes",
    colour: "3 channels found, the card names 1",
    colour_label: "label map of colour",
    sheared: "orthonormal",
    truncated: "damaged",
    short_inside: "the header promises",
    wrong_checksum: "CRC",
    damaged_label: "damaged",
    not_gzip: "damaged",
    not_nifti: "not readable",
    empty_file: "not readable",
    voxels_without_a_size: "not readable .*1 x 0 x 2 mm",
    voxels_of_no_finite_size: "not readable .*1 x 1.5 x nan mm",
    missing: "no such file",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_case_is_refused(case: Case, spoil: Callable[[Case], Path]) -> None:
    file = spoil(case)
    with pytest.raises(DataError, match=BAD[spoil]) as caught:
        check(case)
    message = str(caught.value)
    assert "case 'patient_7'" in message
    assert str(file) in message
    assert message.count(";") >= 1, "a way to mend it follows the finding"


def test_truncated_uncompressed_file_is_refused(case: Case, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.nii", voxels())
    plain.write_bytes(plain.read_bytes()[:-50])
    with pytest.raises(DataError, match="the header promises"):
        check(replace(case, images=(plain,)))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_non_finite_voxels_are_counted_in_every_encoding(
    tmp_path: Path, kind: type, dtype: str, name: str
) -> None:
    array = np.random.default_rng(0).normal(size=(70, 70, 30)).astype(dtype)
    image = kind(array, np.eye(4), kind.header_class(endianness=dtype[0]))
    image.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / name)
    assert count_non_finite(tmp_path / name) == 0
    array[0, 0, 0], array[-1, -1, -1], array[40, 3, 29] = np.nan, -np.inf, np.inf
    nibabel.save(image, tmp_path / name)
    assert count_non_finite(tmp_path / name) == 3


def test_sheared_axes_of_other_formats_are_found(case: Case, tmp_path: Path) -> None:
    files = []
    for source in (case.images[0], case.label):
        image = sitk.ReadImage(str(source))
        image.SetDirection((1, 0.01, 0, 0, 1, 0, 0, 0, 1))
        files.append(tmp_path / f"{len(files)}.mha")
        sitk.WriteImage(image, str(files[-1]))
    other = replace(case, images=(files[0],), label=files[1])
    with pytest.raises(DataError, match="0.mha: axes are sheared, cosine 0.01"):
        check(other)


def test_displacement_below_the_limit_passes(case: Case) -> None:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = 0.005
    save(case.label, label_map(), affine)
    assert check(case) == []


def test_missing_structure_is_a_warning_unless_the_card_expects_it(case: Case) -> None:
    array = label_map()
    array[array == 2] = 0
    save(case.label, array)
    assert check(case) == ["lacks spleen"]
    assert check(case, Labels(raw=LABELS.raw, may_be_absent=("spleen",))) == []
    assert check(case, Labels(raw=LABELS.raw, may_be_absent="all")) == []


def test_channels_as_volumes_of_one_file(case: Case) -> None:
    both = np.stack([voxels(), voxels() + 7], axis=-1)
    save(case.images[0], both)
    assert check(case, channels=("T2", "ADC")) == []
    images, _ = read_case(case)
    assert [image.GetSize() for image in images] == [SHAPE, SHAPE]
    assert images[1][3, 4, 5] == pytest.approx(both[3, 4, 5, 1])


def test_channels_as_files_must_share_one_grid(case: Case, tmp_path: Path) -> None:
    second = save(tmp_path / "second.nii.gz", voxels() + 7)
    two = replace(case, images=(case.images[0], second))
    assert check(two, channels=("T2", "ADC")) == []
    with pytest.raises(DataError, match="2 channels found, the card names 1"):
        check(two)
    save(second, voxels()[:, :-1])
    with pytest.raises(DataError, match="second.nii.gz: shape"):
        check(two, channels=("T2", "ADC"))
