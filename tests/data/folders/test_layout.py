"""Folders in MSD, nnU-Net and any other layout become cases; what is wrong with one is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from kdpipe.cards import load_card
from kdpipe.data.folders.layout import index, list_files
from kdpipe.data.manifest import Case, read_manifest, write_manifest
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
    assert header.split("\t") == ["case", "subject", "images", "label", "sha256", "part"]
    assert row.split("\t")[2].count(";") == 1
    assert read_manifest(tmp_path / "new/manifest.tsv") == cases


def test_manifest_refuses_what_it_could_not_give_back(tmp_path: Path) -> None:
    case = Case("a", "a", (Path("one;two.nii.gz"),), Path("a.nii.gz"), "0")
    with pytest.raises(DataError, match="case 'a', 'one;two.nii.gz': rename it"):
        write_manifest(tmp_path / "m.tsv", [case])
    assert not list(tmp_path.iterdir())


HEADER = "case\tsubject\timages\tlabel\tsha256\tpart"


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


def tree(folder: Path, *names: str) -> Path:
    """Make files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def of_card(name: str, folder: Path) -> tuple[Path, list[Case]]:
    """List a tree by a shipped card; the folder that counts comes first."""
    card = load_card(name)
    cases = list_files(folder, card.layout, len(card.channels))
    root = next(folder / r for r in card.layout.roots if (folder / r).is_dir())
    return root, cases


def test_acdc_frames_of_a_patient(tmp_path: Path) -> None:
    patients = {"training/patient001": ("01", "12"), "testing/patient101": ("01", "14")}
    for place, frames in patients.items():
        stem = f"ACDC/database/{place}/{place.split('/')[1]}"
        tree(tmp_path, f"{stem}_4d.nii.gz", stem.rsplit("/", 1)[0] + "/Info.cfg")
        for frame in frames:
            tree(tmp_path, f"{stem}_frame{frame}.nii.gz", f"{stem}_frame{frame}_gt.nii.gz")
    tree(tmp_path, "ACDC/database/MANDATORY_CITATION.md")
    root, cases = of_card("acdc", tmp_path)
    assert [(c.case, c.subject, c.part) for c in cases] == [
        ("patient001_frame01", "patient001", "training"),
        ("patient001_frame12", "patient001", "training"),
        ("patient101_frame01", "patient101", "testing"),
        ("patient101_frame14", "patient101", "testing"),
    ]
    assert cases[1].images == (root / "training/patient001/patient001_frame12.nii.gz",)
    assert cases[1].label == root / "training/patient001/patient001_frame12_gt.nii.gz"


def test_brats_sequences_and_time_points(tmp_path: Path) -> None:
    names = ["BraTS-GLI-00002-000", "BraTS-GLI-00002-001", "BraTS-GLI-00003-000"]
    for name in names:
        for end in ("seg", "t1c", "t1n", "t2f", "t2w"):
            tree(tmp_path, f"TrainingData/{name}/{name}-{end}.nii.gz")
    root, cases = of_card("brats23_gli", tmp_path)
    assert [case.case for case in cases] == names
    assert [case.subject for case in cases] == ["00002", "00002", "00003"]
    assert [file.name[-10:-7] for file in cases[0].images] == ["t1n", "t1c", "t2w", "t2f"]
    assert cases[0].label == root / names[0] / f"{names[0]}-seg.nii.gz"


def test_totalsegmentator_masks(tmp_path: Path) -> None:
    organs = ["spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach"]
    organs += ["pancreas", "aorta", "vertebrae_L1"]
    names = [f"segmentations/{organ}.nii.gz" for organ in organs] + ["ct.nii.gz"]
    top = tmp_path / "Totalsegmentator_dataset_small_v201"
    tree(top, "meta.csv", *(f"s0011/{name}" for name in names))
    root, (case,) = of_card("totalseg_small", tmp_path)
    assert case.images == (root / "s0011/ct.nii.gz",)
    assert dict(case.masks)["right_kidney"] == root / "s0011/segmentations/kidney_right.nii.gz"
    assert len(case.masks) == 8 and case.label == case.masks[0][1]
    before = index(tmp_path, load_card("totalseg_small").layout, 1)[0].sha256
    (root / "s0011/segmentations/aorta.nii.gz").write_text("other")
    assert index(tmp_path, load_card("totalseg_small").layout, 1)[0].sha256 != before
    with pytest.raises(ValueError, match="has masks; canonical_labels merges them first"):
        write_manifest(tmp_path / "manifest.tsv", [case])


def test_kits_cases_without_labels_do_not_count(tmp_path: Path) -> None:
    tree(tmp_path, *(f"data/case_{i:05d}/imaging.nii.gz" for i in (0, 160, 209, 210, 299)))
    tree(tmp_path, *(f"data/case_{i:05d}/segmentation.nii.gz" for i in (0, 160, 209)))
    root, cases = of_card("kits19", tmp_path)
    assert [case.case for case in cases] == ["00000", "00160", "00209"]
    assert cases[1].label == root / "case_00160/segmentation.nii.gz"


def test_word_folders(tmp_path: Path) -> None:
    files = [("Tr", "word_0002"), ("Val", "word_0001"), ("Ts", "word_0014")]
    for part, case in files:
        for kind in ("images", "labels"):
            tree(tmp_path, f"WORD-V0.1.0/{kind}{part}/{case}.nii.gz")
    tree(tmp_path, "WORD-V0.1.0/dataset.json", "WORD-V0.1.0/imagesTr/._word_0002.nii.gz")
    tree(tmp_path, "WORD-V0.1.0/addition_validation_from_LiTS/imagesVal/word_0003.nii.gz")
    _, cases = of_card("word", tmp_path)
    assert sorted((case.part, case.case) for case in cases) == sorted(files)
    assert all(case.subject == case.case for case in cases)


def test_lits_takes_the_first_root_that_exists(tmp_path: Path) -> None:
    names = ("Training Batch 1/volume-2.nii", "Training Batch 2/volume-130.nii")
    names += tuple(name.replace("volume", "segmentation") for name in names)
    tree(tmp_path / "plain", *names)
    tree(tmp_path / "plain/media/nas/01_Datasets/CT/LITS", *names)  # the same under its author's
    tree(tmp_path / "moved", *names)
    for folder in ("plain", "moved"):
        root, cases = of_card("lits17", tmp_path / folder)
        assert (root == tmp_path / folder) == (folder == "moved")
        assert [case.case for case in cases] == ["130", "2"]
        assert cases[0].images == (root / "Training Batch 2/volume-130.nii",)
        assert cases[0].label == root / "Training Batch 2/segmentation-130.nii"


def test_m2caiseg_groups_frames_and_passes_trainval_over(tmp_path: Path) -> None:
    frames = {"train": ("00", "225", "1475"), "test": ("0", "275")}
    for part, names in {**frames, "trainval": ("0", "00", "225")}.items():
        for name in names:
            tree(tmp_path, f"m2caiSeg dataset/{part}/images/{name}.jpg")
            tree(tmp_path, f"m2caiSeg dataset/{part}/groundtruth/{name}_gt.png")
    root, cases = of_card("m2caiseg", tmp_path)
    assert {case.case: case.subject for case in cases} == {
        "0": "0", "00": "0", "225": "2", "275": "2", "1475": "14",
    }  # fmt: skip
    by_name = {case.case: case for case in cases}
    assert by_name["275"].part == "test"
    assert by_name["275"].label == root / "test/groundtruth/275_gt.png"


@pytest.mark.parametrize(
    ("name", "first", "others", "case"),
    [
        ("btcv", "RawData/Training/img/img0001.nii.gz",
         ["RawData/Training/label/label0001.nii.gz", "RawData/Testing/img/img0061.nii.gz"], "0001"),
        ("synapse_multiorgan", "Training/img/img0040.nii.gz",
         ["Training/label/label0040.nii.gz"], "0040"),
        ("flare22", "FLARE22Train/images/FLARE22_Tr_0007_0000.nii.gz",
         ["FLARE22Train/labels/FLARE22_Tr_0007.nii.gz"], "0007"),
        ("kits21", "kits21/data/case_00205/imaging.nii.gz",
         ["kits21/data/case_00205/aggregated_MAJ_seg.nii.gz"], "00205"),
        ("kits23", "dataset/case_00588/imaging.nii.gz",
         ["dataset/case_00588/segmentation.nii.gz", "dataset/kits23.json",
          "dataset/case_00588/instances/tumor_instance-1_annotation-1.nii.gz"], "00588"),
        ("amos22", "amos22/imagesVa/amos_0008.nii.gz",
         ["amos22/labelsVa/amos_0008.nii.gz", "amos22/imagesVa/amos_0507.nii.gz",
          "amos22/imagesTs/amos_0002.nii.gz", "__MACOSX/amos22/imagesTr/amos_0001.nii.gz"],
         "amos_0008"),
        ("msd_task09_spleen", "Task09_Spleen/imagesTr/spleen_2.nii.gz",
         ["Task09_Spleen/labelsTr/spleen_2.nii.gz", "Task09_Spleen/imagesTr/._spleen_2.nii.gz"],
         "spleen_2"),
    ],
)  # fmt: skip
def test_names_of_other_data_sets(
    tmp_path: Path, name: str, first: str, others: list[str], case: str
) -> None:
    tree(tmp_path, first, *others)
    if name.startswith("msd"):
        (tmp_path / first).parent.with_name("dataset.json").write_text("{}")
    _, (found,) = of_card(name, tmp_path)
    assert (found.case, found.images) == (case, (tmp_path / first,))
    assert found.label == tmp_path / others[0]


def test_another_count_than_published_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        list_files(msd(tmp_path / "d"), Layout(n_cases=3), 1)
        assert not caplog.text
        list_files(tmp_path / "d", Layout(n_cases=4), 1)
    assert "3 cases with labels, 4 were published" in caplog.text


def test_part_survives_the_manifest(tmp_path: Path) -> None:
    tree(tmp_path / "d", "Tr/a.nii", "Tr/a_seg.nii")
    cases = index(tmp_path / "d", Layout(**FILES), 1)
    assert cases[0].part == "Tr" and len(cases[0].sha256) == 64
    write_manifest(tmp_path / "manifest.tsv", cases)
    assert read_manifest(tmp_path / "manifest.tsv") == cases


def test_links_to_other_disks_are_followed(tmp_path: Path) -> None:
    tree(tmp_path / "disk", "a.nii", "a_seg.nii")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/Tr").symlink_to(tmp_path / "disk")
    assert [c.case for c in list_files(tmp_path / "d", Layout(**FILES), 1)] == ["a"]


def test_what_a_mac_leaves_behind_is_no_case(tmp_path: Path) -> None:
    tree(tmp_path, "x/a.nii", "x/._a.nii", "__MACOSX/x/b.nii", ".cache/c.nii")
    tree(tmp_path, *(f"labels/{case}.png" for case in ("a", "b", "c", "._a")))
    layout = Layout(kind="files", find=r".*/(?P<case>[^/]+)\.nii", label="labels/{case}.png")
    assert [case.case for case in list_files(tmp_path, layout, 1)] == ["a"]


FILES = {
    "kind": "files",
    "find": r"(?P<part>T\w)/(?P<case>\w)\.nii",
    "label": "{part}/{case}_seg.nii",
}


@pytest.mark.parametrize(
    ("names", "layout", "error", "message"),
    [
        (["Tr/a.nii"], {}, DataError, r"1 files are missing: Tr/a_seg\.nii; add them"),
        (["Tr/a.nii", "Tr/a_seg.nii"], {"channels": ("{part}/{case}_2.nii",)}, DataError,
         r"missing: Tr/a_2\.nii"),
        (["x/a.nii"], {}, DataError, r"no file fits the card's layout\.find"),
        (["Tr/a.nii"], {"case_pattern": "b"}, ConfigError, r"none of 1 cases \(such as 'a'\)"),
        (["Tr/a.nii", "Ts/a.nii"], {}, DataError, r"Tr/a\.nii and Ts/a\.nii are both case 'a'"),
        (["Tr/a.nii"], {"find": r"(?P<part>Tr)(?P<case>.+)\.nii"}, ConfigError, "has a slash"),
        (["Tr/a.nii"], {"roots": ("RawData", "Abdomen/RawData")}, DataError,
         "holds none of the folders 'RawData', 'Abdomen/RawData'; name the folder"),
    ],
)  # fmt: skip
def test_wrong_trees(tmp_path: Path, names: list[str], layout: dict, error, message: str) -> None:
    with pytest.raises(error, match=message):
        list_files(tree(tmp_path, *names), Layout(**{**FILES, **layout}), 1)


def test_real_data(hippocampus: Path) -> None:
    layout = Layout(case_pattern=r"hippocampus_\d{3}")
    cases = index(hippocampus, layout, 1)
    assert len({case.sha256 for case in cases}) == len(cases) == 260
