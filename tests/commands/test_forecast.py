"""What is said before a study is what its statistics do after it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe.commands.forecast import forecast_cost, n_comparisons
from kdpipe.config import load_study
from kdpipe.errors import ConfigError
from kdpipe.plan import Plan
from kdpipe.stats.compare import compare_scores

STUDY: dict[str, Any] = {
    "study": "small",
    "datasets": ["phantom_ct"],
    "teachers": ["segresnet", "unet_tiny"],
    "students": ["unet_tiny"],
    "methods": ["none", "kd", "ps_kd"],
    "seeds": [0, 1],
}


@pytest.mark.parametrize("budget", [{}, {"budget": 3}])
def test_as_many_comparisons_as_are_corrected_together(budget: dict[str, int]) -> None:
    plan = Plan(load_study(STUDY | budget))
    rng = np.random.default_rng(0)
    what = {"structure": "liver", "metric": "dice", "protocol": "strict_mm"}
    rows = [
        {**cell.keys, "case": case, **what, "value": rng.random(), "unit": "fraction"}
        for cell in plan.cells.values()
        for case in "abcdef"
    ]
    table = compare_scores(pd.DataFrame(rows), {}).comparisons
    family = table[(table["against_kind"] == "none") & (table["structure"] == "mean")]
    assert set(family["n_comparisons"]) == {len(family)} == {n_comparisons(plan)}


def test_a_small_study_is_forecast_in_minutes() -> None:
    plan = Plan(load_study(STUDY | {"training": {"student": {"epochs": 1, "steps_per_epoch": 1}}}))
    (said,) = [line for line in forecast_cost(plan, 10.0) if line.startswith("Trainings")]
    assert re.search(
        r"2 teachers, about [\d.]+ (min|h), and 8 students, about 1 min on one GPU", said
    )
    one = Plan(load_study(STUDY | {"teachers": ["unet_tiny"]}))
    assert "1 teacher, about" in forecast_cost(one, 10.0)[0]
    with pytest.raises(ConfigError, match="--tflops: must be above 0"):
        forecast_cost(one, 0.0)


def test_a_cohort_pays_for_its_teacher_once() -> None:
    recipe = {"student": {"epochs": 100, "steps_per_epoch": 1000}}
    study = STUDY | {"teachers": ["segresnet"], "methods": ["kd", "cwd"], "training": recipe}

    def hours(**changes: Any) -> float:
        said = forecast_cost(Plan(load_study(study | changes)), 1e-4)[0]
        return float(re.findall(r"about ([\d.]+) h", said)[1])

    alone, one, together = hours(methods=["none"]), hours(), hours(cohort=True)
    teachers = one - 3 * alone  # of kd and cwd; `none` has none
    assert teachers > 100
    assert together == pytest.approx(one - teachers / 2, abs=3)
