"""Results over all folds of a split: each case is tested in one fold, so they are one test.

The comparisons pool folds too; a reader of the tables needs the number that they are about.
"""

from __future__ import annotations

import pandas as pd

from kdpipe.stats.scores import ROW
from kdpipe.stats.summary import summarise_scores

#: stands in the column ``fold``
ALL_FOLDS = "all"
_SPLIT = ["dataset", "split"]
_ARM = [name for name in ROW if name != "fold"]


def with_all_folds(results: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return `results` with rows over all folds first, where a split has several.

    Args:
        results: rows of ``results.csv``.
        scores: tidy table that they come from; empty if it is not at hand.

    Returns:
        The same columns; ``fold`` is `ALL_FOLDS` in the new rows. Costs are those of any fold.
    """
    several = results[results.groupby(_SPLIT)["fold"].transform("nunique") > 1]
    if several.empty or scores.empty:
        return results
    wanted = several[[*_SPLIT, "protocol"]].drop_duplicates()
    pooled = summarise_scores(scores.merge(wanted, on=list(wanted)).assign(fold=ALL_FOLDS))
    facts = several.groupby(_ARM, sort=False).agg(
        {name: "max" if name == "selects_on_test" else "first" for name in _facts(results, pooled)}
    )
    pooled = pooled.merge(facts.reset_index(), on=_ARM, how="left", validate="many_to_one")
    folds = results.assign(fold=results["fold"].astype(object))
    return pd.concat([pooled[list(results)], folds], ignore_index=True)


def whole_splits(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all folds where there are such, those of the only fold elsewhere."""
    pooled = results["fold"] == ALL_FOLDS
    return results[pooled | ~pooled.groupby([results[name] for name in _SPLIT]).transform("any")]


def _facts(results: pd.DataFrame, pooled: pd.DataFrame) -> list[str]:
    return [name for name in results.columns if name not in pooled]
