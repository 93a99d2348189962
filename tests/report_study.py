"""A small study with everything that its report reads, written by hand."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

#: names that must stay text; the second would end the element that holds a page's data
EVIL = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "=1+1&\"'{{7*7}}")
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><path d="M0 0L40 30"/></svg>'
_WHERE = {"dataset": "mine", "split": "default", "student": "tiny", "protocol": "strict_mm"}
#: method -> mean Dice, difference to none, ends of the interval, verdict
_METHODS = {
    "none": (0.80, 0.0, 0.0, 0.0, ""),
    "kd": (0.8125, 0.0125, 0.005, 0.02, "better"),
    "cwd": (0.801, 0.001, -0.002, 0.004, "equivalent"),
    "mskd": (0.78, -0.02, -0.03, -0.01, "worse"),
}


@dataclass
class Study:
    """Settings and folders of a study; `edit` overwrites columns of one of its tables."""

    run: dict[str, Any]
    tables: Path
    figures: Path
    overlays: Path

    def edit(self, table: str, **columns: Any) -> None:
        """Overwrite columns of a CSV file, as text."""
        file = self.tables / f"{table}.csv"
        read = pd.read_csv(file, dtype=str, keep_default_na=False)
        read.assign(**columns).to_csv(file, index=False)


def build_study(root: Path, *, n_cases: int = 6, evil: bool = False) -> Study:
    """Write the study; `evil` gives it names of `EVIL` wherever data or a user can name a thing."""
    study = Study(
        run=_run(root, evil),
        tables=root / "tables",
        figures=root / "figures",
        overlays=root / "overlays",
    )
    for folder in (study.tables, study.figures, study.overlays):
        folder.mkdir(parents=True)
    names = dict(zip(("case_0", "liver", "kd"), EVIL, strict=True)) if evil else {}
    for name, rows in {
        "scores": _scores(n_cases),
        "results": _results(),
        "comparisons": _comparisons(),
        "ranks": _ranks(),
        "power": [_power()],
        "references": [_reference()],
    }.items():
        table = pd.DataFrame(rows).replace(names)
        if evil:
            table["dataset" if "dataset" in table else "source"] = EVIL[0]
        table.to_csv(study.tables / f"{name}.csv", index=False, na_rep="nan")
    title = EVIL[0] if evil else ""
    (study.tables / "claim.json").write_text(json.dumps({"study": "planted", "note": title}))
    _pictures(study, title)
    return study


def _run(root: Path, evil: bool) -> dict[str, Any]:
    dataset = EVIL[0] if evil else "mine"
    fold = root / "fold0"
    fold.mkdir(parents=True)
    split = {"train": ["t"], "val": ["v"], "test": [dataset], "sha256": "abcdef0123456789" * 4}
    split["rule"] = {"kind": "fixed_counts", "seed": 0}
    (fold / "split.json").write_text(json.dumps(split))
    cells = [_cell(fold, dataset, "teacher", "big", "", 0)]
    for method in _METHODS:
        teacher = "no_teacher" if method == "none" else "big"
        name = EVIL[2] if evil and method == "kd" else method
        cells += [_cell(fold, dataset, "student", teacher, name, seed) for seed in (0, 1)]
    recipe = {"epochs": 3, "augmentation": {"zoom": 0.15}}
    facts = {"title": "Mine", "modality": "CT", "licence": "CC0-1.0", "channels": ["CT"]}
    facts |= {"structures": {"liver": [1], "spleen": [2]}, "has_spacing": True}
    facts |= {"preset": "iso", "patch": [32, 32, 32], "manifest": "", "prepared": ""}
    return {
        "study": EVIL[0] if evil else "planted",
        "cells": cells,
        "readings": ["mskd"],
        "entries": {
            "teachers": {"big": {"name": "unet", "params": {}}},
            "methods": {"kd": {"name": "kd", "params": {"temperature": 4}}},
        },
        "datasets": {dataset: facts},
        "protocols": ["strict_mm"],
        "definitions": {},
        "budget": 0,
        "search": {},
        "statistics": {"confidence": 0.95, "resamples": 2000},
        "training": {"teacher": recipe, "student": recipe},
    }


def _cell(
    fold: Path, dataset: str, role: str, teacher: str, method: str, seed: int
) -> dict[str, Any]:
    folder = fold / role / f"m{method.encode().hex()}" / f"seed{seed}"
    folder.mkdir(parents=True)
    facts = {
        "seconds": 30.0,
        "energy_j": 1.8e6,
        "hardware": {"gpu": "a card"},
        "environment": {"python": f"3.1{1 + seed}", "torch": "2.13"},
        "weights_sha256": "0123" * 16,
    }
    (folder / "model.json").write_text(json.dumps(facts))
    keys = {"dataset": dataset, "split": "default", "fold": 0, "role": role, "teacher": teacher}
    keys |= {"student": "" if role == "teacher" else "tiny", "method": method, "seed": seed}
    return {"folder": str(folder), "profile": "", **keys}


def _keys(method: str) -> dict[str, Any]:
    teacher = "no_teacher" if method == "none" else "big"
    keys = {"dataset": "mine", "split": "default", "fold": 0, "role": "student"}
    return {**keys, "teacher": teacher, "student": "tiny", "method": method}


def _scores(n_cases: int) -> list[dict[str, Any]]:
    rows = []
    for method, (mean, *_) in _METHODS.items():
        for seed in (0, 1):
            for case in range(n_cases):
                for structure in ("liver", "spleen"):
                    gone = case == 1 and structure == "spleen"
                    what = {"case": f"case_{case}", "structure": structure, "metric": "dice"}
                    value = float("nan") if gone else mean + case / 1e5
                    status = "missing_in_both" if gone else "ok"
                    what |= {"protocol": "strict_mm", "value": value, "unit": "fraction"}
                    rows.append({**_keys(method), "seed": seed, **what, "status": status})
    return rows


def _results() -> list[dict[str, Any]]:
    rows = []
    for method, (mean, gain, *_) in _METHODS.items():
        for structure in ("liver", "spleen", "mean"):
            numbers = {"mean": mean, "sd": 0.015, "n_seeds": 2, "n_valid": 12, "gain": gain}
            numbers |= {"n_missed": 2, "n_false": 1, "gain_tuned": float("nan"), "n_cases": 6}
            cost = {"parameters": 1_500_000, "macs": 2_250_000_000, "cpu_ms": 12.0, "cpu_mb": 45.0}
            cost |= {"gpu_ms": float("nan"), "gpu_mb": float("nan"), "training_seconds": 30.0}
            marks = {"reading": method == "mskd", "split_sha256": "abcdef0123456789" * 4}
            marks |= {"selects_on_test": False}
            for protocol, metric in (("strict_mm", "dice"), ("boundary_bands", "error_in_0_1")):
                what = {"structure": structure, "metric": metric, "protocol": protocol}
                rows.append(_keys(method) | what | {"unit": "fraction"} | numbers | cost | marks)
    return rows


def _comparisons() -> list[dict[str, Any]]:
    what = {**_WHERE, "metric": "dice", "unit": "fraction"}
    rows = []
    for structure in ("mean", "liver"):
        for method, (_, gain, low, high, verdict) in _METHODS.items():
            numbers = {"difference": gain, "low": low, "high": high, "p_value": 0.004}
            numbers |= {"p_holm": 0.012, "effect_rank_biserial": 0.5, "effect_dz": 0.4}
            numbers |= {"n_cases": 6, "n_seeds": 2, "margin": 0.005}
            arm = {"structure": structure, "teacher": "big", "method": method}
            marks = {"resolvable": 0.008, "reading": method == "mskd", "selects_on_test": False}
            none = {"against_teacher": "no_teacher", "against_method": "none"}
            best = {"against_teacher": "big", "against_method": "kd"}
            if method != "none":
                row = {**what, **arm, "against_kind": "none", **none, **numbers}
                rows.append({**row, "verdict": verdict, **marks})
            if method == "cwd":
                row = {**what, **arm, "against_kind": "best", **best, **numbers}
                rows.append({**row, "verdict": "cannot tell", **marks})
    return rows


def _ranks() -> list[dict[str, Any]]:
    row = {**_WHERE, "metric": "dice", "teacher": "big", "rank_low": 1.0, "rank_high": 2.0}
    return [
        {**row, "method": method, "mean_rank": rank, "p_best": share}
        for method, rank, share in (("cwd", 1.75, 0.25), ("kd", 1.5, 0.75))
    ]


def _power() -> dict[str, Any]:
    numbers = {"n_cases": 6, "n_seeds": 2, "n_comparisons": 3, "sd": 0.01, "sd_source": "measured"}
    numbers |= {"resolvable": 0.008, "smallest_p": 0.001, "can_be_significant": True}
    return {**_WHERE, "metric": "dice", **numbers}


def _reference() -> dict[str, Any]:
    where = {"dataset": "mine", "split": "default", "fold": 0, "role": "student"}
    arm = {**where, "teacher": "big", "student": "tiny", "method": "kd", "against": ""}
    what = {"structure": "mean", "protocol": "strict_mm", "metric": "dice", "unit": "fraction"}
    theirs = {"printed": "84.1", "printed_unit": "%", "published": 0.841, "published_sd": 0.006}
    theirs |= {"published_low": 0.826, "published_high": 0.856}
    ours = {"ours": 0.8125, "ours_sd": 0.015, "low": 0.80, "high": 0.825, "n_cases": 6}
    ours |= {"n_seeds": 2, "margin": 0.005, "verdict": "cannot tell", "needed": 40}
    ours |= {"needed_of": "cases", "remarks": ""}
    return {"reference": "paper", "table": "T1", "kind": "level", **arm, **what, **theirs, **ours}


def _pictures(study: Study, title: str) -> None:
    figures = [
        {"name": "dice", "title": title or "Dice", "caption": title, "group": "Scores"},
        {"name": "hd95", "title": "HD95", "caption": "", "group": "Scores"},
        {"name": "cost", "title": "Cost", "caption": "", "group": "Cost"},
    ]
    for figure in figures:
        (study.figures / f"{figure['name']}.svg").write_text(_SVG)
        (study.figures / f"{figure['name']}.png").write_bytes(_PNG)
    (study.figures / "figures.json").write_text(json.dumps(figures))
    overlays = [
        {"file": f"{role}.png", "role": role, "case": title or f"case_{number}", "caption": "c"}
        for number, role in enumerate(("worst", "best"))
    ]
    overlays = [{**entry, "why": "most reference foreground"} for entry in overlays]
    for entry in overlays:
        (study.overlays / entry["file"]).write_bytes(_PNG)
    (study.overlays / "overlays.json").write_text(json.dumps(overlays))
