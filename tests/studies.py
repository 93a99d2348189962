"""Tidy tables of scores from arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

Arm = tuple[str, str]


def tidy(
    scores: Mapping[Arm, np.ndarray],
    structure: str = "liver",
    metric: str = "dice",
    unit: str = "fraction",
    seeds: Mapping[Arm, tuple[int, ...]] | None = None,
    **keys: str,
) -> pd.DataFrame:
    """Scores of arms, each of shape `(cases, seeds)`, as the evaluation writes them."""
    rows = []
    for arm, values in scores.items():
        named = (seeds or {}).get(arm, tuple(range(values.shape[1])))
        for (case, seed), value in np.ndenumerate(values):
            rows.append((*arm, named[seed], f"case_{case:03d}", value))
    table = pd.DataFrame(rows, columns=["teacher", "method", "seed", "case", "value"])
    constant = {"dataset": "phantom", "split": "default", "fold": 0, "role": "student"}
    constant |= {"student": "unet", "structure": structure, "metric": metric, "unit": unit}
    return table.assign(**constant, **{"protocol": "strict_mm", "status": "ok", **keys})


NONE = ("no_teacher", "none")
TUNED_NONE = ("no_teacher", "none+tuned")
KD, CWD = ("res_unet", "kd"), ("res_unet", "cwd")
TUNED_KD = ("res_unet", "kd+tuned")
RUN = {"study": "phantom", "protocols": ["strict_mm"], "statistics": {"resamples": 500}}


def simple(n_cases: int = 20, n_seeds: int = 2, gain: float = 0.05) -> dict[Arm, np.ndarray]:
    """The student, one that equals it but for noise, and one that is better by `gain`."""
    rng = np.random.default_rng(0)
    case = rng.normal(0.8, 0.05, (n_cases, 1))
    return {
        arm: case + gap + rng.normal(0, 0.005, (n_cases, n_seeds))
        for arm, gap in ((NONE, 0.0), (KD, 0.0), (CWD, gain))
    }
