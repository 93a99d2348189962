"""Does a published number hold? Two intervals, ours and theirs, and a verdict.

Theirs is the printed mean with the t interval of its runs, widened by the margin below which
differences do not matter: the *core*. Where our test cases are not theirs, the choice of their
cases widens it, with the scatter over cases that we see, as papers do not print it: the *reach*.
Ours is the interval of `kdpipe.stats.intervals`: over seeds and, unless the cases are the same,
over cases.

A printed gain that is larger than the margin is one: its interval ends at 0.

Reproduced: ours lies within the core. Not reproduced: ours lies beyond the reach. Else it cannot be
told, and `settles` says how many cases or seeds would tell. A table of few cases has a wide reach;
between core and reach no number of ours settles it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd
from scipy import special

from kdpipe.stats.intervals import PairedMean, t_quantile

REPRODUCED, NOT_REPRODUCED, CANNOT_TELL = "reproduced", "not reproduced", "cannot tell"


@dataclass(frozen=True)
class Estimate:
    """A mean and what it varies by; NaN where that is not known.

    Attributes:
        mean: over runs and cases.
        run_sd: standard deviation of the mean of a single run, on these very cases.
        runs: trainings behind the mean.
        run_df: degrees of freedom of `run_sd`.
        excess_sd: what of `run_sd` the scatter over cases does not explain.
        case_sd: standard deviation over cases of a case's mean over runs.
        cases: their number; 0 if unknown.
    """

    mean: float
    run_sd: float
    runs: int
    run_df: float
    excess_sd: float = math.nan
    case_sd: float = math.nan
    cases: int = 0

    def minus(self, other: Estimate) -> Estimate:
        """Return the estimate of a difference of independent runs (Satterthwaite's df)."""
        variances = [e.run_sd**2 / e.runs for e in (self, other)]
        runs, total = min(self.runs, other.runs), sum(variances)
        parts = [v**2 / e.run_df for v, e in zip(variances, (self, other), strict=True)]
        df = total**2 / sum(parts) if total > 0 else self.run_df
        return replace(
            self, mean=self.mean - other.mean, run_sd=math.sqrt(total * runs), runs=runs, run_df=df
        )

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit, or turned round if `factor` is negative."""
        size = abs(factor)
        return replace(
            self,
            mean=self.mean * factor,
            run_sd=self.run_sd * size,
            excess_sd=self.excess_sd * size,
            case_sd=self.case_sd * size,
        )


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; NaN where nothing is known of the scatter."""

    low: float
    high: float


def estimate(values: pd.DataFrame) -> Estimate:
    """Return the estimate of scores: a row a case, a column a seed; NaN values are left out.

    All scatter over seeds counts as `excess_sd`: a little wide where the cases are others.
    """
    by_seed, by_case = values.mean(axis=0), values.mean(axis=1).dropna()
    run_sd = float(by_seed.std())
    return Estimate(
        mean=float(by_seed.mean()),
        run_sd=run_sd,
        runs=len(by_seed),
        run_df=len(by_seed) - 1,
        excess_sd=run_sd,
        case_sd=float(by_case.std()),
        cases=len(by_case),
    )


def estimate_gain(paired: PairedMean) -> Estimate:
    """Return the estimate of a difference that is paired by case and seed."""
    seeds, several = paired.seeds, paired.n_seeds > 1 and paired.seeds.df > 0
    return Estimate(
        mean=paired.mean,
        run_sd=math.sqrt(seeds.observed) if several else math.nan,
        runs=paired.n_seeds,
        run_df=seeds.df,
        excess_sd=math.sqrt(seeds.variance) if several else math.nan,
        case_sd=paired.sd,
        cases=paired.differences.size,
    )


def with_borrowed_runs(one: Estimate, other: Estimate) -> Estimate:
    """Return `one` with the scatter over runs of `other` if it has none of its own."""
    if not math.isnan(one.run_sd):
        return one
    return replace(one, run_sd=other.run_sd, excess_sd=other.run_sd, run_df=other.run_df)


def interval(of: Estimate, confidence: float, *, over_cases: bool, margin: float = 0.0) -> Interval:
    """Return the interval of a mean: over its runs and, if `over_cases`, over its cases."""
    sd = of.excess_sd if over_cases else of.run_sd
    squared = _squared_half(sd, of.runs, of.run_df, confidence)
    if over_cases:
        squared += _squared_half(of.case_sd, of.cases, of.cases - 1, confidence)
    half = margin + math.sqrt(squared)
    return Interval(of.mean - half, of.mean + half)


def beyond_zero(bounds: Interval, mean: float, margin: float) -> Interval:
    """Return `bounds` cut at 0 if `mean`, of a gain or a loss, is larger than the margin."""
    if mean > margin:
        return Interval(max(bounds.low, 0.0), bounds.high)
    if mean < -margin:
        return Interval(bounds.low, min(bounds.high, 0.0))
    return bounds


def verdict(ours: Interval, core: Interval, reach: Interval) -> str:
    """Say whether `ours` lies within `core`, beyond `reach`, or neither."""
    if ours.low >= core.low and ours.high <= core.high:
        return REPRODUCED
    if ours.high < reach.low or ours.low > reach.high:
        return NOT_REPRODUCED
    return CANNOT_TELL


def settles(
    ours: Estimate, core: Interval, reach: Interval, confidence: float, *, over_cases: bool
) -> tuple[int, str]:
    """Return how many ``cases`` (or ``seeds``) would settle it if our mean stayed as it is.

    With that many our interval lies within `core`, or beyond `reach`. 0 where no number would: our
    mean lies between them, or nothing is known of the scatter.
    """
    within = min(ours.mean - core.low, core.high - ours.mean)
    beyond = max(reach.low - ours.mean, ours.mean - reach.high)
    room = max(within, beyond)
    if not room > 0:
        return 0, ""
    allowed = (room / special.ndtri(0.5 + confidence / 2)) ** 2
    seeds = ours.excess_sd**2 / ours.runs
    if not over_cases:
        return _number(ours.run_sd**2, allowed, ours.runs), "seeds"
    if allowed > seeds:
        return _number(ours.case_sd**2, allowed - seeds, ours.cases), "cases"
    return _number(ours.excess_sd**2, allowed, ours.runs), "seeds"


def _number(variance: float, allowed: float, now: int) -> int:
    """How many values of `variance` have a mean of variance `allowed`; more than `now`."""
    if math.isnan(variance) or variance / allowed > 1e6:
        return 0
    return max(math.ceil(variance / allowed), now + 1)


def _squared_half(sd: float, n: int, df: float, confidence: float) -> float:
    """A part of the squared half width; each has the quantile of its own degrees of freedom."""
    if sd == 0:
        return 0.0
    if math.isnan(sd) or n < 1 or not df > 0:
        return math.nan
    return t_quantile(confidence, df) ** 2 * sd**2 / n
