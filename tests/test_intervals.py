"""Estimates against scipy and numbers from the books."""

import numpy as np
import pytest
from scipy import stats

from nslib.intervals import Estimate, mean_estimate, share_estimate, slope_estimate


def test_share_by_hand():
    """Wilson's interval for 8 of 10 is (.490, .943), for 0 of 10 it is (0, .278)."""
    found = share_estimate([True] * 8 + [False] * 2)
    assert (found.value, found.n, found.seeds) == (0.8, 10, 1)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    none = share_estimate(np.zeros(10))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.parametrize(("hits", "n"), [(1, 2), (95, 100), (512, 512)])
def test_share_by_formula(hits, n):
    """Wilson (1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    found = share_estimate(np.arange(n) < hits, seeds=3)
    p, z = hits / n, stats.norm.ppf(0.975)
    centre, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.seeds == 3


def test_share_of_shares_counts_images():
    """Three noises, of which two matched on every image: not 300 independent trials."""
    found = share_estimate(np.full(99, 2 / 3))
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 99
    whole = share_estimate(np.arange(99) < 66)
    assert (found.low, found.high) == (whole.low, whole.high)


def test_mean_agrees_with_students_interval_on_normal_values():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_estimate(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert (found.n, found.seeds) == (400, 1)


def test_mean_covers_the_truth_as_often_as_it_says():
    """Skewed values, as gaps are: the mean of the exponential is 1."""
    draws = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        found = mean_estimate(draws.exponential(size=100))
        covered += found.low <= 1 <= found.high
    assert stats.binomtest(covered, 40, 0.94).pvalue > 0.01


def test_mean_is_the_same_every_time():
    values = np.random.default_rng(2).exponential(size=50)
    assert mean_estimate(values) == mean_estimate(values)


def test_interval_narrows_with_the_root_of_n():
    values = np.random.default_rng(3).normal(size=1600)
    few, many = mean_estimate(values[:100]), mean_estimate(values)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


def test_equal_values_have_no_spread():
    assert mean_estimate([0.25] * 8, seeds=2) == Estimate(0.25, 0.25, 0.25, 8, 2)


def test_exact_number():
    assert Estimate.exact(576) == Estimate(576, 576, 576, 1)


@pytest.mark.parametrize("estimate", [mean_estimate, share_estimate])
def test_no_values(estimate):
    with pytest.raises(ValueError, match="no values to average: at least one image is needed"):
        estimate([])


@pytest.mark.parametrize("estimate", [mean_estimate, share_estimate])
def test_values_that_are_not_finite(estimate):
    with pytest.raises(ValueError, match="2 of 3 values are not finite: look at the model"):
        estimate([1.0, np.nan, np.inf])


@pytest.mark.parametrize("hits", [[0, 2], [-0.1, 1]])
def test_hits_outside_of_the_unit_range(hits):
    with pytest.raises(ValueError, match=r"hits must lie in \[0, 1\]"):
        share_estimate(hits)


def test_slope_of_a_line_is_exact():
    found = slope_estimate([2.0, 3.0, 4.0, 5.0, 6.0])
    assert found.value == pytest.approx(1 / 4)
    assert found.low == pytest.approx(found.value)
    assert found.n == 5


def test_slope_covers_the_truth():
    """A slope of .1 under noise of 1 over 40 places: about 95 of 100 intervals hold it."""
    rng = np.random.default_rng(0)
    places = np.arange(40)
    found = [slope_estimate(50 + 0.1 * places + rng.normal(size=40)) for _ in range(200)]
    truth = 0.1 / (50 + 0.1 * 19.5)
    covered = sum(e.low <= truth <= e.high for e in found)
    assert 180 <= covered <= 199


def test_slope_needs_three_values():
    with pytest.raises(ValueError, match="three values or more, got 2"):
        slope_estimate([1.0, 2.0])
