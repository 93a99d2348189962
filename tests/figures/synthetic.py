"""A study that was never run: tables and histories with planted effects, in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdpipe.protocols import BANDS
from kdpipe.stats.scores import OVERALL, SCORES

BANDS_OF = ("in_4_up", "in_2_4", "in_1_2", "in_0_1", "out_0_1", "out_1_2", "out_2_4", "out_4_8")
KEYS = ["dataset", "split", "student", "protocol", "metric"]
VOLUMES = {"liver": 1500.0, "spleen": 200.0, "gallbladder": 25.0, "pancreas": 80.0}


@dataclass(frozen=True)
class Plan:
    """What a synthetic study holds; `methods` are gains over ``none`` in Dice points."""

    methods: dict[str, float]
    cases: int = 20
    seeds: int = 2
    structures: tuple[str, ...] = ("liver", "spleen", "gallbladder")
    teachers: tuple[str, ...] = ("nnunet",)
    datasets: tuple[str, ...] = ("synapse",)
    students: tuple[str, ...] = ("unet_tiny",)
    folds: int = 1
    unit: str = "mm"
    none: bool = True
    bands: bool = True
    misses: bool = True
    epochs: int = 60


SMALL = Plan({"kd": 0.3, "cwd": 1.1, "mskd": 2.0, "hlfd": -0.8, "acf_bckd+cwd": 1.6})


def many(methods: int = 20) -> Plan:
    """Forty arms: twenty methods with each of two teachers, on twelve structures."""
    rng = np.random.default_rng(3)
    names = [f"method_{index:02d}" for index in range(methods - 2)]
    names += ["sum_of_many_methods+with_a_long_label", "cross_image_relations"]
    gains = dict(zip(names, rng.normal(0.5, 1.2, methods), strict=True))
    organs = tuple(f"organ {index}" for index in range(1, 13))
    return Plan(gains, structures=organs, teachers=("nnunet_resenc_l", "swin_unetr"), cases=12)


def write_study(root: Path, plan: Plan) -> tuple[dict[str, Any], Path]:
    """Write tables and histories of a study below `root`; return its run and the tables' folder."""
    rng = np.random.default_rng(0)
    cells, scores = [], []
    for dataset in plan.datasets:
        for keys in _cells(plan, dataset):
            folder = root / "cells" / "_".join(str(value) for value in keys.values())
            folder.mkdir(parents=True)
            _history(rng, plan, keys).to_csv(folder / "train.csv", index=False)
            cells.append({"folder": str(folder), "profile": str(root), **keys})
            scores.append(_scores(rng, plan, keys))
    tables = root / "tables"
    tables.mkdir()
    table = pd.concat(scores, ignore_index=True)[SCORES]
    table.to_csv(tables / "scores.csv", index=False, na_rep="nan")
    _results(table).to_csv(tables / "results.csv", index=False, na_rep="nan")
    comparisons, ranks = _decisions(rng, table)
    comparisons.to_csv(tables / "comparisons.csv", index=False, na_rep="nan")
    ranks.to_csv(tables / "ranks.csv", index=False, na_rep="nan")
    run = {"study": "synthetic", "cells": cells, "readings": ["hlfd"], "protocols": ["strict_mm"]}
    return run | {"statistics": {"confidence": 0.95}}, tables


def _cells(plan: Plan, dataset: str):
    for fold in range(plan.folds):
        base = {"dataset": dataset, "split": "default", "fold": fold}
        for teacher in plan.teachers:
            yield {**base, "role": "teacher", "teacher": teacher, "student": "", "method": "",
                   "seed": 0}  # fmt: skip
        for student in plan.students:
            arms = [("no_teacher", "none")] if plan.none else []
            arms += [(teacher, method) for teacher in plan.teachers for method in plan.methods]
            for teacher, method in arms:
                for seed in range(plan.seeds):
                    yield {**base, "role": "student", "teacher": teacher, "student": student,
                           "method": method, "seed": seed}  # fmt: skip


def _scores(rng: np.random.Generator, plan: Plan, keys: dict[str, Any]) -> pd.DataFrame:
    gain = plan.methods.get(keys["method"], 0.0) if keys["role"] == "student" else 6.0
    gain += 0.4 * (keys["teacher"] == "swin_unetr") + 2 * (keys["student"] == "unet_small")
    of_case = np.random.default_rng(7)  # the same cases for all arms
    rows = []
    for structure in plan.structures:
        volume = VOLUMES.get(structure, 60.0)
        for case in range(plan.cases):
            hardness, size = of_case.normal(0, 4), volume * of_case.lognormal(0, 0.5)
            dice = 88 - 12 / np.log10(size + 3) + hardness + gain + rng.normal(0, 1.2)
            dice = float(np.clip(dice, 5, 99)) / 100
            lost = plan.misses and structure == plan.structures[-1] and rng.random() < 0.04
            false = plan.misses and structure == plan.structures[-1] and case == 0
            status = "missing_in_prediction" if lost else "ok"
            if false:
                status = "missing_in_reference" if rng.random() < 0.3 else "missing_in_both"
            none = status == "missing_in_both"
            dice = np.nan if none else dice if status == "ok" else 0.0
            hd95 = np.nan if none else 60 * (1 - dice) ** 1.3 + 1 if status == "ok" else 420.0
            here = {**keys, "case": f"{case + 100 * keys['fold']:03d}", "structure": structure}
            here["status"] = status
            for metric, value, unit in (
                ("dice", dice, "fraction"),
                ("hd95_pooled", hd95, plan.unit),
                ("reference_ml", 0.0 if "reference" in status or none else size, "ml"),
            ):
                rows.append({**here, "metric": metric, "value": value, "unit": unit,
                             "protocol": "strict_mm"})  # fmt: skip
            for index, band in enumerate(BANDS_OF if plan.bands else ()):
                near = 1 / (1 + abs(index - 3.5))
                value = np.nan if none else near * (1 - dice) * (1.3 - gain / 40)
                rows.append({**here, "metric": f"error_{band}", "value": value,
                             "unit": "fraction", "protocol": BANDS})  # fmt: skip
    return pd.DataFrame(rows)


def _history(rng: np.random.Generator, plan: Plan, keys: dict[str, Any]) -> pd.DataFrame:
    epoch = np.arange(1, plan.epochs + 1)
    method, distilled = keys["method"], keys["method"] not in ("", "none")
    table = pd.DataFrame({"epoch": epoch, "step": epoch * 40, "seconds": 1.0})
    segmentation = 0.4 + 1.2 * np.exp(-epoch / 12) + rng.normal(0, 0.01, plan.epochs)
    terms = {"segmentation": segmentation}
    if distilled:
        terms[method] = 3 * np.exp(-epoch / 20) + rng.normal(0, 0.02, plan.epochs) ** 2 + 0.2
        if "acf" in method or "sum" in method:
            terms["boundary_consistency"] = 0.5 * np.exp(-epoch / 30)
            terms["fusion"] = np.where(epoch > 10, 0.05 * np.exp(-epoch / 90), 0.0)
    table["loss"] = sum(terms.values())
    validated = (epoch % 5 == 0) | (epoch == plan.epochs)
    for name, values in terms.items():
        table[name] = values
    for name, values in terms.items():
        norms = values * rng.lognormal(0, 0.2, plan.epochs)
        table[f"gradient_norm_{name}"] = np.where((epoch % 5 == 1), norms, np.nan)
    dice = 0.86 - 0.5 * np.exp(-epoch / 15) + rng.normal(0, 0.006, plan.epochs)
    dice += plan.methods.get(method, 0.0) / 100 + 0.05 * (keys["role"] == "teacher")
    table["validation_dice"] = np.where(validated, dice, np.nan)
    return table


def _results(scores: pd.DataFrame) -> pd.DataFrame:
    keys = ["dataset", "split", "fold", "role", "teacher", "student", "method"]
    table = scores[scores["protocol"] != BANDS].groupby(
        [*keys, "structure", "metric", "protocol", "unit"], sort=False
    )
    table = table["value"].mean().rename("mean").reset_index()
    costs = {"unet_tiny": 0.6e6, "unet_small": 2.4e6, "nnunet": 31e6, "nnunet_resenc_l": 102e6}
    size = [
        costs.get(s or t, 62e6) for s, t in zip(table["student"], table["teacher"], strict=True)
    ]
    table["parameters"] = np.array(size).round()
    table["macs"] = (table["parameters"] ** 0.9 * 9e3).round()
    table["cpu_ms"] = (table["macs"] / 4e7).round(1)
    table["cpu_mb"] = (90 + table["parameters"] / 3e4).round(1)
    table["gpu_ms"], table["gpu_mb"] = np.nan, np.nan
    return table


def _decisions(rng: np.random.Generator, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Comparisons and ranks as the statistics write them, by simpler means."""
    scores = scores[(scores["role"] == "student") & (scores["protocol"] != BANDS)]
    scores = scores[scores["metric"] != "reference_ml"]
    overall = scores.groupby([*KEYS, "unit", "teacher", "method", "seed", "case"], sort=False)
    overall = overall["value"].mean().reset_index().assign(structure=OVERALL)
    scores = pd.concat([overall, scores], ignore_index=True)
    keys = [*KEYS, "unit", "structure"]
    comparisons, ranks = [], []
    for place, rows in scores.groupby(keys, sort=False):
        sign = 1 if "dice" in place else -1
        wide = rows.pivot_table(index="case", columns=["teacher", "method"], values="value")
        wide = sign * wide
        where = dict(zip(keys, place, strict=True))
        comparisons += _compared(where, wide)
        if where["structure"] == OVERALL and wide.shape[1] > 1:
            ranks += _ranked(rng, where, wide.dropna())
    columns = ["against_kind", *keys, "teacher", "method", "difference", "low", "high", "p_holm"]
    columns += ["n_cases", "margin", "verdict"]
    rank_columns = [*KEYS, "teacher", "method", "mean_rank", "rank_low", "rank_high", "p_best"]
    return pd.DataFrame(comparisons, columns=columns), pd.DataFrame(ranks, columns=rank_columns)


def _compared(where: dict[str, str], wide: pd.DataFrame) -> list[dict[str, Any]]:
    none = ("no_teacher", "none")
    rows = []
    for arm in wide.columns if none in wide else ():
        gaps = (wide[arm] - wide[none]).dropna()
        if arm == none or gaps.empty:
            continue
        mean, sd, n = gaps.mean(), gaps.std(), len(gaps)
        half = stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
        margin = 0.005 if where["metric"] == "dice" else 0.5
        p = stats.wilcoxon(gaps).pvalue * len(wide.columns) if n > 4 else 1.0
        low, high = mean - half, mean + half
        inside = abs(low) < margin and abs(high) < margin
        verdict = "equivalent" if inside else "cannot tell"
        verdict = "better" if low > 0 else "worse" if high < 0 else verdict
        rows.append({**where, "against_kind": "none", "teacher": arm[0], "method": arm[1],
                     "difference": mean, "low": low, "high": high, "p_holm": min(p, 1.0),
                     "n_cases": n, "margin": margin, "verdict": verdict})  # fmt: skip
    return rows


def _ranked(rng: np.random.Generator, where: dict[str, str], wide: pd.DataFrame) -> list:
    if wide.empty:
        return []
    draws = rng.integers(0, len(wide), (400, len(wide)))
    ranks = stats.rankdata(-wide.to_numpy()[draws].mean(axis=1), axis=1)
    low, high = np.percentile(ranks, [2.5, 97.5], axis=0)
    return [
        {**where, "teacher": arm[0], "method": arm[1], "mean_rank": ranks[:, i].mean(),
         "rank_low": low[i], "rank_high": high[i], "p_best": (ranks[:, i] == 1).mean()}
        for i, arm in enumerate(wide.columns)
    ]  # fmt: skip
