"""A toy data set with a trained network: all stages up to ``model.pt``, in seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.cli import main
from kdpipe.config import read_study
from kdpipe.plan import Plan
from kdpipe.runs import run_files

LABELS = {0: "background", 1: "liver", 2: "kidney", 3: "spleen"}
_CARD = f"""
schema_version: 1
id: toy
title: Small phantoms
modality: CT
channels: [CT]
licence: {{spdx: CC0-1.0}}
access: {{mode: generate}}
generator:
  {{kind: ct_abdomen, n_cases: 6, shape_min: [40, 40, 20], shape_max: [44, 44, 24]}}
labels: {{raw: {json.dumps(LABELS)}, may_be_absent: all}}
splits: {{default: {{kind: fixed_counts, train: 3, val: 2, test: 1}}}}
presets:
  default:
    spacing: [3.0, 3.0, 3.0]
    intensity: {{kind: window, low: -175, high: 275}}
    patch: [16, 16, 16]
"""
_CONFIG = """
study: toy
cards: [cards]
datasets: [toy]
teachers: [{unet_tiny: {channels: [4, 8, 8], strides: [2, 2]}}]
students: [{unet_tiny: {channels: [4, 8, 8], strides: [2, 2]}}]
methods: [none]
seeds: [0]
training:
  student:
    epochs: 1
    steps_per_epoch: 150
    validate_every: 1
    learning_rate: 0.02
    foreground_crops: 1.0
    augmentation: {flip_probability: 0, affine_probability: 0, intensity_probability: 0}
"""


@dataclass(frozen=True)
class Toy:
    """A folder with a toy study up to its student.

    Attributes:
        folder: of all that follows, laid out as a study is.
        model: ``model.pt`` of the student, which knows the background and at least one structure.
        prepared: with ``cases``, the prepared store, and ``run.json``.
        split: ``split.json``: three cases to train with, two to validate, one to test.
        manifest: ``manifest.tsv`` of the raw files.
        files: folder of the raw files, ``imagesTr/<case>.nii.gz`` and ``labelsTr/<case>.nii.gz``.
    """

    folder: Path
    model: Path
    prepared: Path
    split: Path
    manifest: Path
    files: Path

    @property
    def cases(self) -> dict[str, list[str]]:
        """Part of the split -> ids of its cases."""
        split: dict[str, Any] = json.loads(self.split.read_text())
        return {part: split[part] for part in ("train", "val", "test")}


def build_toy(folder: Path) -> Toy:
    """Generate, prepare, split and train below `folder`, which is made."""
    (folder / "cards").mkdir(parents=True)
    (folder / "cards" / "toy.yaml").write_text(_CARD)
    (folder / "config.yaml").write_text(_CONFIG)
    raw, prepared = "data/raw/toy", "data/prepared/toy/default"
    split = "results/toy/default/fold0/split.json"
    with _within(folder):
        plan = Plan(read_study("config.yaml"))
        for path, run in run_files(plan).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(run))
        cell = next(name for name, cell in plan.cells.items() if cell.student)
        for command in (
            f"fetch --run {raw}/run.json --files {raw}/files --archives data/archives/toy"
            f" --labels {raw}/labels --manifest {raw}/manifest.tsv",
            f"prepare --run {prepared}/run.json --manifest {raw}/manifest.tsv"
            f" --store {prepared}/cases --cases {prepared}/cases.tsv"
            f" --fingerprint {prepared}/fingerprint.json --names {prepared}/names/run.json"
            f" --integrity {prepared}/integrity.json --report {prepared}/report.html --workers 1",
            f"split --run results/toy/default/fold0/run.json --cases {prepared}/cases.tsv"
            f" --integrity {prepared}/integrity.json --out {split}",
            f"distill --run {cell}/run.json --prepared {prepared} --split {split}"
            f" --state {cell}/checkpoint --model {cell}/model.pt",
        ):
            assert main(command.split()) == 0, command
    return Toy(
        folder,
        folder / cell / "model.pt",
        folder / prepared,
        folder / split,
        folder / raw / "manifest.tsv",
        folder / raw / "files",
    )


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
