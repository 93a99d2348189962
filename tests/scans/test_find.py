"""Which scans are meant by files and folders, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_scans import volume, write_series

from kdpipe.errors import ConfigError
from kdpipe.scans.find import check_paths, find_scans


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(*paths: Path, channels: int = 1) -> dict[str, list[str]]:
    return {scan.name: [file.name for file in scan.files] for scan in find_scans(paths, channels)}


def test_a_folder_gives_its_images_and_nothing_else(tmp_path: Path) -> None:
    names = ("b.nii.gz", "a.nrrd", "c.mha", "d.mhd", "d.raw", "e.hdr", "e.img", "f.png")
    folder = touch(tmp_path / "scans", *names, ".hidden.nii.gz", "notes.txt", "table.json")
    touch(folder / "below", "g.nii.gz")
    assert found(folder) == {
        "a": ["a.nrrd"],
        "b": ["b.nii.gz"],
        "c": ["c.mha"],
        "d": ["d.mhd"],
        "e": ["e.hdr"],
        "f": ["f.png"],
    }


def test_what_is_given_twice_is_done_once(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert list(found(folder, folder / "a.nii.gz", folder / "." / "b.nii.gz")) == ["a", "b"]


def test_channels_that_are_numbered_as_nnunet_does_are_one_scan(tmp_path: Path) -> None:
    folder = touch(tmp_path, *(f"{case}_000{i}.nii.gz" for case in "ab" for i in (1, 0)))
    whole = touch(tmp_path / "4d", "c.nii.gz")
    assert found(folder, whole, channels=2) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
        "c": ["c.nii.gz"],
    }


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    (scan,) = find_scans([touch(tmp_path, "a_0000.nii.gz", "a_0002.nii.gz")], 2)
    assert scan.name == "a"
    assert "takes 2 channels, _0000 to _0001; there are _0000, _0002" in scan.wrong


def test_numbers_of_cases_are_no_channels(tmp_path: Path) -> None:
    folder = touch(tmp_path, "word_0000.nii.gz", "word_0001.nii.gz", "img_0007.nii.gz")
    assert list(found(folder)) == ["img_0007", "word_0000", "word_0001"]
    only = touch(tmp_path / "nnunet", "case_0000.nii.gz")
    assert found(only) == {"case": ["case_0000.nii.gz"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("one/a.nii.gz", "two/a.nii.gz"), "one/a.nii.gz and .*two/a.nii.gz would both be called"),
        (("a.nii.gz", "a.mha"), "a.nii.gz and .*a.mha would both be called 'a'"),
        (("a_0000.nii.gz", "a.nii.gz"), "a_0000.nii.gz and .*a.nii.gz would both"),
    ],
)
def test_two_scans_of_one_name_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        touch((tmp_path / name).parent, Path(name).name)
    with pytest.raises(ConfigError, match=message):
        find_scans([tmp_path / name for name in names], 1)


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notes.txt: no image that can be read \(.nii.gz, "):
        find_scans([touch(tmp_path, "notes.txt") / "notes.txt"], 1)
    with pytest.raises(ConfigError, match="no image in it"):
        find_scans([tmp_path], 1)
    with pytest.raises(ConfigError, match=r"no such file or folder: .*gone.nii.gz$"):
        check_paths([tmp_path, tmp_path / "gone.nii.gz"])
    with pytest.raises(ConfigError, match="no scan is given"):
        check_paths([])


def test_a_link_that_leads_nowhere_is_a_scan_that_will_fail(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert list(found(tmp_path)) == ["a"]


def test_dicom_series_are_named_after_their_folder_and_number(tmp_path: Path) -> None:
    small = volume(size=(8, 8, 3))
    write_series(small, tmp_path / "export" / "anna" / "ct")
    write_series(small, tmp_path / "export" / "bert", uid="1.2.4", number=2)
    write_series(small, tmp_path / "export" / "bert" / "more", uid="1.2.5", number=3)
    both = tmp_path / "export" / "bert"
    for file in (both / "more").iterdir():
        file.rename(both / f"other_{file.name}")
    touch(both, "preview.png", "report.txt")
    scans = find_scans([tmp_path / "export"], 1)
    assert [(scan.name, len(scan.files), scan.wrong) for scan in scans] == [
        ("anna_ct", 3, ""),
        ("bert_2", 3, ""),
        ("bert_3", 3, ""),
    ]
    assert [scan.name for scan in find_scans([tmp_path / "export" / "anna" / "ct"], 1)] == ["ct"]
    assert scans[0].place == str(tmp_path / "export" / "anna" / "ct")


def test_series_without_numbers_are_named_by_uid(tmp_path: Path) -> None:
    for uid in ("1.2.4", "1.2.5"):
        files = write_series(volume(size=(8, 8, 2)), tmp_path / "ct" / uid, uid=uid)
        for file in files:
            file.rename(tmp_path / "ct" / f"{uid}_{file.name}")
    assert [scan.name for scan in find_scans([tmp_path / "ct"], 1)] == ["ct_1.2.4", "ct_1.2.5"]


def test_one_dicom_file_is_a_scan(tmp_path: Path) -> None:
    file = write_series(volume(size=(8, 8, 2)), tmp_path)[0]
    bare = file.rename(tmp_path / "IM0001")
    (scan,) = find_scans([bare], 1)
    assert (scan.name, scan.files, scan.dicom) == ("IM0001", (bare,), True)
