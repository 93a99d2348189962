"""From archives on a mirror to prepared cases: what `fetch` does without the user's own folder."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.cards import Card, load_card
from kdpipe.data.acquisition.fetch import fetch
from kdpipe.data.checks.integrity import read_case
from kdpipe.data.manifest import Case, read_manifest
from kdpipe.errors import DataError


def run_of(card: Card, **changes: Any) -> dict[str, Any]:
    """A run.json as `kdpipe.runs` makes it for a data set without a folder of the user."""
    run = card.model_dump(mode="json", include={"id", "channels", "access", "generator", "layout"})
    labels = card.labels
    ids = labels.model_dump(mode="json", include={"remap", "unlisted", "palette"})
    return (
        run
        | {
            "files": [f.model_dump(mode="json") for entry in card.files for f in entry.expanded()],
            "ids": {"n_labels": len(labels.raw), **ids},
            "structures": labels.structures,
            "accept_checksum": True,  # the archives are made here
            "source": None,
        }
        | changes
    )


def fetched(run: dict[str, Any], tmp_path: Path) -> list[Case]:
    manifest = tmp_path / "manifest.tsv"
    archives = tmp_path / "archives" / run["id"]
    fetch(run, tmp_path / "raw" / "files", archives, tmp_path / "raw" / "labels", manifest)
    return read_manifest(manifest)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("KDPIPE_MIRROR", str(folder))
    return folder


def write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def btcv_tree(folder: Path, cases: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for number in range(1, cases + 1):
        part = folder / "RawData" / "Training"
        label = np.zeros((6, 8, 8), np.uint8)
        label[1:4], label[4:] = 6, 13  # BTCV's liver and left adrenal gland
        write(part / "img" / f"img{number:04d}.nii.gz", rng.random((6, 8, 8), np.float32))
        write(part / "label" / f"label{number:04d}.nii.gz", label)
    return folder


def test_a_zip_on_a_mirror_becomes_cases_with_other_labels(tmp_path: Path, mirror: Path) -> None:
    tree = btcv_tree(tmp_path / "tree")
    with zipfile.ZipFile(mirror / "RawData.zip", "w") as archive:
        for file in sorted(tree.rglob("*.nii.gz")):
            archive.write(file, file.relative_to(tree))
    synapse, btcv = load_card("synapse_multiorgan"), load_card("btcv")
    run = run_of(synapse, files=[file.model_dump(mode="json") for file in btcv.files])
    cases = fetched(run, tmp_path)
    assert [case.case for case in cases] == ["0001", "0002", "0003"]
    images, label = read_case(cases[0])
    assert images[0].GetSize() == (8, 8, 6)
    found = set(np.unique(sitk.GetArrayFromImage(label)).tolist())
    assert found == {0, 5}  # the liver's id in TransUNet's order; what it does not list is gone
    before = (tmp_path / "manifest.tsv").read_bytes()
    (mirror / "RawData.zip").unlink()  # all that is needed is here
    (tmp_path / "manifest.tsv").unlink()
    fetched(run, tmp_path)
    assert (tmp_path / "manifest.tsv").read_bytes() == before


def test_a_file_for_each_case_is_not_unpacked(tmp_path: Path, mirror: Path) -> None:
    card = load_card("kits19")
    run = run_of(card)
    wanted = {"data/case_00000/imaging.nii.gz", "data/case_00000/segmentation.nii.gz"}
    run["files"] = [file for file in run["files"] if file["name"] in wanted]
    for name in wanted:
        kind = np.uint8 if "segmentation" in name else np.float32
        write(mirror / "kits19" / name, np.eye(9, dtype=kind)[None].repeat(4, 0))
    (case,) = fetched(run, tmp_path)
    assert case.case == "00000"
    assert case.images[0] == tmp_path / "archives" / "kits19" / "data/case_00000/imaging.nii.gz"


def test_two_archives_are_one_data_set(tmp_path: Path, mirror: Path) -> None:
    for batch, cases in ((1, (0, 1)), (2, (28, 29))):
        with zipfile.ZipFile(mirror / f"Training_Batch{batch}.zip", "w") as archive:
            for case in cases:
                for kind, dtype in (("volume", np.float32), ("segmentation", np.uint8)):
                    file = tmp_path / f"{kind}-{case}.nii"
                    write(file, np.eye(9, dtype=dtype)[None].repeat(4, 0))
                    folder = f"media/nas/01_Datasets/CT/LITS/Training Batch {batch}"
                    archive.write(file, f"{folder}/{file.name}")
    run = run_of(load_card("lits17"))
    assert sorted(case.case for case in fetched(run, tmp_path)) == ["0", "1", "28", "29"]
    first = sorted((tmp_path / "raw").rglob("*"))
    fetched(run, tmp_path)
    assert sorted((tmp_path / "raw").rglob("*")) == first


def test_what_cannot_be_had_says_where_to_put_it(tmp_path: Path, mirror: Path) -> None:
    run = run_of(load_card("btcv"))
    with pytest.raises(DataError, match="RawData.zip: no source gave the file") as caught:
        fetched(run, tmp_path)
    assert f"put it here: {tmp_path}/archives/btcv/RawData.zip" in str(caught.value)
    assert not (tmp_path / "manifest.tsv").exists()


@pytest.mark.parametrize("name", ["msd_task04_hippocampus", "chaos_mr_t2"])
def test_real_data_come_from_a_mirror_of_archives(
    name: str, tmp_path: Path, mirror: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue("hippocampus" if "hippo" in name else "chaos")
    archive = {
        "name": f"{name}.tar",
        "urls": [],
        "checksum_status": "record_on_first_use",
        "unpack": {"format": "tar"},
    }
    with tarfile.open(mirror / f"{name}.tar", "w") as tar:
        tar.add(folder, arcname=folder.name)
    run = run_of(load_card(name), files=[archive])
    run["layout"]["roots"] = [folder.name]
    cases = fetched(run, tmp_path)
    assert len(cases) == len(list((folder / "labelsTr").glob("*.nii.gz")))
    assert all(case.images[0].is_relative_to(tmp_path / "raw" / "files") for case in cases)
