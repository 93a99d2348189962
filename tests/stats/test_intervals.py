import numpy as np
import pytest
from scipy import stats

from kdpipe.stats.intervals import SeedScatter, paired_mean, seed_scatter
from kdpipe.stats.pairing import Block

NONE = SeedScatter(0.0, 0.0, 0)


def _block(values: np.ndarray) -> Block:
    return Block({}, tuple(("t", str(index)) for index in range(len(values))), values)


def test_one_seed_is_students_paired_interval():
    first, second = np.random.default_rng(0).normal(0.8, 0.1, (2, 15, 1))
    mean = paired_mean(first, second, NONE)
    expected = stats.ttest_rel(first[:, 0], second[:, 0]).confidence_interval(0.95)
    assert mean.mean - mean.half_width(0.95) == pytest.approx(expected.low)
    assert mean.mean + mean.half_width(0.95) == pytest.approx(expected.high)


def test_two_arms_by_the_mean_squares_of_their_differences():
    """The textbook's two-way analysis of variance without replication, on the differences."""
    values = np.random.default_rng(1).normal(0.8, 0.1, (2, 9, 3))
    values[1] += np.array([0.0, 0.3, 0.5])
    difference = values[0] - values[1]
    by_case, by_seed = difference.mean(1), difference.mean(0)
    rest = difference - by_case[:, None] - by_seed + difference.mean()
    ms_seeds, ms_rest = 9 * by_seed.var(ddof=1), (rest**2).sum() / (8 * 2)
    scatter = seed_scatter(_block(values))
    assert scatter.df == 2
    assert scatter.variance == pytest.approx((ms_seeds - ms_rest) / 9)
    mean = paired_mean(values[0], values[1], scatter)
    squared = stats.t.isf(0.025, 8) ** 2 * by_case.var(ddof=1) / 9
    squared += stats.t.isf(0.025, 2) ** 2 * scatter.variance / 3
    assert mean.half_width(0.95) == pytest.approx(np.sqrt(squared))


def test_scatter_over_seeds_is_that_of_a_difference():
    rng = np.random.default_rng(2)
    seeds = rng.normal(0, 0.1, (400, 1, 3))  # variance 0.01 an arm, 0.02 a difference
    values = seeds + rng.normal(0, 0.05, (400, 20, 3)) + rng.normal(0, 1, (1, 20, 3))
    scatter = seed_scatter(_block(values))
    assert scatter.df == 399 * 2
    assert scatter.variance == pytest.approx(0.02, rel=0.15)


def test_what_all_arms_share_is_no_scatter():
    shared = np.random.default_rng(3).normal(0.8, 0.1, (1, 10, 3))
    values = shared + np.array([0.0, 0.1, 0.2])[:, None, None]
    assert seed_scatter(_block(values)).variance == pytest.approx(0, abs=1e-20)


def test_missing_pairs_are_left_out_and_counted():
    first = np.array([[0.9, 0.8], [0.7, np.nan], [np.nan, np.nan], [0.6, 0.6]])
    second = np.array([[0.8, 0.8], [0.6, 0.5], [0.5, 0.5], [np.nan, 0.5]])
    mean = paired_mean(first, second, NONE)
    np.testing.assert_allclose(mean.differences, [0.05, 0.1, 0.1])
    assert (mean.n_seeds, mean.n_left_out) == (2, 4)


def test_missing_in_both_arms_is_no_pair():
    first = np.array([[0.9], [np.nan], [0.7]])
    second = np.array([[0.8], [np.nan], [0.6]])
    assert paired_mean(first, second, NONE).n_left_out == 0


def test_only_seeds_of_both_arms_count():
    first = np.array([[0.9, 0.8, np.nan], [0.7, 0.7, np.nan]])
    second = np.array([[np.nan, 0.6, 0.1], [np.nan, 0.6, 0.1]])
    mean = paired_mean(first, second, NONE)
    np.testing.assert_allclose(mean.differences, [0.2, 0.1])
    assert (mean.n_seeds, mean.n_left_out) == (1, 0)


@pytest.mark.parametrize("n_cases", [0, 1])
def test_too_few_cases_have_no_interval(n_cases):
    values = np.full((2, n_cases, 2), 0.5)
    mean = paired_mean(values[0], values[1], seed_scatter(_block(values)))
    assert np.isnan(mean.half_width(0.95))


def test_arms_without_a_common_seed():
    first, second = np.array([[0.9, np.nan]] * 3), np.array([[np.nan, 0.9]] * 3)
    mean = paired_mean(first, second, NONE)
    assert (mean.differences.size, mean.n_seeds) == (0, 0)
    assert np.isnan(mean.mean)


def test_equal_scores_have_an_interval_of_no_width():
    values = np.full((2, 5, 2), 0.5)
    assert paired_mean(values[0], values[1], seed_scatter(_block(values))).half_width(0.95) == 0
