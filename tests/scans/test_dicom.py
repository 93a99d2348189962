"""A DICOM series is the volume that it shows, or is refused for a reason that is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from raw_scans import volume, write_series

from kdpipe.data.geometry import Grid
from kdpipe.errors import DataError
from kdpipe.scans.dicom import read_series, series_below
from kdpipe.scans.find import find_scans
from kdpipe.scans.read import read_scan

POSITION, DIRECTION = "0020|0032", "0020|0037"


def read(folder: Path) -> sitk.Image:
    (scan,) = find_scans([folder], 1)
    return read_scan(scan, ["CT"])[0]


def position(image: sitk.Image, index: float) -> str:
    place = image.TransformContinuousIndexToPhysicalPoint((0, 0, index))
    return "\\".join(f"{value:.10g}" for value in place)


@pytest.mark.parametrize("rescale", [(1, 0), (1, -1024), (2, -1024)])
def test_an_oblique_series_has_the_grid_and_the_values_of_its_volume(
    tmp_path: Path, rescale: tuple[float, float]
) -> None:
    image = volume() * 2
    write_series(image, tmp_path / "ct", rescale=rescale)
    found = read(tmp_path / "ct")
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image)
    )
    away = np.abs(Grid.of(found).corners() - Grid.of(image).corners())
    assert away.max() < 1e-4
    assert found.GetSize() == image.GetSize()


def test_a_slope_that_differs_by_slice_is_applied_to_each(tmp_path: Path) -> None:
    image = volume(size=(12, 10, 4)) * 2
    tags = {0: {"0028|1053": "1"}, 2: {"0028|1053": "2"}}
    write_series(image, tmp_path / "pet", rescale=(1, 0), tags=tags)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read(tmp_path / "pet")), sitk.GetArrayViewFromImage(image)
    )


def test_a_file_of_several_slices_is_read(tmp_path: Path) -> None:
    image = volume()
    image.SetMetaData("0008|0060", "CT")
    sitk.WriteImage(image, str(tmp_path / "multi.dcm"))
    found = read_series([tmp_path / "multi.dcm"])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayViewFromImage(image))
    assert np.abs(Grid.of(found).corners() - Grid.of(image).corners()).max() < 1e-4


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    files = write_series(volume(), tmp_path / "ct")
    files[5].unlink()
    expected = f"missing between {files[4].name} and {files[6].name}, which lie 5 mm apart, others"
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "ct")


@pytest.mark.parametrize("left", [0.9, 0.5, 0.2, 0.05, 0])
@pytest.mark.parametrize("index", [0, 5, 11])
def test_a_slice_that_is_cut_off_is_named(tmp_path: Path, left: float, index: int) -> None:
    """GDCM passes over it; at an end of the series nothing else would tell."""
    file = write_series(volume(), tmp_path / "ct")[index]
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(DataError, match=f"{file.name}: a DICOM image that cannot be read"):
        read(tmp_path / "ct")


def test_a_folder_of_broken_slices_is_a_scan_that_fails(tmp_path: Path) -> None:
    for file in write_series(volume(size=(8, 8, 3)), tmp_path / "ct"):
        file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(DataError, match=r"0000.dcm and 2 more: a DICOM image that cannot be read"):
        read(tmp_path / "ct")


def test_other_files_of_a_folder_do_no_harm(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "ct")
    (tmp_path / "ct" / "DICOMDIR").write_bytes(
        bytes(128) + b"DICM\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10"
    )
    (tmp_path / "ct" / "dose.dcm").write_bytes(
        bytes(128) + b"DICM\x02\x00\x02\x00UI\x1e\x001.2.840.10008.5.1.4.1.1.88.67"
    )
    (tmp_path / "ct" / "LICENCE").write_text("none\n")
    assert read(tmp_path / "ct").GetSize() == volume().GetSize()


def test_files_without_suffix_or_mark_are_read(tmp_path: Path) -> None:
    """Scanners write them; those before 1993 have no preamble."""
    for file in write_series(volume(), tmp_path / "ct"):
        file.rename(file.with_suffix(""))
    expected = sitk.GetArrayFromImage(volume())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(tmp_path / "ct")), expected)


def test_slices_at_one_place_are_named(tmp_path: Path) -> None:
    image = volume()
    files = write_series(image, tmp_path / "ct", tags={6: {POSITION: position(image, 5)}})
    named = "|".join(files[i].name for i in (5, 6))
    with pytest.raises(DataError, match=rf"({named}) and ({named}) lie at one place, 0 mm apart"):
        read(tmp_path / "ct")


def test_time_points_are_no_volume(tmp_path: Path) -> None:
    image = volume(size=(12, 10, 8))
    tags = {i: {POSITION: position(image, i // 2)} for i in range(8)}
    write_series(image, tmp_path / "ct", tags=tags)
    with pytest.raises(DataError, match="lie at one place"):
        read(tmp_path / "ct")


def test_uneven_slices_are_named(tmp_path: Path) -> None:
    image = volume()
    tags = {i: {POSITION: position(image, i + 0.25)} for i in range(6, 12)}
    write_series(image, tmp_path / "ct", tags=tags)
    with pytest.raises(DataError, match=r"lie unevenly, 2.5 to 3.125 mm apart"):
        read(tmp_path / "ct")


def test_rounded_positions_are_even_enough(tmp_path: Path) -> None:
    image = volume(oblique=False)
    tags = {i: {POSITION: position(image, i + 0.04 * (-1) ** i)} for i in range(12)}
    write_series(image, tmp_path / "ct", tags=tags)
    assert read(tmp_path / "ct").GetSpacing()[2] == pytest.approx(2.5, rel=0.01)


def test_a_tilted_gantry_is_named(tmp_path: Path) -> None:
    image = volume(oblique=False)
    x, y, z = image.GetOrigin()
    tags = {i: {POSITION: f"{x}\\{y + 0.3 * i}\\{z + 2.5 * i}"} for i in range(12)}
    write_series(image, tmp_path / "ct", tags=tags)
    with pytest.raises(
        DataError, match=r"shifted against one another by 0.12 mm a mm \(the gantry"
    ):
        read(tmp_path / "ct")


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    write_series(volume(size=(24, 20, 6)), tmp_path / "ct")
    for file in write_series(volume(size=(24, 16, 2)), tmp_path / "scout"):
        file.rename(tmp_path / "ct" / f"scout_{file.name}")
    with pytest.raises(DataError, match=r"[26] of 8 slices have another size than \w+.dcm"):
        read(tmp_path / "ct")


def test_directions_that_differ_are_named(tmp_path: Path) -> None:
    turned = {3: {DIRECTION: "1\\0\\0\\0\\0\\-1"}}
    files = write_series(volume(), tmp_path / "ct", tags=turned)
    with pytest.raises(DataError, match=rf"another direction than .*\b{files[3].name}\b"):
        read(tmp_path / "ct")


def test_a_folder_that_cannot_be_read_is_a_scan_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(volume(), tmp_path / "scans" / "open")
    write_series(volume(), tmp_path / "scans" / "closed")
    look = os.scandir

    def denied(folder: Path) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return look(folder)

    monkeypatch.setattr(os, "scandir", denied)
    closed, good = sorted(series_below(tmp_path / "scans"), key=lambda one: one.name)
    assert (closed.name, good.name, good.wrong) == ("closed", "open", "")
    with pytest.raises(DataError, match=r"scans/closed: the folder cannot be read \(Permission"):
        read_scan(closed, ["CT"])


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "archive" / "7")
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "patient").symlink_to(tmp_path / "archive" / "7")
    (scans / "patient_again").symlink_to(tmp_path / "archive" / "7")
    (scans / "loop").symlink_to(scans)
    (scans / "above").symlink_to(tmp_path)
    (found,) = series_below(scans)
    assert found.name == "patient"
    assert len(found.files) == volume().GetDepth()


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    write_series(volume(size=(8, 8, 2)), tmp_path / ".trash")
    assert series_below(tmp_path) == []
