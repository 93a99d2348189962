"""A copy of the checkout in which a study was run to its end, and what a dry run plans there.

The graph is the real one. Only the command line is replaced by one that writes its outputs and
nothing else, so that a finished study costs seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FAKE_CLI = '''
"""Writes what a stage would write, without doing it."""
import json
import sys
from pathlib import Path

OUTPUTS = {
    "fetch": ("--manifest",), "prepare": ("--cases", "--fingerprint"), "split": ("--out",),
    "train": ("--model",), "distill": ("--model",), "predict": ("--out",), "evaluate": ("--out",),
    "profile": ("--out",), "tables": ("--out",), "compare": ("--tables",),
    "figures": ("--out",), "overlays": ("--out",), "report": ("--out",), "plan": (),
    "choose": ("--out",),
}


def main():
    stage, *rest = sys.argv[1:]
    if stage == "train-cohort":
        for ticket in json.load(sys.stdin):
            Path(ticket).parent.mkdir(parents=True, exist_ok=True)
            Path(ticket).write_text("trained")
        return 0
    given = {flag: value for flag, value in zip(rest, rest[1:]) if flag.startswith("--")}
    for flag in OUTPUTS[stage]:
        path = Path(given[flag])
        if stage in ("predict", "figures", "overlays"):
            path = path / "inside"
        names = {"train": ("model.pt", "model.json", "train.csv"),
                 "tables": ("scores.csv", "results.csv", "wide.csv", "results.md", "results.tex"),
                 "compare": ("comparisons.csv", "ranks.csv", "power.csv", "references.csv",
                             "comparisons.md", "comparisons.tex", "claim.json")}
        names = names.get("train" if stage == "distill" else stage)
        folder = path.parent if stage in ("train", "distill") else path
        for file in [folder / name for name in names] if names else [path]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{stage} {file}")
    return 0
'''

CARD = """
schema_version: 1
id: mine
title: A local data set
modality: CT
channels: [CT]
licence: {spdx: CC0-1.0}
access: {mode: local}
labels: {raw: {0: background, 1: liver, 2: spleen}}
splits: {default: {kind: fractions, val: 0.2, test: 0.3}}
presets:
  default: {intensity: {kind: window, low: -100, high: 200}, patch: [16, 16, 16]}
"""


class Checkout:
    """A copy of the workflow, in which a study was run to its end."""

    def __init__(self, folder: Path, root: Path, config: str):
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "kdpipe", folder / "kdpipe", ignore=ignore)
        for part in ("workflow", "envs"):
            shutil.copytree(root / part, folder / part)
        shutil.copy(root / "Snakefile", folder)
        (folder / "profiles").symlink_to("workflow/profiles")
        self.write("kdpipe/cli.py", FAKE_CLI)
        self.write("config.yaml", config)
        self.write("models/best.pt", "weights")
        self.write("cards/mine.yaml", CARD)
        self.write("source/dataset.json", "{}")
        for case in "ab":
            for part in ("imagesTr", "labelsTr"):
                self.write(f"source/{part}/{case}.nii.gz", case)
        self.write("source/imagesTr/large.nii.gz", "x" * 1_500_000)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text, f"{name} no longer holds {old!r}"
        self.write(name, text.replace(old, new))

    def snakemake(self, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def planned(self, *targets: str) -> set[str]:
        """Rule and cell of every job that a dry run plans, such as ``distill kd/seed0``."""
        text = self.snakemake("--dry-run", *targets)
        jobs = re.findall(
            r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    output: ([^,\n]+)", text, re.M
        )
        return {
            _short(rule, output) for rule, output in jobs if rule != "all" and rule not in targets
        }

    def planned_after(self, change: Callable[[Checkout], None], *targets: str) -> set[str]:
        """What is planned after an edit, which is taken back."""
        before = {
            file: (file.read_bytes(), file.stat())
            for part in ("kdpipe", "cards", "source", "models", "config.yaml")
            for file in [self.folder / part, *(self.folder / part).rglob("*")]
            if file.is_file()
        }
        change(self)
        try:
            return self.planned(*targets)
        finally:
            for file, (content, stat) in before.items():
                file.write_bytes(content)
                os.utime(file, (stat.st_atime, stat.st_mtime))
            (self.folder / "kdpipe/methods/mine.py").unlink(missing_ok=True)


def _short(rule: str, output: str) -> str:
    cell = re.search(r"/(teachers|students)/(.+)/(seed\d+)/", output.rsplit("/", 1)[0] + "/")
    if rule == "profile":
        return f"profile {Path(output).parent.name}"
    arm = re.search(r"/([^/]+\+tuned)/[^/]+$", output)
    if cell is None and arm:
        return f"{rule} {arm[1]}"
    if cell is None:
        return rule if rule != "configure" else f"configure {Path(output).parent.name}"
    return f"{rule} {cell[2].rsplit('/', 1)[-1]}/{cell[3]}"
