"""The study that is sent to the cluster, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LAB = HERE / "lab.sh"
STEPS, EPOCHS = 25, 4
TEACHERS = ["teachers/large/seed0", "teachers/small/seed0"]
BASELINES = [f"students/no_teacher/student/none/seed{seed}" for seed in range(4)]
TAUGHT = [
    f"students/{teacher}/student/kd/seed{seed}"
    for teacher in ("large", "small")
    for seed in range(4)
]
STARVED = BASELINES[1]  # given too little memory at first
ORPHAN = TAUGHT[0]  # trained while Snakemake is killed
CELLS = "results/tiny/default/fold0/"

CARD = """
schema_version: 1
id: tiny
title: A few small phantoms
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0, redistribute: true}
access: {mode: generate}
generator: {kind: ct_abdomen, n_cases: 6, seed: 0}
labels:
  raw: {0: background, 1: liver, 2: kidney, 3: spleen, 4: duct, 5: tumour}
  may_be_absent: all
splits:
  default: {kind: fixed_counts, train: 3, val: 1, test: 2, seed: 0}
presets:
  default:
    spacing: [5.0, 5.0, 5.0]
    intensity: {kind: window, low: -175, high: 275}
    crop_foreground: true
    patch: [16, 16, 16]
"""

_RECIPE = f"{{epochs: {EPOCHS}, steps_per_epoch: {STEPS}, batch_size: 2, validate_every: 2}}"
CONFIG = f"""
study: lab
cards: [cards]
datasets: [tiny]
teachers:
  - {{unet_tiny: {{channels: [8, 16, 32], strides: [2, 2]}}, as: large}}
  - {{unet_tiny: {{channels: [6, 12, 24], strides: [2, 2]}}, as: small}}
students: [{{unet_tiny: {{channels: [4, 8, 16], strides: [2, 2]}}, as: student}}]
methods: [none, kd]
seeds: [0, 1, 2, 3]
training: {{teacher: {_RECIPE}, student: {_RECIPE}}}
evaluation: {{bands: false}}
statistics: {{resamples: 500}}
resources:
  prepare: {{threads: 1}}
  train: {{gpu: 1, threads: 1, mem_mb: 3000, runtime: 30, retries: 3, checkpoint_seconds: 0}}
  predict: {{gpu: 1, threads: 1, mem_mb: 3000}}
  profile: {{gpu: 1, mem_mb: 3000}}
"""

SITE = """
account: kd
latency_wait: 20
partitions:
  cpu: {max_runtime: 1440}
  gpu: {max_runtime: 1440, max_gpu: 2}
"""


class Folder:
    """A copy of the checkout with the study; edits of the original do not reach it."""

    def __init__(self, folder: Path, root: Path):
        self.path = folder
        ignore = shutil.ignore_patterns("__pycache__")
        for part in ("kdpipe", "workflow", "envs"):
            shutil.copytree(root / part, folder / part, ignore=ignore)
        shutil.copy(root / "Snakefile", folder)
        (folder / "profiles").symlink_to("workflow/profiles")
        for name, text in (("cards/tiny.yaml", CARD), ("config.yaml", CONFIG), ("site", SITE)):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        self.faults = folder / "faults"
        for client in ("sbatch", "squeue", "sacct"):
            (self.faults / client).mkdir(parents=True)
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / client).symlink_to(HERE / "client.sh")

    def cell(self, name: str, file: str) -> Path:
        return self.path / CELLS / name / file

    def log_of(self, cell: str) -> str:
        return (self.path / f"logs/train/{CELLS}{cell}.log").read_text()

    def let_fail(self, client: str, calls: int) -> None:
        for number in range(calls):
            (self.faults / client / str(number)).mkdir()

    def let_work(self, client: str) -> None:
        for token in (self.faults / client).iterdir():
            token.rmdir()

    def still_to_fail(self, client: str) -> int:
        return len(list((self.faults / client).iterdir()))

    def snakemake(self, log: str, *arguments: str, slurm: bool = True) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "KDPIPE_SITE": str(self.path / "site"),
            "KDPIPE_FAULTS": str(self.faults),
        }
        command = [sys.executable, "-m", "snakemake", *arguments]
        if slurm:
            environment["PATH"] = f"{self.path / 'bin'}:{environment['PATH']}"
            command += ["--workflow-profile", "workflow/profiles/slurm"]
            # a cluster is not to be asked so often
            command += ["--slurm-init-seconds-before-status-checks", "2"]
            command += ["--max-status-checks-per-second", "2"]
            starved = f"700 * attempt if '{STARVED}' in wildcards.cell else 3000"
            command += ["--set-resources", f"distill:mem_mb={starved}"]
        with (self.path / log).open("wb") as stream:
            return subprocess.Popen(
                command,
                cwd=self.path,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
