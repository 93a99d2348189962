"""A whole study from a folder in nnU-Net layout to its tables, with the real programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from kdpipe.data.phantoms.abdomen import generate
from kdpipe.labels import Labels
from kdpipe.nets.base import build_network
from kdpipe.protocols import get_protocol
from kdpipe.sources import CtAbdomen

CARD = """
schema_version: 1
id: ours
title: Phantoms as a hospital would have them
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0}
access: {mode: local}
labels: {raw: {0: background, 1: liver, 2: kidney, 3: spleen}, may_be_absent: all}
splits: {default: {kind: fractions, val: 0.2, test: 0.4}}
presets:
  default:
    spacing: [3.0, 3.0, 3.0]
    intensity: {kind: window, low: -175, high: 275}
    crop_foreground: true
    patch: [16, 16, 16]
  slices:
    spacing: [4.0, 4.0, null]
    intensity: {kind: window, low: -175, high: 275}
    patch: [16, 24]
"""

CONFIG = """
study: ours
cards: [cards]
data_source: {ours: nnunet_raw}
datasets: [ours]
teachers: [{unet_tiny: {channels: [8, 16, 32], strides: [2, 2]}}]
students: [{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}}]
methods: [kd]
seeds: [3]
training:
  teacher: {epochs: 4, steps_per_epoch: 5, learning_rate: 0.01, validate_every: 2}
  student: {epochs: 4, steps_per_epoch: 5, learning_rate: 0.01, validate_every: 2}
"""

#: slices, and a teacher that is trained already
SLICES = """
study: slices
cards: [cards]
data_source: {ours: nnunet_raw}
datasets: [{ours: {preset: slices}}]
teachers: [{unet_tiny: {channels: [8, 16, 32], strides: [2, 2]}, weights: teacher.pt}]
students: [{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}}]
methods: [kd]
results_root: sliced
seeds: [0]
training:
  student: {epochs: 1, steps_per_epoch: 2, validate_every: 1}
profile: {repeats: 5}
"""

#: the trial of kd cannot but diverge, that of the undistilled student changes the learning rate
BUDGET = """
study: budget
cards: [cards]
data_source: {ours: nnunet_raw}
datasets: [ours]
teachers: [{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}}]
students: [{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}}]
methods: [kd]
results_root: tuned
seeds: [3]
budget: 2
search: {weight: [1.0e+40, 1.0e+41]}
training:
  teacher: {epochs: 1, steps_per_epoch: 2, validate_every: 1}
  student: {epochs: 1, steps_per_epoch: 2, validate_every: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a card, a configuration and five cases in nnU-Net layout."""
    folder: Path = tmp_path_factory.mktemp("study")
    (folder / "cards").mkdir()
    (folder / "cards" / "ours.yaml").write_text(CARD)
    (folder / "config.yaml").write_text(CONFIG)
    raw = folder / "nnunet_raw"
    labels = Labels(raw={0: "background", 1: "liver", 2: "kidney", 3: "spleen"})
    generate(raw, CtAbdomen(n_cases=5), labels)
    for file in (raw / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    (raw / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}')
    return folder


def snakemake(
    folder: Path, root: Path, *arguments: str, config: str = "config.yaml"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--configfile", str(folder / config), "--directory", str(folder)]
    return subprocess.run(
        [*command, "--cores", "2", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_study_of_ones_own_data(folder: Path, root: Path) -> None:
    done = snakemake(folder, root)
    assert done.returncode == 0, done.stdout + done.stderr
    results = folder / "results"

    table = pd.read_csv(results / "tables" / "ours" / "results.csv", keep_default_na=False)
    assert set(table["method"]) == {"", "none", "kd"}
    assert set(table["structure"]) == {"liver", "kidney", "spleen", "mean"}
    for protocol in ("strict_mm", "boundary_bands"):
        scored = set(table.loc[table["protocol"] == protocol, "metric"])
        assert scored == {metric.name for metric in get_protocol(protocol).metrics}
    assert (table["parameters"].astype(int) > 0).all()

    (split,) = results.glob("ours/*/*/split.json")
    tests = set(json.loads(split.read_text())["test"])
    assert len(tests) == 2
    for predictions in results.glob("ours/default/fold0/**/predictions"):
        files = {file.name.removesuffix(".nii.gz"): file for file in predictions.glob("*.nii.gz")}
        assert files.keys() == tests
        for case, file in files.items():
            image = nib.load(folder / "nnunet_raw" / "imagesTr" / f"{case}_0000.nii.gz")
            found = nib.load(file)
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)

    again = snakemake(folder, root, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    assert "split default: the number of test cases is not known" in done.stderr  # a local folder
    assert "split default: 2 test cases, 1 seed, 1 comparison" in again.stderr
    assert "Trainings: 1 teacher" in done.stderr and "TFLOP/s" in done.stderr


@pytest.mark.slow
def test_what_a_study_leaves_for_its_readers(folder: Path, root: Path) -> None:
    """After the test above: one report, a claim that holds, and Snakemake's own report."""
    results = folder / "results"
    page = (results / "reports" / "ours.html").read_text()
    assert "cannot tell" in page and "no comparison can be significant" in page
    claim = results / "tables" / "ours" / "claim.json"
    assert re.search(r"[Vv]erified: [\d,]+ numbers", verify(claim).stdout)

    text = claim.read_text()
    found = json.loads(text)
    found["comparisons"][0]["difference"] += 0.01
    claim.write_text(json.dumps(found))
    changed = verify(claim)
    claim.write_text(text)
    assert changed.returncode == 3 and "difference" in changed.stderr

    made = snakemake(folder, root, "--report", "own_report.zip")
    assert made.returncode == 0, made.stdout + made.stderr
    names = zipfile.ZipFile(folder / "own_report.zip").namelist()
    assert any(name.endswith("comparisons.md") for name in names)
    assert any(name.endswith(".svg") for name in names)


def verify(claim: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdpipe", "verify", str(claim)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_damaged_image_stops_the_study_and_is_named(folder: Path, root: Path) -> None:
    copy = folder.with_name("damaged")
    made = shutil.ignore_patterns("results", "data", "logs", ".snakemake")
    shutil.copytree(folder, copy, ignore=made)
    file = copy / "nnunet_raw" / "imagesTr" / "phantom_002_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-100])
    done = snakemake(copy, root, "data")
    assert done.returncode != 0
    log = (copy / "logs" / "prepare" / "ours" / "default.log").read_text()
    assert "case 'phantom_002'" in log
    assert "damaged" in log
    assert not (copy / "data" / "prepared" / "ours" / "default" / "cases.tsv").exists()


def write_teacher(file: Path, seed: int) -> None:
    """Write weights as another program leaves them, with an older date than all results."""
    torch.manual_seed(seed)
    network = build_network("unet_tiny", {"channels": [8, 16, 32], "strides": [2, 2]}, 1, 4, 2)
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 100}, file)
    os.utime(file, (seed + 1, seed + 1))


@pytest.mark.soak
def test_slices_and_a_teacher_that_is_trained_already(folder: Path, root: Path) -> None:
    (folder / "slices.yaml").write_text(SLICES)
    write_teacher(folder / "teacher.pt", 0)
    cells = "sliced/ours/default/fold0"
    student = f"{cells}/students/unet_tiny/unet_tiny/kd/seed0"
    done = snakemake(folder, root, f"{student}/metrics.csv", config="slices.yaml")
    assert done.returncode == 0, done.stdout + done.stderr

    teacher = folder / cells / "teachers" / "unet_tiny" / "seed0"
    (history,) = pd.read_csv(teacher / "train.csv").to_dict("records")
    found = json.loads((teacher / "model.json").read_text())
    assert history["validation_dice"] == found["validation_dice"]
    scores = pd.read_csv(folder / student / "metrics.csv")
    assert set(scores["structure"]) == {"liver", "kidney", "spleen"}
    predictions = sorted((folder / student / "predictions").glob("*.nii.gz"))
    assert len(predictions) == 2
    for file in predictions:
        case = file.name.replace(".nii.gz", "_0000.nii.gz")
        assert nib.load(file).shape == nib.load(folder / "nnunet_raw" / "imagesTr" / case).shape

    write_teacher(folder / "teacher.pt", 1)
    again = snakemake(folder, root, f"{student}/metrics.csv", "--dry-run", config="slices.yaml")
    planned = re.findall(r"^(?:local)?rule (\w+):", again.stdout + again.stderr, re.M)
    assert sorted(planned) == ["distill", "evaluate", "predict", "train_teacher"]


@pytest.mark.soak
def test_an_equal_budget_and_a_trial_that_diverges(folder: Path, root: Path) -> None:
    (folder / "budget.yaml").write_text(BUDGET)
    students = "tuned/ours/default/fold0/students"
    none, kd = f"{students}/no_teacher/unet_tiny/none", f"{students}/unet_tiny/unet_tiny/kd"
    scores = [f"{arm}+tuned/seed3/metrics.csv" for arm in (none, kd)]
    done = snakemake(folder, root, *scores, config="budget.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    methods = [set(pd.read_csv(folder / file)["method"]) for file in scores]
    assert methods == [{"none+tuned"}, {"kd+tuned"}]

    def facts(arm: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / arm / "seed3" / "model.json").read_text())
        return found

    lost = facts(f"{kd}+trial1")
    assert lost["validation_dice"] is None and "not finite" in lost["diverged"]
    tuned, default = facts(f"{kd}+tuned"), facts(kd)  # nothing was better than kd as configured
    assert tuned["weights_sha256"] == default["weights_sha256"]
    assert tuned["same_training_as"] == "kd"

    choice = json.loads((folder / f"{none}+tuned" / "choice.json").read_text())
    dice = [trial["validation_dice"] for trial in choice["trials"]]
    assert choice["chosen"]["trial"] == dice.index(max(dice))
    names = ("trial", "learning_rate")
    assert facts(f"{none}+tuned")["tuning"] == {name: choice["chosen"][name] for name in names}
    assert facts(f"{none}+tuned")["validation_dice"] == max(dice)
    assert not list((folder / students).glob("**/*+trial1/seed3/predictions"))

    again = snakemake(folder, root, *scores, "--dry-run", config="budget.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_an_unknown_method_stops_before_the_graph_with_code_2(folder: Path, root: Path) -> None:
    done = snakemake(folder, root, "--dry-run", "--config", "methods=['acf_bkcd']")
    assert done.returncode == 2
    assert "unknown method 'acf_bkcd': did you mean 'acf_bckd'?" in done.stderr
