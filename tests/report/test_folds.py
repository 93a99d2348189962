"""Results over all folds: the numbers that the comparisons are about."""

import pandas as pd
import pytest
from studies import CWD, NONE, RUN, simple, tidy

from kdpipe.report.folds import ALL_FOLDS, whole_splits, with_all_folds
from kdpipe.stats.compare import compare_scores
from kdpipe.stats.summary import summarise_scores


def _study(folds: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of folds of unequal size, and their results with a cost and a watermark."""
    parts = [
        tidy(simple(n_cases=4 + 8 * fold, gain=0.01 + 0.02 * fold)).assign(fold=fold)
        for fold in range(folds)
    ]
    parts = [part.assign(case=part["case"] + f"_{part['fold'].iloc[0]}") for part in parts]
    scores = pd.concat(parts, ignore_index=True)
    results = summarise_scores(scores)
    return scores, results.assign(macs=5.0, selects_on_test=results["fold"] == 1)


def test_all_cases_count_once_as_in_the_comparisons():
    scores, results = _study()
    shown = with_all_folds(results, scores)
    assert list(shown) == list(results)
    pooled = shown[shown["fold"] == ALL_FOLDS].set_index(["method", "structure"])
    assert set(pooled["n_cases"]) == {16} and set(pooled["macs"]) == {5.0}
    assert pooled["selects_on_test"].all()  # as one of its folds
    of_arm = scores[scores["method"] == "cwd"]
    by_seed = of_arm.groupby("seed")["value"].mean()
    assert pooled.loc[("cwd", "mean"), "mean"] == pytest.approx(by_seed.mean())
    assert pooled.loc[("cwd", "mean"), "sd"] == pytest.approx(by_seed.std())
    table = compare_scores(scores, RUN).comparisons
    rows = table[(table["structure"] == "mean") & (table["against_kind"] == "none")]
    difference = rows.set_index("method").loc[CWD[1], "difference"]
    assert pooled.loc[("cwd", "mean"), "gain"] == pytest.approx(difference)
    assert pooled.loc[(NONE[1], "mean"), "gain"] == 0


def test_single_folds_follow_as_they_are():
    scores, results = _study()
    shown = with_all_folds(results, scores)
    assert shown["fold"].iloc[0] == ALL_FOLDS
    single = shown[shown["fold"] != ALL_FOLDS].reset_index(drop=True)
    pd.testing.assert_frame_equal(single.astype(results.dtypes), results)


def test_a_split_of_one_fold_stays_alone():
    scores, results = _study(folds=1)
    assert with_all_folds(results, scores) is results
    others = [table.assign(dataset="other") for table in _study()]
    both = [
        pd.concat(pair, ignore_index=True) for pair in zip((scores, results), others, strict=True)
    ]
    shown = with_all_folds(both[1], both[0])
    assert set(shown.loc[shown["fold"] == ALL_FOLDS, "dataset"]) == {"other"}
    whole = whole_splits(shown)
    assert set(zip(whole["dataset"], whole["fold"], strict=True)) == {
        ("other", ALL_FOLDS),
        ("phantom", 0),
    }
