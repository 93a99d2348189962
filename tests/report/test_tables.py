"""Tables from planted scores: every printed number can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe.errors import DataError
from kdpipe.report.tables import OVERALL, summarise, write_tables

#: method -> seed -> Dice of (case a liver, case b liver, case a spleen, case b spleen)
DICE: dict[str, dict[int, tuple[float, ...]]] = {
    "none": {0: (0.80, 0.90, 0.50, 0.70), 1: (0.84, 0.90, 0.60, 0.70)},
    "kd": {0: (0.90, 0.92, 0.60, 0.80), 1: (0.94, 0.96, 0.60, 0.80)},
}
TEACHER = (0.95, 0.97, 0.90, 0.92)


def _write_cell(root: Path, keys: dict[str, Any], dice: tuple[float, ...]) -> dict[str, Any]:
    folder = root / "_".join(str(value) for value in keys.values() if value != "")
    folder.mkdir()
    rows = []
    for value, (structure, case) in zip(
        dice, [(s, c) for s in ("liver", "spleen") for c in "ab"], strict=True
    ):
        missed = structure == "spleen" and case == "b" and keys["method"] == "none"
        where = {**keys, "case": case, "structure": structure, "protocol": "strict_mm"}
        status = "missing_in_prediction" if missed else "ok"
        rows.append(
            {**where, "metric": "dice", "value": value, "unit": "fraction", "status": status}
        )
        distance = {"metric": "hd95_max", "value": 10 * (1 - value), "unit": "mm"}
        rows.append({**where, **distance, "status": status})
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False, na_rep="nan")
    facts = {
        "parameters": 1_500_000,
        "macs": 2_250_000_000,
        "validation_dice": 0.9,
        "seconds": 30.0,
    }
    (folder / "model.json").write_text(json.dumps(facts))
    return {"folder": str(folder), **keys}


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    base = {"dataset": "mine", "split": "default", "fold": 0}
    teacher = {**base, "role": "teacher", "teacher": "big", "student": "", "method": "", "seed": 0}
    cells = [_write_cell(tmp_path, teacher, TEACHER)]
    for method, seeds in DICE.items():
        for seed, dice in seeds.items():
            names = {"teacher": "no_teacher" if method == "none" else "big", "student": "tiny"}
            keys = {**base, "role": "student", **names, "method": method, "seed": seed}
            cells.append(_write_cell(tmp_path, keys, dice))
    return {"study": "my_study", "cells": cells}


@pytest.fixture
def results(run: dict[str, Any], tmp_path: Path) -> pd.DataFrame:
    write_tables(run, tmp_path / "tables")
    return pd.read_csv(
        tmp_path / "tables" / "results.csv", keep_default_na=False, na_values=["nan"]
    )


def row(results: pd.DataFrame, method: str | None, structure: str, metric: str) -> pd.Series:
    of_method = results["method"] == (method or "")
    chosen = of_method & (results["structure"] == structure) & (results["metric"] == metric)
    assert chosen.sum() == 1
    return results[chosen].iloc[0]


def test_mean_and_sd_are_over_the_seeds_means(results: pd.DataFrame) -> None:
    liver = row(results, "kd", "liver", "dice")
    assert liver["mean"] == pytest.approx((0.91 + 0.95) / 2)
    assert liver["sd"] == pytest.approx(np.std([0.91, 0.95], ddof=1))
    overall = row(results, "kd", OVERALL, "dice")
    assert overall["mean"] == pytest.approx(((0.91 + 0.70) / 2 + (0.95 + 0.70) / 2) / 2)
    assert overall["n_seeds"] == 2
    assert overall["n_valid"] == 8


def test_gain_is_over_the_undistilled_student_and_positive_is_better(results: pd.DataFrame) -> None:
    gain = row(results, "kd", "liver", "dice")["gain"]
    assert gain == pytest.approx((0.91 + 0.95) / 2 - (0.85 + 0.87) / 2)
    assert row(results, "kd", "liver", "hd95_max")["gain"] == pytest.approx(10 * gain)
    assert row(results, "none", "liver", "dice")["gain"] == 0
    assert np.isnan(row(results, None, "liver", "dice")["gain"])


def test_missed_structures_and_cost(results: pd.DataFrame) -> None:
    none = row(results, "none", OVERALL, "dice")
    assert none["n_missed"] == 2
    assert row(results, "kd", OVERALL, "dice")["n_missed"] == 0
    assert none["parameters"] == 1_500_000
    assert none["training_seconds"] == 30


def test_what_people_read(run: dict[str, Any], tmp_path: Path) -> None:
    text = write_tables(run, tmp_path / "out")
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert markdown in text
    line = next(line for line in markdown.splitlines() if "| kd " in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "tiny", "big", "kd", "81.50 ± 1.41", "1.85 ± 0.14", "+7.25", "0",
        "93.00 ± 2.83", "70.00 ± 0.00", "1.500 M", "2.250 G",
    ]  # fmt: skip
    assert "Test cases: at most 2 a structure." in markdown
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert latex.count(r"\\") == 4
    assert r"81.50 $\pm$ 1.41" in latex
    assert r"my\_study" in latex
    tidy = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert len(tidy) == 5 * 8


def test_a_value_that_is_left_out_does_not_count(run: dict[str, Any], tmp_path: Path) -> None:
    cell = run["cells"][-1]
    file = Path(cell["folder"]) / "metrics.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table.loc[(table["structure"] == "spleen") & (table["case"] == "b"), "value"] = np.nan
    table.to_csv(file, index=False, na_rep="nan")
    write_tables(run, tmp_path / "out")
    out = pd.read_csv(tmp_path / "out" / "results.csv", keep_default_na=False, na_values=["nan"])
    spleen = row(out, "kd", "spleen", "dice")
    assert spleen["mean"] == pytest.approx((0.70 + 0.60) / 2)
    assert spleen["n_valid"] == 3


def test_facts_of_another_format_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    file = Path(run["cells"][0]["folder"]) / "model.json"
    file.write_text("{}")
    with pytest.raises(DataError, match="model.json: lacks parameters"):
        write_tables(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_summary_needs_no_teacher(run: dict[str, Any]) -> None:
    tables = [pd.read_csv(Path(cell["folder"]) / "metrics.csv") for cell in run["cells"][1:]]
    scores = pd.concat(tables).fillna({"student": "", "method": ""})
    costs = pd.DataFrame(run["cells"][1:]).assign(parameters=1, macs=1, seconds=1.0)
    assert set(summarise(scores, costs)["role"]) == {"student"}
