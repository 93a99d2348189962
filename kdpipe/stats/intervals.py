"""The mean of paired differences, and an interval that holds for few cases and fewer seeds.

Model: the difference of two arms on case `c` with seed `s` is `mean + case_c + seed_s + noise_cs`,
cases and seeds crossed. The variance of the mean is then `V = V_cases + V_seeds`: the variance of
the cases' means (over seeds) divided by the number of cases, and the variance between seeds divided
by the number of seeds. Both are estimated from mean squares (analysis of variance by moments;
Searle, Casella & McCulloch, Variance Components, 1992). The half width of the interval is
`sqrt(t_cases^2 V_cases + t_seeds^2 V_seeds)`: each part with the quantile of its own degrees of
freedom (Howe, J. Am. Stat. Assoc. 69, 1974).

Two or three seeds say next to nothing of their variance: with one degree of freedom the quantile
is 12.7. All arms of a study are trained with the same seeds, so the variance is pooled over arms
(the interaction of arm and seed; `(arms - 1)(seeds - 1)` degrees of freedom), and an arm that
scatters more than the others (F test, 10 %) is charged what it shows itself. With a single
comparison nothing can be pooled, and the interval is as wide as that. With a single seed there is
no part for seeds: the interval is for other cases, with these very networks.

Why not a bootstrap: with 12 cases percentile intervals cover 90 % and BCa intervals 88 %, and
drawing two or three seeds with replacement shows half or two thirds of their variance. A common
Satterthwaite t falls to 92 % where seeds differ. ``bench/interval_coverage.py`` measures all of
them, and ``docs/statistics.md`` has the numbers, and where this one does not hold.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from kdpipe.stats.pairing import Array, Block

#: level at which an arm's own scatter over seeds counts as larger than that of all arms
_OUTLIER = 0.1


class SeedScatter(NamedTuple):
    """Variance of a difference of two arms between seeds.

    Attributes:
        variance: what the scatter over cases does not explain, at least 0.
        observed: before that is subtracted.
        df: degrees of freedom; 0 with fewer than two seeds, cases or arms.
    """

    variance: float
    observed: float
    df: int


@dataclass(frozen=True)
class PairedMean:
    """The mean of paired differences.

    Attributes:
        differences: of the cases, averaged over seeds, shape `(cases,)`.
        n_seeds: that both arms have.
        n_left_out: pairs of case and seed in which one of the two arms has no value, or one of
            them an infinite one.
        seeds: variance between seeds.
    """

    differences: Array
    n_seeds: int
    n_left_out: int
    seeds: SeedScatter

    @property
    def mean(self) -> float:
        """The mean over cases; NaN without any."""
        return float(self.differences.mean()) if self.differences.size else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation over cases; NaN with fewer than two."""
        return float(self.differences.std(ddof=1)) if self.differences.size > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean, over cases and seeds."""
        return math.sqrt(self._case_variance + self._seed_variance)

    def half_width(self, confidence: float) -> float:
        """Return half the width of the interval; NaN with fewer than two cases."""
        n = self.differences.size
        if n < 2:
            return math.nan
        squared = t_quantile(confidence, n - 1) ** 2 * self._case_variance
        if self._seed_variance > 0:
            squared += t_quantile(confidence, self.seeds.df) ** 2 * self._seed_variance
        return math.sqrt(squared)

    @property
    def _case_variance(self) -> float:
        return self.sd**2 / self.differences.size if self.differences.size > 1 else math.nan

    @property
    def _seed_variance(self) -> float:
        return self.seeds.variance / self.n_seeds if self.n_seeds > 1 else 0.0


def paired_mean(first: Array, second: Array, pooled: SeedScatter) -> PairedMean:
    """Return the mean of `first - second`.

    A pair is left out where either has no finite value. A case counts by the mean of its seeds.

    Args:
        first: scores of an arm, shape `(cases, seeds)`.
        second: those of the other arm, likewise.
        pooled: scatter over seeds of all arms, see `seed_scatter`.
    """
    pair = np.stack([first, second])
    has_scores = np.any(~np.isnan(pair), axis=1)
    pair = pair[:, :, has_scores.all(0)]  # the seeds that both have
    valid = np.all(np.isfinite(pair), axis=0)
    cases = np.any(valid, axis=1)
    finite = np.where(valid, pair, 0.0)[:, cases]
    difference = finite[0] - finite[1]
    return PairedMean(
        differences=difference.sum(1) / valid[cases].sum(1),
        n_seeds=int(valid.any(0).sum()),
        n_left_out=int((~np.isnan(pair)).any(0).sum() - valid.sum()),
        seeds=_charged(_scatter(pair[:, valid.all(1)]), pooled),
    )


def seed_scatter(block: Block) -> SeedScatter:
    """Return the variance between seeds of a difference of two arms, pooled over all arms."""
    return _scatter(block.complete().values)


def _scatter(values: Array) -> SeedScatter:
    """Interaction of arm and seed in complete scores, shape `(arms, cases, seeds)`."""
    n_arms, n_cases, n_seeds = values.shape
    df = (n_arms - 1) * (n_seeds - 1)
    if df <= 0 or n_cases < 2:
        return SeedScatter(0.0, 0.0, 0)
    by_seed = values.mean(1)
    by_seed = by_seed - by_seed.mean(1, keepdims=True)
    by_seed -= by_seed.mean(0, keepdims=True)
    rest = values - values.mean(2, keepdims=True) - values.mean(1, keepdims=True)
    rest += values.mean((1, 2), keepdims=True)
    rest -= rest.mean(0, keepdims=True)
    observed = 2 * float((by_seed**2).sum()) / df
    noise = 2 * float((rest**2).sum()) / (df * (n_cases - 1) * n_cases)
    return SeedScatter(max(observed - noise, 0.0), observed, df)


def _charged(own: SeedScatter, pooled: SeedScatter) -> SeedScatter:
    """The scatter that a comparison answers for."""
    if pooled.df <= own.df:  # nothing is pooled
        return own
    if own.df == 0:
        return pooled
    stands_out = own.observed > pooled.observed * _f_quantile(own.df, pooled.df)
    if stands_out and own.variance > pooled.variance:
        return own._replace(df=pooled.df)
    return pooled


@functools.cache
def t_quantile(confidence: float, df: float) -> float:
    """Two-sided quantile of Student's t."""
    return float(special.stdtrit(df, 1 - (1 - confidence) / 2))


@functools.cache
def _f_quantile(df: int, df_pooled: int) -> float:
    return float(stats.f.isf(_OUTLIER, df, df_pooled))
