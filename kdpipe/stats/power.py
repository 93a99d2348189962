"""What a study can show, before it is run: the smallest difference that so many cases resolve.

scipy is imported when a number is computed: a plan must be printed without waiting for it.
"""

from __future__ import annotations

import functools
import math

from kdpipe.settings import Statistics
from kdpipe.stats.wording import plural

#: efficiency of Wilcoxon's test against Student's where differences are normal (Pitman): as if
#: there were this many cases for each one
_EFFICIENCY = 3 / math.pi
#: share of the variance of a case's difference (mean over seeds) that another set of seeds would
#: redraw. Not known before a study; half is what two networks of like quality show.
_NOISE = 0.5
#: below this many times the smallest p, the noncentral t promises too much
_NEAR_SMALLEST = 16
#: simulated studies where it does
_DRAWS = 20_000


def smallest_p(n_cases: int) -> float:
    """Return the smallest two-sided p that the exact Wilcoxon test can give: all signs equal."""
    return min(1.0, 2.0 ** (1 - n_cases))


def can_be_significant(n_cases: int, n_comparisons: int, alpha: float) -> bool:
    """Say whether the smallest of `n_comparisons` p-values can pass Holm's first step."""
    return smallest_p(n_cases) * max(n_comparisons, 1) <= alpha


def cases_needed(n_comparisons: int, alpha: float) -> int:
    """Return the number of cases from which anything can be significant."""
    n = 1
    while not can_be_significant(n, n_comparisons, alpha):
        n += 1
    return n


def resolvable(
    n_cases: int,
    n_seeds: int,
    sd: float,
    n_comparisons: int,
    confidence: float = 0.95,
    power: float = 0.8,
) -> float:
    """Return the smallest true mean difference that comes out as better with the set power.

    Two things must hold (`kdpipe.stats.verdict`). Wilcoxon's p must pass Holm's correction, in the
    worst case its first step, which is Bonferroni's: a noncentral t at the level that the exact
    test attains, with Wilcoxon's efficiency; counted in simulations where only the very smallest
    p-values pass. And the interval over cases and seeds must exclude 0:
    with several seeds it varies with what they happen to scatter, even if training has no effect
    of its own; this assumes that it has none, and that an arm is pooled with the others.

    Args:
        n_cases: test cases.
        n_seeds: of each arm.
        sd: of the paired differences over cases, each averaged over seeds; sets the unit.
        n_comparisons: of the family, at least 1.
        confidence: 1 - alpha.
        power: probability of being found, in (0.5, 1).

    Returns:
        In the unit of `sd`; infinite if no difference can be significant.
    """
    tested = _tested(n_cases, max(n_comparisons, 1), confidence, power)
    if n_seeds < 2 or math.isinf(tested):
        return sd * tested
    return sd * max(tested, _covered(n_cases, n_seeds, max(n_comparisons, 1), confidence, power))


def resolved_by(
    sd: float,
    n_cases: int,
    n_comparisons: int,
    half_width: float,
    standard_error: float,
    settings: Statistics,
) -> float:
    """Return what a finished comparison would have shown with the set power.

    Args:
        sd: of its paired differences over cases.
        n_cases: behind it.
        n_comparisons: of its family.
        half_width: of its interval.
        standard_error: of its mean.
        settings: confidence and power.
    """
    if n_cases < 2:
        return math.inf
    from scipy.special import ndtri

    tested = sd * _tested(n_cases, n_comparisons, settings.confidence, settings.power)
    return max(tested, half_width + float(ndtri(settings.power)) * standard_error)


def power_statement(
    n_cases: int,
    n_seeds: int,
    n_comparisons: int,
    settings: Statistics,
    sd: float | None = None,
    resolved: float | None = None,
) -> str:
    """Say in one to three sentences what a study of this size can show in Dice.

    Args:
        n_cases: test cases of the split, all folds together.
        n_seeds: of each arm.
        n_comparisons: arms beside the undistilled student.
        settings: confidence, power, assumed SD.
        sd: of paired Dice differences over cases, as a fraction; the assumed one if None.
        resolved: what the intervals of a finished study resolve (``power.csv``), as a fraction.
    """
    size = (
        f"{plural(n_cases, 'test case')}, {plural(n_seeds, 'seed')}, "
        f"{plural(n_comparisons, 'comparison')}"
    )
    alpha = 1 - settings.confidence
    if not can_be_significant(n_cases, n_comparisons, alpha):
        return f"{size}: {_nothing(n_cases, n_comparisons, alpha)}"
    source = "assumed SD" if sd is None else "the comparison in the middle; SD seen in this study"
    spread = settings.pilot_sd_percent / 100 if sd is None else sd
    shown = resolved
    if shown is None:
        rules = (settings.confidence, settings.power)
        shown = resolvable(n_cases, n_seeds, spread, n_comparisons, *rules)
    if shown == 0:
        return f"{size}: the arms score alike, case by case, so nothing says what would be shown."
    return (
        f"{size}: a true difference of {shown * 100:.2g} Dice points is shown with "
        f"{settings.power:.0%} power after Holm's correction ({source} of paired differences "
        f"{spread * 100:.2g} points). {_SEEDS.get(n_seeds, _MANY)}"
    )


def _nothing(n_cases: int, n_comparisons: int, alpha: float) -> str:
    after = " after correction" if n_comparisons > 1 else ""
    return (
        f"with {plural(n_cases, 'case')} no comparison can be significant{after}; the smallest "
        f"possible p is {smallest_p(n_cases):.2g} and {alpha / max(n_comparisons, 1):.2g} is "
        f"needed. At least {cases_needed(n_comparisons, alpha)} cases would do."
    )


_SEEDS = {
    1: "One seed: intervals cover other cases, not other trainings.",
    2: "Two seeds say little of the training's own noise; three or more resolve more.",
}
_MANY = "Intervals cover other cases and other trainings."


@functools.cache
def _tested(n_cases: int, n_comparisons: int, confidence: float, power: float) -> float:
    """Difference in SDs that Wilcoxon's test shows after Bonferroni."""
    from kdpipe.stats.significance import attained_level

    level = attained_level(n_cases, (1 - confidence) / n_comparisons)
    if level == 0:
        return math.inf
    from scipy import optimize, special

    if level < _NEAR_SMALLEST * smallest_p(n_cases):
        return _simulated(n_cases, level, power)
    df = n_cases - 1
    critical = special.stdtrit(df, 1 - level / 2)

    def lacking(noncentrality: float) -> float:
        return float(1 - special.nctdtr(df, noncentrality, critical)) - power

    noncentrality = optimize.brentq(lacking, 0, 2 * critical + 6)
    return float(noncentrality / math.sqrt(n_cases * _EFFICIENCY))


def _simulated(n_cases: int, level: float, power: float) -> float:
    """The same, counted in simulated studies: nearly all signs must be equal to reach `level`."""
    import numpy as np
    from scipy import optimize
    from scipy.stats import rankdata

    from kdpipe.stats.significance import rank_sum_levels

    # of the sum of the ranks of negative differences; p grows with it, from the smallest possible
    sums = rank_sum_levels(n_cases)
    allowed = int(np.searchsorted(sums, level * (1 + 1e-9), side="right")) - 1
    noise = np.random.default_rng(n_cases).normal(size=(_DRAWS, n_cases))

    def lacking(difference: float) -> float:
        drawn = noise + difference
        negative = np.where(drawn < 0, rankdata(np.abs(drawn), axis=1), 0).sum(1)
        return float((negative <= allowed).mean()) - power

    return float(optimize.brentq(lacking, 0, 6, xtol=1e-3))


@functools.cache
def _covered(
    n_cases: int, n_seeds: int, n_comparisons: int, confidence: float, power: float
) -> float:
    """Difference in SDs over cases at which the interval over cases and seeds excludes 0."""
    import numpy as np
    from scipy import optimize, special, stats

    from kdpipe.stats.intervals import t_quantile

    df = n_comparisons * (n_seeds - 1)
    grid = (np.arange(1000) + 0.5) / 1000
    excess = np.maximum(stats.f.ppf(grid, df, df * (n_cases - 1)) - 1, 0) * _NOISE
    squared = t_quantile(confidence, n_cases - 1) ** 2
    half_width = np.sqrt(squared + t_quantile(confidence, df) ** 2 * excess)

    def lacking(difference: float) -> float:
        return float(special.ndtr(difference - half_width).mean()) - power

    return float(optimize.brentq(lacking, 0, half_width.max() + 10) / math.sqrt(n_cases))
