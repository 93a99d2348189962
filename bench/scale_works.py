"""The works of `bench/scale.py`: each stage of kdpipe on generated data, at four sizes."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scale_study import STRUCTURES, of_study

Work = Callable[[], object]
SIDE = 224  # voxels, of a slice


@dataclass(frozen=True)
class Series:
    """One line of the table.

    Attributes:
        stage: of the pipeline.
        grows: what there is more of.
        sizes: four, the largest at least eight times the smallest (in `amount`).
        make: (an empty folder, a size) -> the work.
        amount: how much a size is, in the unit of `grows`.
    """

    stage: str
    grows: str
    sizes: tuple[int, int, int, int]
    make: Callable[[Path, int], Work]
    amount: Callable[[int], int] = int


# images and label maps


def blobs(planes: int, count: int, seed: int, side: int = SIDE) -> np.ndarray:
    """A label map ``(planes, side, side)`` of `count` ellipsoids side by side, in any volume."""
    columns = int(np.ceil(np.sqrt(count)))
    rng, cell = np.random.default_rng(seed), side / columns
    z, y, x = np.ogrid[:planes, :side, :side]
    label = np.zeros((planes, side, side), np.uint8)
    for index in range(count):
        row, column = divmod(index, columns)
        at = np.array([planes / 2, (row + 0.5) * cell, (column + 0.5) * cell])
        at += rng.uniform(-1.5, 1.5, 3)
        radii = np.array([planes, cell, cell]) * 0.33
        axes = zip((z, y, x), at, radii, strict=True)
        label[sum(((axis - c) / r) ** 2 for axis, c, r in axes) < 1] = index + 1
    return label


def _write(array: np.ndarray, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 1.5, 2.0))
    sitk.WriteImage(image, str(file))
    return file


def _labels(count: int) -> Any:
    from kdpipe.labels import Labels

    names = {0: "background"} | {index: f"organ{index}" for index in range(1, count + 1)}
    return Labels(raw=names, may_be_absent="all")


# preparation


def _scans(folder: Path, cases: int, planes: int, side: int, labels: int) -> list[Any]:
    from kdpipe.data.manifest import Case

    found = []
    for number in range(cases):
        label = blobs(planes, labels, number, side)
        noise = np.random.default_rng(number).normal(0, 30, label.shape)
        files = folder / f"images/c{number}.nii.gz", folder / f"labels/c{number}.nii.gz"
        _write((noise + 20 * label).astype(np.int16), files[0])
        _write(label, files[1])
        found.append(Case(f"c{number}", f"p{number}", (files[0],), files[1], str(number)))
    return found


def _preparation(folder: Path, cases: int, planes: int, side: int, labels: int = 5) -> Work:
    """Check, resample and store so many scans, in one process, then check the set."""
    from kdpipe.data.checks.verdict import Checks
    from kdpipe.data.preparation.prepare import prepare
    from kdpipe.presets import Preparation
    from kdpipe.rules import Rules

    preset = Preparation.model_validate(
        {"spacing": (1.8, 1.8, 1.8), "intensity": {"kind": "window", "low": -100, "high": 150}}
    )
    scans = _scans(folder, cases, planes, side, labels)
    files = (folder / f"integrity.{suffix}" for suffix in ("json", "tsv", "html"))
    checks = Checks(Rules(dataset="scale"), *files)
    tables = folder / "cases.tsv", folder / "fingerprint.json"

    def work() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)  # else nothing would be left to do
        prepare(
            scans, preset, _labels(labels), ["CT"], folder / "store", *tables, "0",
            workers=1, memory_mb=None, checks=checks,
        )  # fmt: skip

    return work


def _prepare_cases(folder: Path, cases: int) -> Work:
    return _preparation(folder, cases, 24, 64)


def _prepare_voxels(folder: Path, planes: int) -> Work:
    return _preparation(folder, 1, planes, SIDE)


# training


def _step(folder: Path, side: int) -> Work:
    from kd_scene import Scene

    from kdpipe.settings import Training

    return Scene(side=side).distilled(Training(precision="fp32"))


def _cohort(folder: Path, members: int) -> Work:
    """A step of so many students of one teacher; all learn by `kd`."""
    import cohort as bench

    from kdpipe.engine.cohort import Cohort
    from kdpipe.engine.jobs import Job
    from kdpipe.engine.loop import Trainer
    from kdpipe.engine.signals import StopRequest
    from kdpipe.infer.model import save_model
    from kdpipe.nets.base import network_of
    from kdpipe.progress import ProgressReport

    # done once in hundreds of steps
    Trainer._measures_gradients = lambda trainer: False  # type: ignore[assignment, method-assign]
    store, teacher = bench._store(folder / "store"), folder / "teacher.pt"
    of_teacher = bench._run("res_unet", "none")
    save_model(teacher, network_of(of_teacher).state_dict(), of_teacher, {})
    cohort = Cohort(StopRequest(), ExitStack(), leave_failed=False)
    split = {"train": bench.CASES[:3], "val": bench.CASES[3:], "test": [], "sha256": ""}
    for number in range(members):
        of = folder / f"member{number}"
        run = bench._run(bench.STUDENT, "kd")
        cohort.add(Job(run, {}, split, store, of / "checkpoint", of / "model.pt", teacher))
    report = ProgressReport("", 0, shown=False)

    def work() -> None:
        step = cohort.members[0].trainer.step
        for batch in itertools.islice(cohort.batches(step), 1):
            cohort.take_steps(cohort.members, batch, report)

    return work


# prediction


def _prediction(folder: Path, planes: int, side: int, labels: int) -> Work:
    """Windows, labels on the native grid and the file of one case."""
    import torch

    from kdpipe import discover
    from kdpipe.infer.model import save_model
    from kdpipe.infer.predict import predict_cases
    from kdpipe.nets.base import network_of
    from kdpipe.settings import Inference

    _preparation(folder, 1, planes, side, labels)()
    small = {"channels": [4, 8, 16], "strides": [2, 2]}
    params = discover.check_params("nets", "unet_tiny", small)
    spec = {"name": "unet_tiny", "params": params, "in_channels": 1, "out_channels": labels + 1}
    run = {"network": spec, "targets": {"n_labels": labels + 1, "regions": None}}
    run |= {"patch": [32] * 3, "cell": {}, "method": {"name": "none", "params": {}}}
    torch.manual_seed(0)
    save_model(folder / "model.pt", network_of(run).state_dict(), run, {})
    return lambda: predict_cases(
        folder / "model.pt", folder / "store", ["c0"], Inference(), folder / "predictions",
        torch.device("cpu"),
    )  # fmt: skip


def _predict_voxels(folder: Path, planes: int) -> Work:
    return _prediction(folder, planes, 64, STRUCTURES)


def _predict_classes(folder: Path, classes: int) -> Work:
    return _prediction(folder, 64, 96, classes - 1)


# evaluation


def _evaluation(folder: Path, cases: int, planes: int, classes: int) -> Work:
    """Two folders of label maps, by the default protocol, in one process."""
    from kdpipe.metrics.folders import evaluate_folders

    for number in range(cases):
        for seed, part in enumerate(("reference", "prediction")):
            label = blobs(planes, classes, 2 * number + seed)
            _write(label, folder / part / f"c{number}.nii.gz")
    structures = {f"organ{index}": (index,) for index in range(1, classes + 1)}
    return lambda: evaluate_folders(
        folder / "reference", folder / "prediction", structures, "strict_mm"
    )


def _evaluate_cases(folder: Path, cases: int) -> Work:
    return _evaluation(folder, cases, 60, STRUCTURES)


def _evaluate_voxels(folder: Path, planes: int) -> Work:
    return _evaluation(folder, 1, planes, STRUCTURES)


def _evaluate_classes(folder: Path, classes: int) -> Work:
    return _evaluation(folder, 1, 60, classes)


# planning


def _dry_run(folder: Path, cells: int) -> Work:
    import yaml
    from planning import ROOT, config, dry_run

    (folder / "config.yaml").write_text(yaml.safe_dump(config(cells)))
    return lambda: dry_run(folder, ROOT / "Snakefile")


def _cells(cells: int) -> int:
    from planning import config

    from kdpipe.config import load_study
    from kdpipe.plan import Plan

    return len(Plan(load_study(config(cells))).cells)


def all_series() -> list[Series]:
    """All lines of the table, in the order of the pipeline."""
    logging.disable(logging.WARNING)
    found = [
        Series("prepare", "cases", (4, 8, 16, 32), _prepare_cases),
        Series("prepare", "voxels", (30, 60, 120, 240), _prepare_voxels, lambda n: n * SIDE**2),
        Series("train step", "voxels", (32, 48, 64, 96), _step, lambda n: n**3),
        Series("train step", "members", (1, 2, 4, 8), _cohort),
        Series("predict", "voxels", (80, 160, 320, 640), _predict_voxels, lambda n: n * 64**2),
        Series("predict", "classes", (4, 8, 16, 32), _predict_classes),
        Series("evaluate", "cases", (3, 6, 12, 24), _evaluate_cases),
        Series("evaluate", "voxels", (30, 60, 120, 240), _evaluate_voxels, lambda n: n * SIDE**2),
        Series("evaluate", "classes", (4, 8, 16, 32), _evaluate_classes),
    ]
    axes = {"cases": (30, 60, 120, 240), "methods": (6, 12, 24, 48), "seeds": (2, 4, 8, 16)}
    for step, name in (("tabulate", "tables"), ("compare", "compare"), ("report", "report")):
        for axis, sizes in axes.items():
            found.append(Series(name, axis, sizes, of_study(step, axis)))
    found.append(Series("planning", "cells", (152, 352, 652, 1252), _dry_run, _cells))
    return found
