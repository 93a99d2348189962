"""A student distilled on real MR scans: each form gives the study's own scores from raw files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdpipe.data.splits.split import read_split

pytestmark = pytest.mark.soak

STUDY = """
study: shipped
datasets: [msd_task04_hippocampus]
data_source: {{msd_task04_hippocampus: {source}}}
teachers: [{{segresnet: {{init_filters: 8}}}}]
students: [{{unet_tiny: {{channels: [8, 16, 32], strides: [2, 2]}}}}]
methods: [kd]
seeds: [0]
training:
  teacher: {{epochs: 4, steps_per_epoch: 40, learning_rate: 0.002, validate_every: 4}}
  student: {{epochs: 4, steps_per_epoch: 40, learning_rate: 0.004, validate_every: 4}}
"""
FOLD = "results/msd_task04_hippocampus/default/fold0"
CELL = f"{FOLD}/students/segresnet/unet_tiny/kd/seed0"
PREPARED = "data/prepared/msd_task04_hippocampus/default"
CASES = 12
KEYS = ["case", "structure", "metric", "protocol"]


def run(folder: Path, root: Path, *command: str, python_path: bool = True) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python_path:
        environment["PYTHONPATH"] = str(root)
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, root: Path, hippocampus: Path) -> Path:
    """A folder with a study that was run, an export, and raw files of the test cases."""
    folder = tmp_path_factory.mktemp("shipped")
    for part in ("Snakefile", "workflow", "envs", "config.yaml"):
        (folder / part).symlink_to(root / part)
    (folder / "study.yaml").write_text(STUDY.format(source=hippocampus))
    run(
        folder, root, "snakemake", "--cores", "2", f"{CELL}/metrics.csv",
        f"{FOLD}/ship/shipped/MODEL_CARD.md", "--configfile", "study.yaml",
    )  # fmt: skip
    run(
        folder, root, "kdpipe", "export", "--model", f"{CELL}/model.pt", "--prepared", PREPARED,
        "--split", f"{FOLD}/split.json", "--out", "export",
    )  # fmt: skip
    for name, part in (("scans", "imagesTr"), ("references", "labelsTr")):
        (folder / name).mkdir()
        for case in read_split(folder / FOLD / "split.json")["test"][:CASES]:
            (folder / name / f"{case}.nii.gz").symlink_to(hippocampus / part / f"{case}.nii.gz")
    (folder / "labels.yaml").write_text("anterior: 1\nposterior: 2\n")
    return folder


def scores_of(predictions: str, study: Path, root: Path) -> pd.DataFrame:
    """The study's scores beside those of other label maps, a row each."""
    run(
        study, root, "kdpipe", "evaluate", "--reference", "references", "--prediction", predictions,
        "--labels", "labels.yaml", "--out", f"{predictions}.csv",
    )  # fmt: skip
    study_own = pd.read_csv(study / CELL / "metrics.csv")
    raw = pd.read_csv(study / f"{predictions}.csv")
    both = study_own.merge(raw, on=KEYS, suffixes=("", "_raw"), validate="1:1")
    assert len(both) == len(raw) > 0
    assert both["case"].nunique() == CASES
    return both


@pytest.mark.parametrize(
    "file", ["", "model.pt", "model.onnx", "model.ts", "model.pt2", "bundle", "model.int8.onnx"]
)
def test_raw_scans_get_the_scores_of_the_table(study: Path, root: Path, file: str) -> None:
    out = f"of_{file or 'folder'}"
    run(study, root, "kdpipe", "predict", "--model", f"export/{file}", "--out", out, "scans")
    both = scores_of(out, study, root)
    if "int8" in file:
        dice = both[both["metric"] == "dice"]
        assert abs(dice["value"] - dice["value_raw"]).mean() < 0.02
    else:  # what tables print: two digits of per cent and mm
        assert abs(both["value"] - both["value_raw"]).max() < 1e-4


def test_monai_runs_the_bundle_to_the_scores_of_the_table(study: Path, root: Path) -> None:
    run(
        study / "export/bundle", root, "monai.bundle", "run",
        "--config_file", "configs/inference.json", "--bundle_root", ".",
        "--dataset_dir", str(study / "scans"), "--output_dir", str(study / "of_monai"),
        python_path=False,
    )  # fmt: skip
    both = scores_of("of_monai", study, root)
    assert abs(both["value"] - both["value_raw"]).max() < 1e-4
