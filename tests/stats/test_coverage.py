"""Do the intervals hold, and is nothing found where there is nothing?

`bench/interval_coverage.py` is the long form, with other methods beside ours.
"""

from functools import cache

import numpy as np
import pytest
from dicelike import DiceLike

from kdpipe.stats.intervals import paired_mean, seed_scatter
from kdpipe.stats.pairing import Block
from kdpipe.stats.significance import rank_biserial, wilcoxon
from kdpipe.stats.verdict import decide

STUDIES = 2000
GAP = 0.15  # logit, 1.7 points
ARMS = (("no_teacher", "none"), ("t", "same"), ("t", "better"))
SETTINGS = {
    "one seed": (DiceLike(), 1),
    "two seeds that agree": (DiceLike(), 2),
    "three seeds, noisy training": (DiceLike(sd_arm=0.1, sd_noise=0.4), 3),
    "two seeds that differ": (DiceLike(sd_seed=0.05), 2),
    "three seeds that differ much": (DiceLike(sd_seed=0.15), 3),
}
GRID = [(name, n_cases) for name in SETTINGS for n_cases in (12, 30, 100)]


@cache
def _rates(name: str, n_cases: int) -> dict[str, float]:
    """Shares of studies: the interval covers the real gap; a gap is found that is not there."""
    setting, n_seeds = SETTINGS[name]
    rng = np.random.default_rng([n_cases, n_seeds])
    truth = setting.expected(GAP) - setting.expected(0.0)
    covered, by_p, by_verdict = [], [], []
    for _ in range(STUDIES):
        values = setting.draw(rng, (0.0, 0.0, GAP), n_cases, n_seeds)
        pooled = seed_scatter(Block({}, ARMS, values))
        same, better = (paired_mean(values[arm], values[0], pooled) for arm in (1, 2))
        covered.append(abs(better.mean - truth) <= better.half_width(0.95))
        half, p_value = same.half_width(0.95), wilcoxon(same.differences)
        interval = (same.mean - half, same.mean + half)
        effect = rank_biserial(same.differences)
        verdict = decide(interval, interval, p_value, effect, 1e-9, 0.05)
        by_p.append(p_value <= 0.05)
        by_verdict.append(verdict != "cannot tell")
    means = map(np.mean, (covered, by_p, by_verdict))
    return dict(zip(("covered", "p", "verdict"), map(float, means), strict=True))


@pytest.mark.parametrize(("name", "n_cases"), GRID)
def test_intervals_cover_the_truth(name, n_cases):
    assert 0.93 <= _rates(name, n_cases)["covered"] <= 0.97


@pytest.mark.parametrize(("name", "n_cases"), GRID)
def test_no_difference_is_found_where_there_is_none(name, n_cases):
    assert _rates(name, n_cases)["verdict"] <= 0.055


@pytest.mark.parametrize(("name", "n_cases"), [pair for pair in GRID if "differ" not in pair[0]])
def test_wilcoxons_p_keeps_its_level_where_seeds_agree(name, n_cases):
    assert _rates(name, n_cases)["p"] <= 0.055


def test_an_interval_without_seeds_would_not_hold():
    """What the part for seeds is for: the study above would be wrong in every third interval."""
    setting, n_seeds = SETTINGS["three seeds that differ much"]
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(500):
        values = setting.draw(rng, (0.0, 0.0), 100, n_seeds)
        mean = paired_mean(values[1], values[0], seed_scatter(Block({}, ARMS[:2], values)))
        missed.append(abs(mean.mean) > 1.984 * mean.sd / 10)
    assert np.mean(missed) > 0.2


def test_an_arm_whose_seeds_scatter_more_is_charged_its_own_scatter():
    rng = np.random.default_rng(0)
    steady = rng.normal(0.8, 0.01, (8, 40, 3))
    wild = rng.normal(0.8, 0.01, (1, 40, 3)) + np.array([-0.1, 0.0, 0.1])
    values = np.concatenate([steady, wild])
    arms = tuple(("t", str(index)) for index in range(9))
    pooled = seed_scatter(Block({}, arms, values))
    of_wild = paired_mean(values[8], values[0], pooled)
    of_steady = paired_mean(values[1], values[0], pooled)
    assert of_wild.seeds.variance == pytest.approx(0.01, rel=0.2)
    assert of_steady.seeds.variance < 0.3 * of_wild.seeds.variance
    assert of_wild.half_width(0.95) > 1.5 * of_steady.half_width(0.95)
