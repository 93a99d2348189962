"""A model that nnU-Net has trained, from its folder to scores of the students it has taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from nnunet_model import CASES, NAME

from kdpipe.atomic import write_json
from kdpipe.cli import build_parser
from kdpipe.config import load_study
from kdpipe.infer.model import load_model
from kdpipe.plan import Plan
from kdpipe.runs import run_files

CARD: dict[str, Any] = {
    "schema_version": 1,
    "id": "tiny",
    "title": "The images that the model was trained on",
    "modality": "CT",
    "channels": ["CT"],
    "licence": {"spdx": "CC0-1.0"},
    "access": {"mode": "local"},
    "labels": {"raw": {0: "background", 1: "organ", 2: "tumour"}, "may_be_absent": "all"},
    "splits": {
        "default": {"kind": "explicit", "train": CASES[:3], "val": CASES[3:4], "test": CASES[4:]}
    },
    "presets": {"default": {"intensity": {"kind": "rescale"}, "patch": [16, 16, 16]}},
}


def study(folder: Path, model: Path) -> Plan:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CARD))
    short = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2}
    config = {
        "data_root": str(folder / "data"),
        "results_root": str(folder / "results"),
        "cards": [str(folder)],
        "data_source": {"tiny": str(model.parents[2] / "raw" / NAME)},
        "datasets": [{"tiny": {"preset": {"nnunet": str(model)}}}],
        "teachers": [{"nnunet": {"path": str(model), "folds": [0, 1]}}],
        "students": [{"unet_tiny": {"channels": [4, 8, 16], "strides": [2, 2]}}],
        "methods": ["kd", "at"],
        "training": {"student": short},
    }
    plan = Plan(load_study(config))
    plan.check_sources()
    for file, run in run_files(plan).items():
        write_json(Path(file), run)
    return plan


def call(stage: str, **paths: Path | str) -> None:
    """Run a stage as its rule does."""
    flags = [text for flag, path in paths.items() for text in (f"--{flag}", str(path))]
    given = build_parser().parse_args([stage, *flags])
    given.command(given)


def cell(plan: Plan, method: str) -> Path:
    return next(Path(f) for f, c in plan.cells.items() if c.keys["method"] == method)


@pytest.mark.slow
def test_a_trained_nnunet_teaches_by_its_logits_and_by_its_features(
    tmp_path: Path, trained_nnunet: Path
) -> None:
    plan = study(tmp_path, trained_nnunet)
    raw, prepared = Path(plan.paths.raw("tiny")), Path(plan.prepared_of("tiny"))
    results = Path(plan.paths.fold(dataset="tiny", split="default", fold=0))
    manifest, split = raw / "manifest.tsv", results / "split.json"
    places = {"files": raw / "files", "archives": raw / "archives", "labels": raw / "labels"}
    call("fetch", run=raw / "run.json", manifest=manifest, **places)
    call(
        "prepare",
        run=prepared / "run.json",
        manifest=manifest,
        store=prepared / "cases",
        cases=prepared / "cases.tsv",
        fingerprint=prepared / "fingerprint.json",
    )
    call("split", run=results / "run.json", cases=prepared / "cases.tsv", out=split)

    teacher = cell(plan, "") / "model.pt"
    inputs = {"prepared": prepared, "split": split, "state": tmp_path / "state"}
    call("train", run=teacher.with_name("run.json"), model=teacher, **inputs)
    assert len(load_model(teacher).network.members) == 2
    for method in ("kd", "at"):
        model = cell(plan, method) / "model.pt"
        call("distill", run=model.with_name("run.json"), model=model, teacher=teacher, **inputs)
        terms = pd.read_csv(model.with_name("train.csv"))
        assert (terms[method] > 0).all()

    for folder in (cell(plan, name) for name in ("", "kd", "at")):
        call(
            "predict",
            run=Path(plan.paths.stage("tiny", "predict")) / "run.json",
            model=folder / "model.pt",
            prepared=prepared,
            split=split,
            out=folder / "predictions",
        )
        call(
            "evaluate",
            run=Path(plan.paths.stage("tiny", "evaluate")) / "run.json",
            cell=folder / "run.json",
            prediction=folder / "predictions",
            split=split,
            manifest=manifest,
            out=folder / "metrics.csv",
        )
        scores = pd.read_csv(folder / "metrics.csv")
        assert set(scores["structure"]) == {"organ", "tumour"}
        assert set(scores["case"]) == set(CASES[4:])
