"""Folders in MSD and nnU-Net layout become cases; what is wrong with one is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from kdpipe.data.layout import Case, index, list_files, read_manifest, write_manifest
from kdpipe.errors import ConfigError, DataError
from kdpipe.layouts import Layout


def build(
    folder: Path, images: Iterable[str], labels: Iterable[str], description: str = "{}"
) -> Path:
    """Make a data set whose files hold their own names."""
    for part, names in (("imagesTr", images), ("labelsTr", labels)):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / name).write_text(f"{part} {name}")
    (folder / "dataset.json").write_text(description)
    return folder


def msd(folder: Path, cases: Iterable[str] = ("a_1", "a_2", "b_1")) -> Path:
    names = [f"{case}.nii.gz" for case in cases]
    return build(folder, names, names)


def nnunet(folder: Path, ending: str = ".nii.gz") -> Path:
    images = [f"{case}_{channel:04d}{ending}" for case in ("p1", "p2") for channel in (1, 0)]
    description = json.dumps({"file_ending": ending, "channel_names": {"0": "T1", "1": "T2"}})
    return build(folder, images, [f"p1{ending}", f"p2{ending}"], description)


def test_msd(tmp_path: Path) -> None:
    folder = msd(tmp_path / "d")
    (folder / "imagesTr/._a_1.nii.gz").write_text("macOS")
    (folder / "imagesTr/readme.txt").write_text("")
    cases = list_files(folder, Layout(subject_pattern=r"(.+)_\d"), 1)
    image, label = folder / "imagesTr/a_1.nii.gz", folder / "labelsTr/a_1.nii.gz"
    assert cases[0] == Case("a_1", "a", (image,), label)
    assert [(case.case, case.subject) for case in cases] == [
        ("a_1", "a"), ("a_2", "a"), ("b_1", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["auto", "nnunet"])
def test_nnunet_channels_are_in_order(tmp_path: Path, ending: str, kind: str) -> None:
    folder = nnunet(tmp_path / "d", ending)
    first, second = list_files(folder, Layout(kind=kind), 2)
    images = tuple(folder / f"imagesTr/p1_000{i}{ending}" for i in (0, 1))
    assert first == Case("p1", "p1", images, folder / f"labelsTr/p1{ending}")
    assert second.case == "p2"


def test_auto_is_not_misled_by_a_number_in_an_msd_name(tmp_path: Path) -> None:
    cases = list_files(msd(tmp_path / "d", ["ct_1001", "ct_1002"]), Layout(), 1)
    assert [case.case for case in cases] == ["ct_1001", "ct_1002"]


def test_a_pattern_chooses_cases_and_the_others_may_be_incomplete(tmp_path: Path) -> None:
    folder = msd(tmp_path / "d")
    (folder / "labelsTr/b_1.nii.gz").unlink()
    assert [c.case for c in list_files(folder, Layout(case_pattern=r"a_\d"), 1)] == ["a_1", "a_2"]


def test_index_hashes_images_and_label(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "d")
    before = index(folder, Layout(), 2)
    assert index(folder, Layout(), 2) == before
    for changed in ("imagesTr/p1_0001.nii.gz", "labelsTr/p1.nii.gz"):
        (folder / changed).write_text("other")
        after = index(folder, Layout(), 2)
        assert after[0].sha256 != before[0].sha256
        assert after[1] == before[1]
        before = after
    assert len(before[0].sha256) == 64


def test_list_files_reads_no_image(tmp_path: Path) -> None:
    folder = msd(tmp_path / "d", ["a"])
    for part in ("imagesTr", "labelsTr"):
        file = folder / part / "a.nii.gz"
        file.unlink()
        file.symlink_to(tmp_path / "offline storage")  # opening it would fail
    assert list_files(folder, Layout(), 1)[0].sha256 == ""


def test_manifest_round_trip(tmp_path: Path) -> None:
    cases = index(nnunet(tmp_path / "d"), Layout(), 2)
    write_manifest(tmp_path / "new/manifest.tsv", cases)
    header, row = (tmp_path / "new/manifest.tsv").read_text().splitlines()[:2]
    assert header.split("\t") == ["case", "subject", "images", "label", "sha256"]
    assert row.split("\t")[2].count(";") == 1
    assert read_manifest(tmp_path / "new/manifest.tsv") == cases


def test_manifest_refuses_what_it_could_not_give_back(tmp_path: Path) -> None:
    case = Case("a", "a", (Path("one;two.nii.gz"),), Path("a.nii.gz"), "0")
    with pytest.raises(DataError, match="case 'a', 'one;two.nii.gz': rename it"):
        write_manifest(tmp_path / "m.tsv", [case])
    assert not list(tmp_path.iterdir())


HEADER = "case\tsubject\timages\tlabel\tsha256"


@pytest.mark.parametrize("text", [None, "", "case\timage\n", f"{HEADER}\na\tb\n"])
def test_manifest_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "m.tsv").write_text(text)
    with pytest.raises(DataError, match=r"m\.tsv: not readable as a manifest .*run again"):
        read_manifest(tmp_path / "m.tsv")


def drop(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


LISTED = json.dumps({"training": [{"label": f"./labelsTr/{c}.nii.gz"} for c in ("a_1", "lost")]})


@pytest.mark.parametrize(
    ("change", "layout", "error", "message"),
    [
        (drop("dataset.json"), {}, DataError, "no dataset.json; a data set in MSD"),
        (write("dataset.json", "{"), {}, DataError, "dataset.json: not readable as JSON"),
        (write("dataset.json", "[]"), {}, DataError, "a JSON object is expected"),
        (lambda f: (f / "imagesTr").rename(f / "images"), {}, DataError, "no imagesTr"),
        (lambda f: (f / "labelsTr").rename(f / "labels"), {}, DataError, "no labelsTr"),
        (drop("labelsTr/a_1.nii.gz"), {}, DataError, "image without label: a_1"),
        (drop("imagesTr/a_1.nii.gz"), {}, DataError, "label without image: a_1"),
        (drop(*(f"imagesTr/{c}.nii.gz" for c in ("a_1", "a_2", "b_1"))), {}, DataError,
         r"imagesTr: no file ends in \.nii\.gz"),
        (write("imagesTr/a_1.nii", ""), {}, DataError, "are the same; keep one"),
        (write("dataset.json", LISTED), {}, DataError, "1 cases that dataset.json lists .*: lost;"),
        (drop(), {"case_pattern": "c.+"}, ConfigError, r"none of 3 cases \(such as 'a_1'\)"),
        (drop(), {"subject_pattern": r"(a)_\d"}, ConfigError, "case 'b_1' does not match"),
        (drop(), {"kind": "nnunet"}, DataError, r"a_1\.nii\.gz does not end in a channel number"),
    ],
)  # fmt: skip
def test_wrong_folders(tmp_path: Path, change, layout: dict, error, message: str) -> None:
    folder = msd(tmp_path / "d")
    change(folder)
    with pytest.raises(error, match=message):
        list_files(folder, Layout(**layout), 1)


def test_many_missing_are_counted_not_all_listed(tmp_path: Path) -> None:
    names = [f"c{i:03d}.nii.gz" for i in range(40)]
    folder = build(tmp_path / "d", names, names[:1])
    with pytest.raises(DataError, match="c001, c002, c003, c004, c005 and 34 more"):
        list_files(folder, Layout(), 1)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        list_files(tmp_path / "nowhere", Layout(), 1)


def test_the_folder_above_is_recognised(tmp_path: Path) -> None:
    inner = msd(tmp_path / "Task04")
    with pytest.raises(DataError, match=f"did you mean {inner}"):
        list_files(tmp_path, Layout(), 1)


def test_channels_are_those_of_the_card(tmp_path: Path) -> None:
    folder = nnunet(tmp_path / "d")
    with pytest.raises(DataError, match=r"p1_0001\.nii\.gz is a channel that the card does not"):
        list_files(folder, Layout(), 1)
    (folder / "imagesTr/p2_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'p2' has no channel p2_0001, the card names 2"):
        list_files(folder, Layout(), 2)


def test_real_data(hippocampus: Path) -> None:
    layout = Layout(case_pattern=r"hippocampus_\d{3}")
    cases = index(hippocampus, layout, 1)
    assert len({case.sha256 for case in cases}) == len(cases) == 260
