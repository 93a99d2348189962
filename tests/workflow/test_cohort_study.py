"""A real study with cohorts: the same weights as without, and an edit trains one member."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
study: tiny
cards: [cards]
datasets: [few]
teachers: [{unet_tiny: {channels: [8, 16, 32], strides: [2, 2]}}]
students: [{unet_tiny: {channels: [4, 8, 16], strides: [2, 2]}}]
methods: [none, kd, cwd]
seeds: [0]
resources: {train: {retries: 0}}
training:
  teacher: {epochs: 1, steps_per_epoch: 2, batch_size: 2}
  student: {epochs: 2, steps_per_epoch: 2, batch_size: 2, gradient_clip: null, learning_rate: 0.01}
"""


class Study:
    """A copy of the workflow with a small data set of phantoms."""

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        shutil.copytree(root / "kdpipe", folder / "kdpipe")
        for part in ("workflow", "envs"):
            shutil.copytree(root / part, folder / part)
        shutil.copy(root / "Snakefile", folder)
        (folder / "config.yaml").write_text(CONFIG)
        card = (root / "kdpipe/data/cards/phantom_ct.yaml").read_text()
        card = re.sub(r"n_cases: \d+", "n_cases: 5", card).replace("id: phantom_ct", "id: few")
        card = card.replace("train: 14, val: 4, test: 6", "train: 3, val: 1, test: 1")
        card = re.sub(r"patch: \[.*?\]", "patch: [16, 16, 16]", card)
        (folder / "cards").mkdir()
        (folder / "cards/few.yaml").write_text(card)

    def run(self, results: str, cohort: bool, more: str = "") -> str:
        """Train all students; return what Snakemake said, whether or not all jobs succeeded."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going"]
        command += ["--config", f"results_root={results}", f"cohort={cohort}"]
        command += [f"methods=[none, kd, cwd{more}]"]
        done = subprocess.run(
            [*command, "--", "students"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def facts(self, results: str) -> dict[str, dict[str, str]]:
        """What each student's model.json says, by method."""
        files = (self.folder / results).rglob("students/*/unet_tiny/*/seed0/model.json")
        return {file.parts[-3]: json.loads(file.read_text()) for file in files}

    def weights(self, results: str) -> dict[str, str]:
        return {name: facts["weights_sha256"] for name, facts in self.facts(results).items()}

    def logs(self, results: str, name: str) -> str:
        folder = self.folder / "logs/train" / results
        return "".join(file.read_text() for file in sorted(folder.rglob(f"{name}*.log")))


@pytest.mark.soak
def test_weights_are_those_of_a_study_without_cohorts(tmp_path: Path, root: Path) -> None:
    study = Study(tmp_path / "study", root)
    said = study.run("together", cohort=True, more=", {kd: {weight: 1.0e+38}, as: wild}")
    together = study.facts("together")
    assert together.keys() == {"none", "kd", "cwd"}, said
    assert [together[name].get("cohort") for name in ("none", "kd", "cwd")] == [None, 3, 3]
    cohort = study.logs("together", "few/default/fold0/cohorts/unet_tiny/unet_tiny/seed0/0")
    assert "3 of 3 members are to be trained" in cohort
    assert "wild/seed0 drops out: the loss is not finite" in cohort
    assert "the loss is not finite" in study.logs("together", "**/wild/seed0")

    study.run("alone", cohort=False)
    assert study.weights("alone") == study.weights("together")

    method = study.folder / "kdpipe/methods/cwd.py"
    method.write_text(method.read_text().replace("dim=2).mean()", "dim=2).sum()"))
    before = {file: file.stat().st_mtime_ns for file in study.folder.rglob("together/**/model.pt")}
    study.run("together", cohort=True)
    edited = study.weights("together")
    changed = {
        name for name, weights in edited.items() if weights != together[name]["weights_sha256"]
    }
    assert changed == {"cwd"}
    cohort = study.logs("together", "few/default/fold0/cohorts/unet_tiny/unet_tiny/seed0/0")
    assert "1 of 2 members are to be trained" in cohort
    rewritten = {str(f) for f, date in before.items() if f.stat().st_mtime_ns != date}
    assert all("/cwd/" in file for file in rewritten) and len(rewritten) == 2
