"""From the tidy table to arrays: the scores of all arms on the same cases and seeds.

An *arm* is (teacher, method) for one student. Cases of all folds of a split are pooled, as each
case is tested in one fold. Cases and seeds are crossed: the network of a seed scores every case,
and a seed gives all arms the same initial weights and crops, so arms pair by case *and* by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdpipe.protocols import direction
from kdpipe.stats.scores import METRIC, mean_over_structures
from kdpipe.tuning import TUNED

Array = NDArray[np.float64]
Arm = tuple[str, str]

#: what is compared within itself
FIELD = ["dataset", "split", "student"]
_BLOCK = [*FIELD, *METRIC, "structure"]


@dataclass(frozen=True)
class Block:
    """All arms of one student by one metric on one structure.

    Attributes:
        keys: dataset, split, student, protocol, metric, unit, structure.
        arms: (teacher, method) in the order of the study.
        values: scores, higher is better, shape `(arms, cases, seeds)`; NaN where there is none,
            minus infinity where a protocol gives a missed structure an infinite distance.
    """

    keys: dict[str, str]
    arms: tuple[Arm, ...]
    values: Array

    def find(self, method: str) -> int | None:
        """Return the position of the only arm of `method`; None if there is none or several."""
        found = [index for index, arm in enumerate(self.arms) if arm[1] == method]
        return found[0] if len(found) == 1 else None

    def default_of(self, arm: int) -> int | None:
        """Return the position of the arm that a tuned one is tuned from."""
        teacher, method = self.arms[arm]
        if not method.endswith(TUNED):
            return None
        default = (teacher, method.removesuffix(TUNED))
        return self.arms.index(default) if default in self.arms else None

    def complete(self) -> Block:
        """Return the block of the seeds and cases that all arms have; both may be none."""
        seeds = np.isfinite(self.values).any(1).all(0)
        values = self.values[:, :, seeds]
        cases = np.isfinite(values).all((0, 2)) & bool(seeds.any())
        return replace(self, values=values[:, cases])

    def means(self) -> Array:
        """Return the mean of each arm over seeds, then over cases, of those that all arms have.

        Falls back on what each arm has where they have nothing in common; NaN without scores.
        """
        complete = self.complete().values
        values = complete if complete.size else self.values
        return _nanmean(_nanmean(values, 2), 1)


def blocks(scores: pd.DataFrame, protocols: Sequence[str]) -> Iterator[Block]:
    """Yield the students' scores by metric and structure; first the mean over structures.

    The mean over structures is that of `kdpipe.stats.summary`: of each case, over the structures
    that have a value. Metrics of which neither direction is better are left out.

    Args:
        scores: tidy table, columns `kdpipe.stats.scores.SCORES`.
        protocols: those to compare by.

    Raises:
        ConfigError: a protocol or metric in the table that kdpipe does not know.
    """
    rows = scores[(scores["role"] == "student") & scores["protocol"].isin(protocols)]
    pairs = rows[["protocol", "metric"]].drop_duplicates().itertuples(index=False)
    signs = {tuple(pair): direction(*pair) for pair in pairs}
    index = pd.MultiIndex.from_frame(rows[["protocol", "metric"]])
    sign = np.array([signs[pair] for pair in index], dtype=float)
    rows = rows.assign(value=rows["value"].to_numpy(dtype=float) * sign)[sign != 0]
    arm = ["teacher", "method", "fold", "seed", "case"]
    overall = mean_over_structures(rows, [*FIELD, *METRIC, *arm])
    rows = pd.concat([overall, rows], ignore_index=True)
    for keys, group in rows.groupby(_BLOCK, sort=False):
        yield _block(dict(zip(_BLOCK, map(str, keys), strict=True)), group)


def _block(keys: dict[str, str], rows: pd.DataFrame) -> Block:
    """Arms stay in order; cases and seeds are sorted, so that the order of rows does not matter."""
    pairs = pd.MultiIndex.from_frame(rows[["teacher", "method"]])
    arm, arms = pd.factorize(pairs)
    case, cases = pd.factorize(rows["case"], sort=True)
    seed, seeds = pd.factorize(rows["seed"], sort=True)
    shape = (len(arms), len(cases), len(seeds))
    value = rows["value"].to_numpy(dtype=float)
    valid = ~np.isnan(value)
    flat = np.ravel_multi_index((arm[valid], case[valid], seed[valid]), shape)
    size = int(np.prod(shape))
    count = np.bincount(flat, minlength=size)
    total = np.bincount(flat, weights=value[valid], minlength=size)
    values = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return Block(keys, tuple((str(t), str(m)) for t, m in arms), values.reshape(shape))


def _nanmean(values: Array, axis: int) -> Array:
    """NaN where there is no value, without a warning."""
    valid = np.isfinite(values)
    count = valid.sum(axis)
    total = np.where(valid, values, 0.0).sum(axis)
    means: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means
