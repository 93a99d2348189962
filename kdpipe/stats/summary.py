"""From scores of single cases to means: what the tables print and a claim recomputes.

Values are averaged over the structures of each case, over the cases of each seed, then summarised
over seeds. The mean over structures is thus taken case by case, as the comparisons pair cases; a
structure that is left out of a case (missing in both volumes) does not count there.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdpipe.errors import DataError
from kdpipe.protocols import direction
from kdpipe.stats.scores import CELL, METRIC, NONE, OVERALL, ROW
from kdpipe.tuning import TUNED


def summarise_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a network of the grid (without seed), structure and metric.

    Args:
        scores: tidy table of `kdpipe.metrics.folders`, with the key columns `CELL`.

    Returns:
        Columns `ROW`, ``structure`` (`OVERALL` is the mean over structures), `METRIC`; ``mean``
        and ``sd`` (ddof 1, NaN for one seed) over the means of the seeds; ``n_seeds``; over all
        seeds, ``n_valid`` values, ``n_missed`` structures that only the reference has and
        ``n_false`` that only the prediction has; ``gain`` over the undistilled student and
        ``gain_tuned`` over the tuned one (positive is better, NaN where there is none);
        ``n_cases`` scored.

    Raises:
        DataError: a structure is called `OVERALL`.
    """
    if (named := scores.loc[scores["structure"] == OVERALL, "dataset"]).size:
        raise DataError(
            f"{named.iloc[0]}: a structure is called {OVERALL!r}, which is the mean over "
            "structures here. Rename it in the data set's card"
        )
    results = (
        per_seed(scores)
        .groupby([*ROW, "structure", *METRIC], sort=False)
        .agg(
            mean=("value", "mean"),
            sd=("value", "std"),
            n_seeds=("seed", "nunique"),
            n_valid=("n_valid", "sum"),
            n_missed=("n_missed", "sum"),
            n_false=("n_false", "sum"),
        )
        .reset_index()
    )
    results["gain"] = _gain(results, NONE)
    results["gain_tuned"] = _gain(results, NONE + TUNED)
    cases = scores.groupby(ROW, sort=False).agg(n_cases=("case", "nunique")).reset_index()
    return results.merge(cases, on=ROW, how="left", validate="many_to_one")


def per_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the means over cases of each `CELL`, structure and metric, with `OVERALL`.

    Columns: `CELL`, `METRIC`, ``structure``, ``value``, ``n_valid``, ``n_missed``, ``n_false``.
    """
    scores = scores.assign(
        n_missed=scores["status"] == "missing_in_prediction",
        n_false=scores["status"] == "missing_in_reference",
        n_valid=scores["value"].notna(),
    )
    counts = {name: (name, "sum") for name in ("n_valid", "n_missed", "n_false")}
    by_case = scores.groupby([*CELL, *METRIC, "case"], sort=False)
    overall = by_case.agg(value=("value", "mean"), **counts).reset_index()
    rows = pd.concat([scores, overall.assign(structure=OVERALL)], ignore_index=True)
    groups = rows.groupby([*CELL, *METRIC, "structure"], sort=False)
    return groups.agg(value=("value", "mean"), **counts).reset_index()


def _gain(results: pd.DataFrame, baseline: str) -> pd.Series:
    """Oriented difference to the row of `baseline` with the same student; NaN for teachers."""
    same = ["dataset", "split", "fold", "student", "structure", *METRIC]
    students = results["role"] == "student"
    means = results[students & (results["method"] == baseline)].set_index(same)["mean"]
    against = means.reindex(pd.MultiIndex.from_frame(results[same])).to_numpy()
    pairs = list(zip(results["protocol"], results["metric"], strict=True))
    known = {pair: _sign(*pair) for pair in set(pairs)}
    sign = np.array([known[pair] for pair in pairs])
    with np.errstate(invalid="ignore"):  # two infinite distances have no difference
        gain = sign * (results["mean"].to_numpy() - against)
    return pd.Series(gain).where(students.to_numpy())


def _sign(protocol: str, metric: str) -> float:
    """Which direction is better; NaN, and so no gain, where neither is."""
    return direction(protocol, metric) or np.nan
