"""The command line: exit codes, messages, and what works without Snakemake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kdpipe import cli

CARD = {
    "id": "mine",
    "channels": ["CT"],
    "access": {"mode": "local", "steps": []},
    "generator": None,
    "files": [],
    "ids": {"n_labels": 2},
    "accept_checksum": False,
    "layout": {"kind": "auto", "case_pattern": ".+", "subject_pattern": "(.+)"},
}
PREPARE = {
    "dataset": "mine",
    "channels": ["CT"],
    "labels": {"raw": {"0": "background", "1": "label_1"}, "may_be_absent": "all"},
    "preset": {
        "orientation": "RAS",
        "spacing": None,
        "image_interpolation": "linear",
        "intensity": {"kind": "window", "low": 0, "high": 10},
        "crop_foreground": False,
    },
}


def write_volume(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), file)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three small cases in MSD layout."""
    folder = tmp_path / "source"
    for seed, case in enumerate("abc"):
        rng = np.random.default_rng(seed)
        label = np.zeros((8, 9, 6), np.uint8)
        label[2:6, 2:6, 2:4] = 1
        write_volume(folder / "imagesTr" / f"{case}.nii.gz", rng.random((8, 9, 6), np.float32))
        write_volume(folder / "labelsTr" / f"{case}.nii.gz", label)
    (folder / "dataset.json").write_text("{}")
    return folder


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def fetch_and_prepare(source: Path, folder: Path) -> int:
    (folder / "fetch.json").write_text(json.dumps({**CARD, "source": str(source)}))
    (folder / "prepare.json").write_text(json.dumps(PREPARE))
    manifest = folder / "manifest.tsv"
    fetched = run(
        "fetch", "--run", folder / "fetch.json", "--manifest", manifest,
        "--files", folder / "raw", "--archives", folder / "archives", "--labels", folder / "labels",
    )  # fmt: skip
    return fetched or run(
        "prepare", "--run", folder / "prepare.json", "--manifest", manifest,
        "--store", folder / "cases", "--cases", folder / "cases.tsv",
        "--fingerprint", folder / "fingerprint.json",
    )  # fmt: skip


def test_from_a_folder_to_a_split(source: Path, tmp_path: Path) -> None:
    assert fetch_and_prepare(source, tmp_path) == 0
    assert list(pd.read_csv(tmp_path / "cases.tsv", sep="\t")["case"]) == ["a", "b", "c"]
    rule = {"kind": "fixed_counts", "train": 1, "val": 1, "test": 1, "seed": 0}
    split = {"dataset": "mine", "split": "default", "fold": 0, "rule": rule}
    (tmp_path / "split.json").write_text(json.dumps(split))
    out = tmp_path / "out.json"
    paths = ("--run", tmp_path / "split.json", "--cases", tmp_path / "cases.tsv", "--out", out)
    assert run("split", *paths) == 0
    parts = json.loads(out.read_text())
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == ["a", "b", "c"]


def test_a_bad_case_ends_with_code_3_names_it_and_leaves_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = source / "imagesTr" / "b.nii.gz"
    file.write_bytes(file.read_bytes()[:-30])
    assert fetch_and_prepare(source, tmp_path) == 3
    message = capsys.readouterr().err
    assert "kdpipe prepare: error:" in message
    assert "case 'b'" in message
    assert "b.nii.gz" in message
    assert not (tmp_path / "cases.tsv").exists()
    assert not (tmp_path / "cases" / "b").exists()
    assert (tmp_path / "cases" / "a").exists(), "what is sound need not be prepared again"


def test_a_missing_pair_ends_with_code_3(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "labelsTr" / "c.nii.gz").unlink()
    assert fetch_and_prepare(source, tmp_path) == 3
    assert "c" in capsys.readouterr().err
    assert not (tmp_path / "manifest.tsv").exists()


def test_a_wrong_source_folder_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch_and_prepare(tmp_path / "nowhere", tmp_path) == 2
    assert "nowhere" in capsys.readouterr().err


def test_evaluate_scores_two_folders(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, out = tmp_path / "labels.yaml", tmp_path / "metrics.csv"
    labels.write_text("background: 0\norgan: 1\nall: [1]\n")
    folder = source / "labelsTr"
    paths = ("--reference", folder, "--prediction", folder, "--labels", labels, "--out", out)
    assert run("evaluate", *paths) == 0
    shown = capsys.readouterr().out
    assert "strict_mm, means over 3 cases:" in shown and f"every score: {out}" in shown
    assert "| organ     | 100.00 | 100.00 | 0.00 " in shown
    table = pd.read_csv(out)
    assert set(table["structure"]) == {"organ", "all"}
    assert set(table.loc[table["metric"] == "dice", "value"]) == {1.0}
    assert set(table.loc[table["metric"] == "hd95_max", "value"]) == {0.0}
    assert run("evaluate", *paths, "--protocol", "strict") == 2
    assert run("evaluate", *paths, "--protocol", "word", "--protocol", "kits") == 0
    assert list(pd.read_csv(out)["protocol"].unique()) == ["word", "kits"]
    for wrong in ("organ", "organ=x", "organ=0", "organ=nan", "orgna=2"):
        assert run("evaluate", *paths, "--tolerance", wrong) == 2
    assert "did you mean 'organ'?" in capsys.readouterr().err
    assert run("evaluate", *paths, "--tolerance", "organ=2", "--tolerance", "all=0.5") == 0
    labels.unlink()
    assert run("evaluate", *paths) == 2
    assert "No such file" in capsys.readouterr().err


def test_protocols_are_listed_with_units_and_directions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("list", "protocols", "--json") == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["strict_mm"]["metrics"]["hd95_max"] == {"unit": "mm", "direction": -1}
    assert entries["acf_bckd"]["grid"] == "prepared"
    assert entries["acf_bckd"]["paper"]
    assert not entries["strict_mm"]["paper"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--prediction", "x", "--out", "y"), "give --reference and --labels"),
        (("evaluate", "--prediction", "x", "--out", "y", "--run", "z"), "--run also needs --cell"),
        (
            ("split", "--run", "nowhere.json", "--cases", "x", "--out", "y"),
            "nowhere.json: not read",
        ),
    ],
)
def test_wrong_calls_end_with_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("what", ["methods", "nets", "datasets", "studies", "protocols"])
def test_list(
    what: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert run("list", what, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries
    assert run("list", what) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in entries]
    if what == "studies":
        assert "two teachers, the small U-Net, ten methods\n" in "\n".join(lines), (
            "a whole sentence"
        )


def test_doctor_and_help_need_no_heavy_import() -> None:
    code = (
        "import sys; from kdpipe import cli; cli.main(['doctor']);"
        "print([m for m in ('torch', 'monai', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "torch" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "kdpipe", "--help"], capture_output=True, text=True, check=True
    )
    assert "exit codes:" in done.stdout
