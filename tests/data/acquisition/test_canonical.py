"""Other ids, colours and masks become plain label maps; what cannot be read is named."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.data.acquisition.canonical import canonical_labels
from kdpipe.data.checks.integrity import read_case
from kdpipe.data.folders.layout import index
from kdpipe.data.geometry import Grid
from kdpipe.data.manifest import Case, read_manifest, write_manifest
from kdpipe.errors import ConfigError, DataError
from kdpipe.labels import Labels
from kdpipe.layouts import Layout

ORGANS = {0: "background", 1: "aorta", 2: "liver"}
REMAPPED = Labels(raw=ORGANS, remap={8: 1, 6: 2}, unlisted="background")
STRICT = Labels(raw=ORGANS, remap={8: 1, 6: 2})
COLOURED = Labels(raw=ORGANS, palette={"0,0,0": 0, "0,85,170": 1, "255,0,0": 2})
PLAIN = Labels(raw=ORGANS)


def volume(file: Path, array: np.ndarray, spacing: float = 1.5) -> Path:
    """Write (z, y, x) on an oblique, shifted grid."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, spacing))
    image.SetOrigin((-31.5, 12.25, 400))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))
    return file


def scan(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 99, (3, 4, 5)).astype(np.int16)


@pytest.fixture
def remapped(tmp_path: Path) -> list[Case]:
    """Two cases whose ids are 0, 6, 8 and, in the second, 3."""
    rng = np.random.default_rng(0)
    for case, ids in (("a", [0, 6, 8]), ("b", [0, 3, 6, 8])):
        volume(tmp_path / f"d/{case}.nii.gz", scan(rng))
        labels = rng.choice(ids, (3, 4, 5)).astype(np.uint8)
        labels.flat[: len(ids)] = ids
        volume(tmp_path / f"d/{case}_seg.nii.gz", labels)
    layout = Layout(kind="files", find=r"(?P<case>\w)\.nii\.gz", label="{case}_seg.nii.gz")
    return index(tmp_path / "d", layout, 1)


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_remap(tmp_path: Path, remapped: list[Case]) -> None:
    folder = tmp_path / "labels"
    found = canonical_labels(remapped, REMAPPED, folder)
    for case, before in zip(found, remapped, strict=True):
        assert case.label == folder / f"{case.case}.nii.gz"
        raw, new = read(before.label), read(case.label)
        assert new.dtype == np.uint8
        np.testing.assert_array_equal(new, np.select([raw == 8, raw == 6], [1, 2], 0))
        (image,), label = read_case(case)
        np.testing.assert_allclose(Grid.of(label).corners(), Grid.of(image).corners(), atol=1e-4)
        assert replace(case, label=before.label, sha256=before.sha256) == before
        assert len({case.sha256, before.sha256}) == 2
    write_manifest(tmp_path / "manifest.tsv", found)
    assert read_manifest(tmp_path / "manifest.tsv") == found


def test_nothing_to_do(tmp_path: Path, remapped: list[Case]) -> None:
    assert canonical_labels(remapped, PLAIN, tmp_path / "labels") == remapped
    assert not (tmp_path / "labels").exists()


def test_zero_can_be_remapped_too(tmp_path: Path, remapped: list[Case]) -> None:
    labels = Labels(raw=ORGANS, remap={0: 1, 6: 2, 8: 0, 3: 0})
    for case, before in zip(canonical_labels(remapped, labels, tmp_path), remapped, strict=True):
        np.testing.assert_array_equal(read(case.label) == 1, read(before.label) == 0)


def test_an_unlisted_id_is_an_error_that_names_the_case(
    tmp_path: Path, remapped: list[Case]
) -> None:
    message = r"1 cases .*\n  case 'b', .*b_seg\.nii\.gz: ids that labels\.remap does not list: 3;"
    with pytest.raises(DataError, match=message):
        canonical_labels(remapped, STRICT, tmp_path / "labels")
    assert (tmp_path / "labels/a.nii.gz").is_file()
    assert not (tmp_path / "labels/b.nii.gz").exists()


def test_fractions_are_no_ids(tmp_path: Path, remapped: list[Case]) -> None:
    volume(remapped[0].label, np.full((3, 4, 5), 6.5, np.float32))
    with pytest.raises(DataError, match=r"case 'a', .*no integers: 6\.5; store"):
        canonical_labels(remapped, REMAPPED, tmp_path / "labels")


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.iterdir())}


def test_a_second_run_makes_only_what_changed(tmp_path: Path, remapped: list[Case]) -> None:
    folder = tmp_path / "labels"
    first = canonical_labels(remapped, REMAPPED, folder)
    before = stamps(folder)
    assert canonical_labels(remapped, REMAPPED, folder) == first
    assert stamps(folder) == before
    assert sorted(before) == ["a.json", "a.nii.gz", "b.json", "b.nii.gz"]

    changed = [remapped[0], replace(remapped[1], sha256="0" * 64)]
    second = canonical_labels(changed, REMAPPED, folder)
    assert second[0] == first[0] and second[1].sha256 != first[1].sha256
    after = stamps(folder)
    assert {name for name in after if after[name] != before[name]} == {"b.json", "b.nii.gz"}

    (folder / "a.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-9])
    assert canonical_labels(changed, REMAPPED, folder) == second
    assert read_case(second[0])[1].GetSize() == (5, 4, 3)


def test_another_rule_makes_other_label_maps(tmp_path: Path, remapped: list[Case]) -> None:
    first = canonical_labels(remapped, REMAPPED, tmp_path / "labels")
    old = read(first[0].label)
    swapped = Labels(raw=ORGANS, remap={8: 2, 6: 1}, unlisted="background")
    second = canonical_labels(remapped, swapped, tmp_path / "labels")
    assert second[0].sha256 != first[0].sha256
    np.testing.assert_array_equal(read(second[0].label), np.array([0, 2, 1])[old])
    regions = REMAPPED.model_copy(update={"may_be_absent": "all"})  # changes no label map
    assert canonical_labels(remapped, regions, tmp_path / "labels") == first


COLOURS = np.array([[0, 0, 0], [0, 85, 170], [255, 0, 0]], np.uint8)


def frame(folder: Path, pixels: np.ndarray, colours: np.ndarray = COLOURS) -> Case:
    """A photograph as JPEG and its mask as a colour PNG, (y, x) ids of `colours`."""
    photo = np.random.default_rng(1).integers(0, 255, (*pixels.shape, 3)).astype(np.uint8)
    for name, array in (("7.jpg", photo), ("7_gt.png", colours[pixels])):
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(folder / name))
    return Case("7", "0", (folder / "7.jpg",), folder / "7_gt.png", "1" * 64)


def test_colours_become_one_slice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 3, (6, 9))
    (case,) = canonical_labels([frame(tmp_path, pixels)], COLOURED, tmp_path / "labels")
    np.testing.assert_array_equal(read(case.label), pixels[None])
    images, label = read_case(case)
    assert len(images) == 3 and Grid.of(label) == Grid.of(images[0])


def test_a_transparent_picture_is_read_by_its_colours(tmp_path: Path) -> None:
    colours = np.concatenate([COLOURS, np.full((3, 1), 255, np.uint8)], axis=1)
    pixels = np.arange(6).reshape(2, 3) % 3
    (case,) = canonical_labels([frame(tmp_path, pixels, colours)], COLOURED, tmp_path / "labels")
    np.testing.assert_array_equal(read(case.label), pixels[None])


def test_unknown_colours_are_named_with_their_pixels(tmp_path: Path) -> None:
    colours = np.concatenate([COLOURS, [[0, 170, 85], [1, 2, 3]]]).astype(np.uint8)
    pixels = np.zeros((4, 5), int)
    pixels[0, :3], pixels[1, 0] = 3, 4
    message = r"case '7', .*7_gt\.png: colours .*: 0,170,85 \(3 pixels\), 1,2,3 \(1 pixels\); add"
    with pytest.raises(DataError, match=message):
        canonical_labels([frame(tmp_path, pixels, colours)], COLOURED, tmp_path / "labels")


@pytest.mark.parametrize(
    ("labels", "array", "message"),
    [
        (COLOURED, np.zeros((4, 5), np.uint8), r"no picture in 8-bit colours, but uint8"),
        (COLOURED, np.zeros((4, 5, 3), np.uint16), r"no picture in 8-bit colours, but uint16"),
        (STRICT, np.zeros((4, 5, 3), np.uint8), r"a colour picture; give its colours in"),
    ],
)
def test_the_wrong_kind_of_picture(
    tmp_path: Path, labels: Labels, array: np.ndarray, message: str
) -> None:
    case = frame(tmp_path, np.zeros((4, 5), int))
    vector = array.ndim == 3
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(case.label))
    with pytest.raises(DataError, match=message):
        canonical_labels([case], labels, tmp_path / "labels")


def masked(folder: Path, **masks: Any) -> Case:
    volume(folder / "ct.nii.gz", scan(np.random.default_rng(3)))
    files = tuple((name, volume(folder / f"{name}.nii.gz", array)) for name, array in masks.items())
    return Case("s1", "s1", (folder / "ct.nii.gz",), files[0][1], "2" * 64, "", files)


def test_masks_are_painted_in_the_order_of_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    liver, aorta = (np.zeros((3, 4, 5), np.uint8) for _ in range(2))
    liver[0], aorta[:, 0] = 1, 255
    with caplog.at_level(logging.WARNING):
        case = masked(tmp_path, liver=liver, aorta=aorta)  # the liver's id is the larger one
        (found,) = canonical_labels([case], PLAIN, tmp_path / "labels")
    assert "case 's1': 5 voxels lie in two masks, the later id wins" in caplog.text
    assert found.masks == ()
    np.testing.assert_array_equal(read(found.label), np.where(liver, 2, np.where(aorta, 1, 0)))
    (image,), label = read_case(found)
    np.testing.assert_allclose(Grid.of(label).corners(), Grid.of(image).corners(), atol=1e-4)


def test_masks_that_do_not_meet_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    liver, aorta = (np.zeros((3, 4, 5), np.uint8) for _ in range(2))
    liver[0], aorta[1] = 1, 1
    (found,) = canonical_labels([masked(tmp_path, liver=liver, aorta=aorta)], PLAIN, tmp_path / "l")
    assert not caplog.text
    assert np.bincount(read(found.label).ravel()).tolist() == [20, 20, 20]


def test_swapped_names_of_masks_are_another_label_map(tmp_path: Path) -> None:
    liver, aorta = (np.zeros((3, 4, 5), np.uint8) for _ in range(2))
    liver[0] = 1
    case = masked(tmp_path, liver=liver, aorta=aorta)
    (first,) = canonical_labels([case], PLAIN, tmp_path / "labels")
    (one, a), (two, b) = case.masks
    swapped = replace(case, masks=((two, a), (one, b)))
    (second,) = canonical_labels([swapped], PLAIN, tmp_path / "labels")
    assert second.sha256 != first.sha256
    assert read(second.label).max() == 1


def test_wrong_masks(tmp_path: Path) -> None:
    plain = np.zeros((3, 4, 5), np.uint8)
    steps = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    with pytest.raises(DataError, match=r"'s1', .*aorta\.nii\.gz: no binary mask: values 0, 1, 2"):
        canonical_labels([masked(tmp_path, liver=plain, aorta=steps)], PLAIN, tmp_path / "l")
    with pytest.raises(DataError, match=r"size \(5, 4, 2\) on another grid than the first"):
        canonical_labels([masked(tmp_path, aorta=plain, liver=plain[1:])], PLAIN, tmp_path / "l")
    moved = masked(tmp_path, aorta=plain, liver=plain)
    volume(moved.masks[1][1], plain, spacing=1.6)
    with pytest.raises(DataError, match=r"liver\.nii\.gz: a mask of size .* on another grid"):
        canonical_labels([moved], PLAIN, tmp_path / "l")
    moved.masks[0][1].unlink()
    with pytest.raises(DataError, match=r"aorta\.nii\.gz: no such file"):
        canonical_labels([moved], PLAIN, tmp_path / "l")
    assert not list(tmp_path.glob("l/*"))


def test_wrong_cards(tmp_path: Path) -> None:
    case = masked(tmp_path, heart=np.ones((3, 4, 5), np.uint8))
    with pytest.raises(ConfigError, match=r"layout\.masks: \['heart'\] are not in labels\.raw"):
        canonical_labels([case], PLAIN, tmp_path / "labels")
    with pytest.raises(ConfigError, match=r"excludes labels\.remap and labels\.palette"):
        canonical_labels([case], REMAPPED, tmp_path / "labels")
