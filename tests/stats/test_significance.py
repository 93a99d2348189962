from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kdpipe.stats.significance import attained_level, cohens_dz, holm, rank_biserial, wilcoxon


def _by_counting(differences: np.ndarray) -> float:
    """Two-sided p from all sign patterns, without zeros."""
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    sums = np.array(
        [ranks[np.array(signs)].sum() for signs in product([False, True], repeat=ranks.size)]
    )
    seen = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    return min(1.0, 2 * float((sums <= seen + 1e-9).mean()))


@pytest.mark.parametrize("n", [1, 2, 5, 12, 49])
def test_wilcoxon_equals_scipys_exact_test_without_ties(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon(differences) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_wilcoxon_is_exact_with_ties_and_zeros(seed):
    differences = np.random.default_rng(seed).integers(-3, 5, 10).astype(float)
    assert wilcoxon(differences) == pytest.approx(_by_counting(differences), rel=1e-12)


def test_wilcoxon_of_many_pairs_is_scipys_approximation():
    differences = np.round(np.random.default_rng(0).normal(0.2, 1, 120), 1)
    expected = stats.wilcoxon(differences[differences != 0], method="approx").pvalue
    assert wilcoxon(differences) == pytest.approx(expected)


def test_wilcoxon_without_a_difference():
    assert wilcoxon(np.zeros(7)) == 1.0
    assert wilcoxon(np.array([])) == 1.0


def test_sums_in_another_order_break_no_tie():
    assert wilcoxon(np.array([0.1 + 0.2, -0.3, 0.3, 0.5])) == wilcoxon(
        np.array([0.3, -0.3, 0.3, 0.5])
    )


def test_smallest_p_of_six_cases_is_that_of_the_spec():
    assert wilcoxon(np.arange(1.0, 7)) == pytest.approx(0.03125)


def test_holm_equals_statsmodels():
    p_values = np.array([0.01, 0.04, 0.03, 0.005, 0.2])
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1])


def test_holm_with_more_hypotheses_than_shown():
    np.testing.assert_allclose(holm(np.array([0.01, 0.02]), 5), [0.05, 0.08])
    assert holm(np.array([]), 0).size == 0


def test_rank_biserial_by_hand():
    # ranks 1, 2, 3, 4: positive 1 + 3 + 4 = 8, negative 2
    assert rank_biserial(np.array([0.1, -0.2, 0.3, 0.4])) == pytest.approx(0.6)
    assert rank_biserial(np.array([1.0, 2.0])) == 1.0
    assert rank_biserial(np.zeros(3)) == 0.0
    assert np.isnan(rank_biserial(np.array([])))


def test_cohens_dz_by_hand():
    assert cohens_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert np.isnan(cohens_dz(np.full(4, 0.1 + 0.2)))
    assert np.isnan(cohens_dz(np.array([1.0])))


@pytest.mark.parametrize(("n", "level"), [(6, 0.05), (12, 0.05 / 8), (30, 0.05)])
def test_attained_level_is_the_largest_possible_p(n, level):
    found = attained_level(n, level)
    # all rank sums of the smaller side, as differences without ties
    possible = set()
    for k in range(n * (n + 1) // 2 + 1):
        signs, rest = np.ones(n), k
        for rank in range(n, 0, -1):
            if rank <= rest:
                signs[rank - 1], rest = -1, rest - rank
        possible.add(wilcoxon(signs * np.arange(1, n + 1)))
    assert found == pytest.approx(max(p for p in possible if p <= level))


def test_no_level_is_attained_by_too_few_cases():
    assert attained_level(6, 0.05 / 2) == 0
    assert attained_level(500, 0.01) == 0.01
