import numpy as np
import pandas as pd
import pytest
from studies import CWD, KD, NONE, RUN, TUNED_KD, TUNED_NONE, simple, tidy

from kdpipe.errors import ConfigError
from kdpipe.stats.compare import COMPARISONS, POWER, compare_scores
from kdpipe.stats.pairing import blocks
from kdpipe.stats.ranks import COLUMNS
from kdpipe.stats.significance import holm
from kdpipe.stats.summary import summarise_scores
from kdpipe.stats.verdict import decide


def _row(table: pd.DataFrame, arm, kind="none", structure="mean", metric="dice") -> pd.Series:
    keys = {"teacher": arm[0], "method": arm[1], "against_kind": kind}
    keys |= {"structure": structure, "metric": metric}
    rows = table[(table[list(keys)] == list(keys.values())).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_columns_are_those_of_the_contract():
    result = compare_scores(tidy(simple()), RUN)
    assert list(result.comparisons) == COMPARISONS
    assert list(result.ranks) == COLUMNS
    assert list(result.power) == POWER


def test_difference_is_that_of_the_means_of_the_tables():
    scores = tidy(simple())
    results = summarise_scores(scores)
    gain = results[(results["method"] == "cwd") & (results["structure"] == "mean")]["gain"]
    row = _row(compare_scores(scores, RUN).comparisons, CWD)
    assert row["difference"] == pytest.approx(gain.iloc[0])
    assert row["low"] < row["difference"] < row["high"]


def test_better_equivalent_and_what_they_are_compared_with():
    table = compare_scores(tidy(simple()), RUN).comparisons
    assert _row(table, CWD)["verdict"] == "better"
    assert _row(table, KD)["verdict"] == "equivalent"
    for arm in (NONE, KD):
        row = _row(table, arm, "best")
        assert (row["against_teacher"], row["against_method"]) == CWD
        assert row["verdict"] == "worse"
    assert not ((table["against_kind"] == "best") & (table["method"] == "cwd")).any()
    assert set(table["against_kind"]) == {"none", "best"}


def test_distances_are_oriented():
    scores = {arm: 10 * values for arm, values in simple().items()}
    table = compare_scores(tidy(scores, metric="hd95_max", unit="mm"), RUN).comparisons
    row = _row(table, CWD, metric="hd95_max")
    assert row["difference"] == pytest.approx(-0.5, abs=0.1)  # a larger distance is worse
    assert (row["verdict"], row["margin"]) == ("worse", 0.5)


def test_metrics_without_a_direction_and_other_protocols_are_left_out():
    tables = [
        tidy(simple()),
        tidy(simple(), metric="volume_error"),
        tidy(simple(), protocol="medpy"),
    ]
    table = compare_scores(pd.concat(tables), RUN).comparisons
    assert set(table["metric"]) == {"dice"} and set(table["protocol"]) == {"strict_mm"}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="no_such"):
        compare_scores(tidy(simple(), metric="no_such"), RUN)


def test_mean_over_structures_is_taken_within_the_case():
    scores = simple()
    half = {arm: values.copy() for arm, values in scores.items()}
    for values in half.values():
        values[3:] = np.nan  # a structure that few cases have
    tables = [tidy(scores), tidy({a: v - 0.3 for a, v in half.items()}, structure="tumour")]
    table = compare_scores(pd.concat(tables), RUN).comparisons
    overall = _row(table, CWD)
    np.testing.assert_allclose(
        overall["difference"], (scores[CWD].mean(1) - scores[NONE].mean(1)).mean()
    )
    assert (overall["n_cases"], _row(table, CWD, structure="tumour")["n_cases"]) == (20, 3)


def test_families_are_arms_on_the_mean_and_arms_by_structures_else():
    tables = [tidy(simple()), tidy(simple(gain=0.01), structure="tumour")]
    table = compare_scores(pd.concat(tables), RUN).comparisons
    to_none = table[table["against_kind"] == "none"]
    overall = to_none[to_none["structure"] == "mean"]
    single = to_none[to_none["structure"] != "mean"]
    assert (len(overall), len(single)) == (2, 4)
    for family in (overall, single):
        np.testing.assert_allclose(family["p_holm"], holm(family["p_value"].to_numpy()))


def test_the_best_is_chosen_so_holm_counts_all_pairs():
    table = compare_scores(tidy(simple(gain=0.01)), RUN).comparisons
    rows = table[(table["against_kind"] == "best") & (table["structure"] == "mean")]
    np.testing.assert_allclose(rows["p_holm"], holm(rows["p_value"].to_numpy(), 3))
    assert (rows["n_comparisons"] == 3).all()


def test_tuned_arms_against_the_tuned_student_and_their_own_default():
    scores = simple()
    scores |= {TUNED_NONE: scores[NONE] + 0.02, TUNED_KD: scores[KD] + 0.06}
    table = compare_scores(tidy(scores), RUN).comparisons
    row = _row(table, TUNED_KD, "none_tuned")
    assert (row["against_teacher"], row["against_method"]) == TUNED_NONE
    assert row["difference"] == pytest.approx(0.04, abs=0.005)
    assert _row(table, TUNED_KD, "default")["difference"] == pytest.approx(0.06)
    assert _row(table, TUNED_NONE, "default")["against_method"] == "none"
    assert set(table.loc[table["against_kind"] == "none_tuned", "method"]) == {"kd+tuned"}


def test_marks():
    run = RUN | {"readings": ["kd"], "leaky_splits": [["phantom", "default"]]}
    table = compare_scores(tidy(simple()), run).comparisons
    assert _row(table, KD)["reading"] and not _row(table, CWD)["reading"]
    assert table["selects_on_test"].all()
    assert not compare_scores(tidy(simple()), RUN).comparisons["selects_on_test"].any()


def test_an_arm_that_lacks_a_seed_is_compared_on_common_seeds():
    scores = simple(n_seeds=3)
    scores[KD] = scores[KD][:, :2]
    table = compare_scores(tidy(scores, seeds={KD: (0, 2)}), RUN).comparisons
    assert (_row(table, KD)["n_seeds"], _row(table, CWD)["n_seeds"]) == (2, 3)
    expected = (scores[KD] - scores[NONE][:, [0, 2]]).mean()
    assert _row(table, KD)["difference"] == pytest.approx(expected)


def test_pairs_without_a_score_are_left_out_for_both():
    scores = simple(n_seeds=1)
    scores[CWD][:4] = np.nan
    row = _row(compare_scores(tidy(scores), RUN).comparisons, CWD)
    assert (row["n_cases"], row["n_left_out"]) == (16, 4)
    assert row["difference"] == pytest.approx((scores[CWD] - scores[NONE])[4:].mean())


def test_folds_are_pooled():
    scores = tidy(simple())
    folds = scores.assign(fold=pd.factorize(scores["case"])[0] % 5)
    pd.testing.assert_frame_equal(
        compare_scores(folds, RUN).comparisons, compare_scores(scores, RUN).comparisons
    )


def test_the_order_of_rows_changes_no_number():
    scores = pd.concat([tidy(simple()), tidy(simple(gain=0.01), structure="tumour")])
    keys = ["structure", "teacher", "method", "against_kind"]
    tables = [
        compare_scores(table, RUN) for table in (scores, scores.sample(frac=1, random_state=1))
    ]
    first, second = (t.comparisons.sort_values(keys).reset_index(drop=True) for t in tables)
    pd.testing.assert_frame_equal(first, second, rtol=1e-12)
    first, second = (t.ranks.sort_values("method").reset_index(drop=True) for t in tables)
    pd.testing.assert_frame_equal(first, second)


def test_six_cases_cannot_tell_and_say_so():
    result = compare_scores(tidy(simple(n_cases=6, n_seeds=1)), RUN)
    row = _row(result.comparisons, CWD)
    assert row["p_value"] == pytest.approx(0.03125)
    assert (row["verdict"], row["resolvable"]) == ("cannot tell", np.inf)
    power = result.power.iloc[0]
    assert not power["can_be_significant"] and power["smallest_p"] == 0.03125
    assert (power["n_cases"], power["n_comparisons"]) == (6, 2)


def test_power_uses_the_scatter_of_the_study():
    scores = simple()
    power = compare_scores(tidy(scores), RUN).power.iloc[0]
    differences = [(scores[arm] - scores[NONE]).mean(1) for arm in (KD, CWD)]
    assert power["sd"] == pytest.approx(np.median([d.std(ddof=1) for d in differences]))
    assert power["sd_source"] == "this study"
    assert 0 < power["resolvable"] < 0.05


def test_a_method_that_fails_does_not_speak_for_the_power_of_all():
    scores = simple(n_cases=12)
    usual = compare_scores(tidy(scores), RUN).power.iloc[0]
    scores[("res_unet", "dead")] = np.full((12, 2), np.nan)
    power = compare_scores(tidy(scores), RUN).power.iloc[0]
    assert (power["n_cases"], power["n_seeds"], power["can_be_significant"]) == (12, 2, True)
    assert power["n_comparisons"] == 3
    assert usual["resolvable"] <= power["resolvable"] < 0.05


@pytest.mark.filterwarnings("error")
def test_an_infinite_distance_leaves_nothing_to_decide():
    scores = {arm: 100 * (1 - values) for arm, values in simple().items()}
    assert _distance(scores, CWD)["verdict"] == "better"
    scores[CWD][3, 1] = np.inf
    row = _distance(scores, CWD)
    assert (row["verdict"], row["n_left_out"], row["n_cases"]) == ("cannot tell", 1, 20)
    assert np.isfinite(row["difference"])
    scores[CWD][:] = np.inf
    row = _distance(scores, CWD)
    assert (row["verdict"], row["n_left_out"], row["n_cases"]) == ("cannot tell", 40, 0)
    assert _distance(scores, KD)["n_left_out"] == 0


def _distance(scores, arm) -> pd.Series:
    table = tidy(scores, metric="hd95_area", unit="mm", protocol="deepmind")
    summarise_scores(table)
    run = RUN | {"protocols": ["deepmind"]}
    return _row(compare_scores(table, run).comparisons, arm, metric="hd95_area")


def test_ranks_are_stable_where_one_arm_is_far_better():
    ranks = compare_scores(tidy(simple()), RUN).ranks.set_index("method")
    assert ranks.loc["cwd", ["mean_rank", "rank_low", "rank_high", "p_best"]].tolist() == [1] * 4
    assert ranks["p_best"].sum() == pytest.approx(1)
    assert ranks.loc[["none", "kd"], "mean_rank"].sum() == pytest.approx(5)


def test_equal_arms_share_the_first_place():
    scores = {arm: simple()[NONE] for arm in (NONE, KD)}
    result = compare_scores(tidy(scores), RUN)
    assert result.ranks["p_best"].tolist() == [0.5, 0.5]
    assert _row(result.comparisons, KD)["verdict"] == "equivalent"


@pytest.mark.parametrize("arms", [[NONE], [KD]])
def test_one_arm_has_nothing_to_compare(arms):
    result = compare_scores(tidy({arm: simple()[arm] for arm in arms}), RUN)
    assert result.comparisons.empty and result.power.empty
    assert result.ranks["p_best"].tolist() == [1.0]


def test_only_teachers():
    result = compare_scores(tidy(simple()).assign(role="teacher"), RUN)
    assert result.comparisons.empty and result.ranks.empty
    assert list(result.comparisons) == COMPARISONS


def test_students_are_compared_among_themselves():
    tables = [tidy(simple()), tidy(simple(gain=0.1)).assign(student="enet")]
    table = compare_scores(pd.concat(tables), RUN).comparisons
    chosen = (table["method"] == "cwd") & (table["structure"] == "mean")
    found = table[chosen & (table["against_kind"] == "none")].set_index("student")["difference"]
    assert found.to_dict() == pytest.approx({"unet": 0.05, "enet": 0.1}, abs=0.005)


def test_a_case_of_two_folds_counts_once():
    scores = tidy(simple())
    twice = pd.concat([scores, scores.assign(fold=1)])
    block = next(blocks(twice, ["strict_mm"]))
    assert block.values.shape == (3, 20, 2)


@pytest.mark.parametrize(
    ("interval", "narrow", "p_holm", "effect", "verdict"),
    [
        ((0.2, 0.9), (0.25, 0.85), 0.01, 0.5, "better"),
        ((-0.9, -0.2), (-0.85, -0.25), 0.01, -0.5, "worse"),
        ((0.1, 0.4), (0.15, 0.35), 0.001, 0.9, "equivalent"),  # shown to be too small to matter
        ((-0.3, 0.3), (-0.2, 0.2), 1.0, 0.0, "equivalent"),
        ((-0.3, 0.6), (-0.2, 0.5), 0.4, 0.2, "cannot tell"),  # the margin itself is not within
        ((0.2, 0.9), (0.25, 0.85), 0.06, 0.5, "cannot tell"),  # not after Holm
        ((-0.1, 0.9), (0.0, 0.8), 0.01, 0.5, "cannot tell"),  # the training's noise may be it
        ((0.2, 0.9), (0.25, 0.85), 0.01, -0.5, "cannot tell"),  # mean and ranks disagree
        ((np.nan, np.nan), (np.nan, np.nan), 1.0, np.nan, "cannot tell"),
    ],
)
def test_the_rule(interval, narrow, p_holm, effect, verdict):
    assert decide(interval, narrow, p_holm, effect, margin=0.5, alpha=0.05) == verdict
