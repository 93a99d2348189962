import math
import subprocess
import sys

import numpy as np
import pytest

from kdpipe.settings import Statistics
from kdpipe.stats import power
from kdpipe.stats.intervals import paired_mean, seed_scatter
from kdpipe.stats.pairing import Block
from kdpipe.stats.significance import rank_biserial, wilcoxon
from kdpipe.stats.verdict import decide

STUDIES = 1000
ERROR = 2 * math.sqrt(0.8 * 0.2 / STUDIES)  # two standard errors of a share of 80 %


def _share_found(n_cases: int, n_seeds: int, n_comparisons: int, difference: float) -> float:
    """Share of studies whose first arm is better by the first step of Holm; SD over cases is 1.

    Half of its variance is the training's noise, as `power` assumes; seeds have no effect.
    """
    rng = np.random.default_rng([n_cases, n_seeds, n_comparisons])
    n_arms = n_comparisons + 1 if n_seeds > 1 else 2
    arms = tuple(("t", str(index)) for index in range(n_arms))
    found = 0
    for _ in range(STUDIES):
        values = rng.normal(0, 0.5, (n_arms, n_cases, 1)) + rng.normal(
            0, 0.5 * math.sqrt(n_seeds), (n_arms, n_cases, n_seeds)
        )
        values[0] += difference
        mean = paired_mean(values[0], values[1], seed_scatter(Block({}, arms, values)))
        half, effect = mean.half_width(0.95), rank_biserial(mean.differences)
        interval = (mean.mean - half, mean.mean + half)
        p_holm = min(1.0, wilcoxon(mean.differences) * n_comparisons)
        found += decide(interval, interval, p_holm, effect, 1e-9, 0.05) == "better"
    return found / STUDIES


@pytest.mark.parametrize(
    ("n_cases", "n_seeds", "n_comparisons"),
    [(12, 1, 1), (12, 1, 10), (30, 1, 5), (100, 1, 39), (30, 3, 5), (12, 2, 4), (100, 3, 1)],
)
def test_what_is_resolvable_is_found_with_the_stated_power(n_cases, n_seeds, n_comparisons):
    difference = power.resolvable(n_cases, n_seeds, 1.0, n_comparisons)
    share = _share_found(n_cases, n_seeds, n_comparisons, difference)
    assert 0.8 - ERROR <= share <= 0.92


def test_resolvable_scales_with_sd_and_falls_with_cases():
    assert power.resolvable(30, 1, 4.0, 5) == pytest.approx(4 * power.resolvable(30, 1, 1.0, 5))
    found = [power.resolvable(n, 1, 1.0, 5) for n in (12, 30, 100)]
    assert found == sorted(found, reverse=True)
    assert power.resolvable(30, 1, 1.0, 1) < power.resolvable(30, 1, 1.0, 20)
    assert power.resolvable(30, 1, 1.0, 5, power=0.9) > power.resolvable(30, 1, 1.0, 5)


def test_six_cases_show_nothing_after_correction():
    assert power.smallest_p(6) == 0.03125
    assert power.can_be_significant(6, 1, 0.05)
    assert not power.can_be_significant(6, 2, 0.05)
    assert power.resolvable(6, 1, 4.0, 2) == math.inf
    assert math.isfinite(power.resolvable(6, 1, 4.0, 1))


def test_cases_needed_are_the_first_that_can_be_significant():
    for n_comparisons in (1, 2, 8, 39):
        n = power.cases_needed(n_comparisons, 0.05)
        assert power.can_be_significant(n, n_comparisons, 0.05)
        assert not power.can_be_significant(n - 1, n_comparisons, 0.05)


def test_statement_says_that_six_cases_are_too_few():
    text = power.power_statement(6, 3, 12, Statistics())
    assert "with 6 cases no comparison can be significant after correction" in text
    assert "At least 9 cases" in text


def test_statement_names_difference_power_and_sd():
    text = power.power_statement(30, 1, 8, Statistics())
    found = power.resolvable(30, 1, 4.0, 8)
    assert f"{found:.2g} Dice points is shown with 80% power" in text
    assert "assumed SD of paired differences 4 points" in text
    assert "One seed" in text
    seen = power.power_statement(30, 3, 8, Statistics(), sd=0.02)
    assert "SD seen in this study of paired differences 2 points" in seen
    assert "other trainings" in seen


def test_counts_are_said_in_singular():
    assert power.power_statement(12, 1, 1, Statistics()).startswith(
        "12 test cases, 1 seed, 1 comparison:"
    )


def test_a_plan_does_not_wait_for_scipy():
    code = "import sys, kdpipe.stats.power; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
