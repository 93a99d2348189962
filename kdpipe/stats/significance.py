"""Wilcoxon's signed-rank test, Holm's correction, and effect sizes."""

from __future__ import annotations

import functools
import math

import numpy as np

from kdpipe.stats.pairing import Array

#: pairs up to which the null distribution is counted, not approximated
EXACT_UP_TO = 50
#: digits after which scores do not differ: sums in another order must not break ties
_DIGITS = 12


def wilcoxon(differences: Array) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test.

    Zeros are left out (Wilcoxon's rule). Up to `EXACT_UP_TO` pairs the p is exact, given the ranks
    as they are, ties included (where scipy approximates or draws); above, scipy's normal
    approximation with its correction for ties.

    Args:
        differences: one a case, shape `(cases,)`, finite.

    Returns:
        In (0, 1]; 1 where no case differs.
    """
    ranks, positive = _signed_ranks(differences)
    n = ranks.size
    if n == 0:
        return 1.0
    if n > EXACT_UP_TO:
        from scipy import stats  # takes a second to import: what plans a study does without

        given = np.round(differences, _DIGITS)
        return float(stats.wilcoxon(given[given != 0], method="approx").pvalue)
    doubled = np.rint(2 * ranks).astype(int)  # mid-ranks are halves
    counts = _null_distribution(tuple(sorted(doubled)))
    smaller = int(min(doubled[positive].sum(), doubled[~positive].sum()))
    return min(1.0, 2 * float(counts[: smaller + 1].sum() / 2.0**n))


def rank_biserial(differences: Array) -> float:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014), in [-1, 1].

    Rank sum of the positive differences minus that of the negative ones, divided by their sum;
    NaN without cases, 0 where no case differs.
    """
    if differences.size == 0:
        return math.nan
    ranks, positive = _signed_ranks(differences)
    total = ranks.sum()
    return float((ranks[positive].sum() - ranks[~positive].sum()) / total) if total else 0.0


def cohens_dz(differences: Array) -> float:
    """Return mean / SD (ddof 1) of the differences; NaN without scatter or with one case."""
    if differences.size < 2:
        return math.nan
    sd = float(np.round(differences, _DIGITS).std(ddof=1))
    return float(differences.mean() / sd) if sd > 0 else math.nan


def holm(p_values: Array, n_hypotheses: int | None = None) -> Array:
    """Return Holm's adjusted p-values (Scand. J. Stat. 6, 1979), in the order given.

    Args:
        p_values: of the comparisons that are made.
        n_hypotheses: of the family, at least as many as `p_values`; more where the comparisons
            were chosen from more (their p count as the smallest of the family, which is on the
            safe side).
    """
    p = np.asarray(p_values, dtype=float)
    total = p.size if n_hypotheses is None else n_hypotheses
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (total - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def attained_level(n: int, level: float) -> float:
    """Return the largest p of the exact test of `n` untied pairs that is at most `level`, or 0."""
    if n > EXACT_UP_TO:
        return level
    tail = rank_sum_levels(n)
    return float(tail[tail <= level * (1 + 1e-12)].max(initial=0.0))


def rank_sum_levels(n: int) -> Array:
    """Return the exact two-sided p by the smaller rank sum (0, 1, ...) of `n` untied pairs."""
    counts = _null_distribution(tuple(range(2, 2 * n + 1, 2)))[::2]
    levels: Array = 2 * np.cumsum(counts) / 2.0**n
    return levels


def _signed_ranks(differences: Array) -> tuple[Array, np.ndarray]:
    """Ranks of the sizes of the differences that are not 0, and which of them are positive."""
    from scipy.stats import rankdata

    differences = np.round(differences, _DIGITS)
    differences = differences[differences != 0]
    return rankdata(np.abs(differences)), differences > 0


@functools.lru_cache(maxsize=256)
def _null_distribution(doubled: tuple[int, ...]) -> Array:
    """Number of sign patterns by doubled rank sum; exact in floats up to 2^53, close above."""
    counts = np.zeros(sum(doubled) + 1)
    counts[0] = 1.0
    for rank in doubled:
        counts[rank:] += counts[:-rank].copy()
    return counts
