"""How stable is the order of the arms? Ranks under resampling of cases and seeds."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
from scipy import stats

from kdpipe.stats.pairing import Array, Block

COLUMNS = [
    *("dataset", "split", "student", "protocol", "metric", "teacher", "method"),
    *("mean_rank", "rank_low", "rank_high", "p_best"),
]


def rank_stability(block: Block, resamples: int, confidence: float) -> pd.DataFrame:
    """Return the ranks of all arms in a bootstrap over cases and, of several, over seeds.

    Each resample draws cases and seeds with replacement, the same for all arms, and ranks the
    arms' means; 1 is best, ties share their mean rank. Resampling two or three seeds shows less
    than their whole variance, so with few seeds ranks look somewhat more stable than they are.

    Args:
        block: only the cases and seeds that all arms have count.
        resamples: of the bootstrap; the draws follow from the keys of the block.
        confidence: of the percentile interval of the rank.

    Returns:
        Columns `COLUMNS`, a row an arm; all NaN where arms have no case in common.
    """
    ranks = _ranks(block, resamples)
    if ranks is None:
        summary = np.full((4, len(block.arms)), np.nan)
    else:
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        first = ranks == ranks.min(1, keepdims=True)
        shared = first / first.sum(1, keepdims=True)  # a tie for the first place is split
        summary = np.vstack([ranks.mean(0), np.quantile(ranks, tails, axis=0), shared.mean(0)])
    table = pd.DataFrame(block.arms, columns=["teacher", "method"])
    table = table.assign(**{name: block.keys[name] for name in COLUMNS[:5]})
    return table.assign(**dict(zip(COLUMNS[-4:], summary, strict=True)))[COLUMNS]


def _ranks(block: Block, resamples: int) -> Array | None:
    """Ranks, shape `(resamples, arms)`."""
    values = block.complete().values
    n_arms, n_cases, n_seeds = values.shape
    if not values.size:
        return None
    rng = np.random.default_rng(zlib.crc32("/".join(block.keys.values()).encode()))
    cases = rng.multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=resamples)
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples)
    weights = (cases[:, :, None] * seeds[:, None]).reshape(resamples, -1)
    means = weights @ values.reshape(n_arms, -1).T / (n_cases * n_seeds)
    ranks: Array = stats.rankdata(-np.round(means, 12), axis=1)
    return ranks
