"""Estimates against scipy and numbers from the books."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nslib.intervals import (
    Estimate,
    Spread,
    difference_estimate,
    estimates_of,
    mean_estimate,
    paired_spread,
    share_estimate,
    slope_estimate,
    span,
    spread_of_seeds,
    t_estimate,
)


def test_span_in_words():
    assert span([4000, 200, 1000]) == "200 to 4000"
    assert span(pd.Series([1000, 1000])) == "1000"


def test_estimates_come_back_from_a_table():
    told = [Estimate(1.0, 0.5, 1.5, 10, 3), Estimate(2.0, float("-inf"), 2.5, 4)]
    table = pd.DataFrame([vars(e) for e in told])[["seeds", "n", "high", "low", "value"]].assign(model="vit")
    assert estimates_of(table) == told
    assert estimates_of(table.head(0)) == []


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


@pytest.mark.parametrize(("n", "covers"), [(64, 0.87), (512, 0.94)])
def test_mean_of_skewed_values_covers_the_truth_less_often_while_they_are_few(n, covers):
    rng, truth = np.random.default_rng(0), math.exp(1.07**2 / 2)
    found = [mean_estimate(rng.lognormal(0, 1.07, n)) for _ in range(300)]
    covered = sum(e.low <= truth <= e.high for e in found)
    assert stats.binomtest(covered, 300, covers).pvalue > 0.01


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
    assert Estimate.exact(0.02, 60, 3) == Estimate(0.02, 0.02, 0.02, 60, 3)


# Differences of hits, most of them 0


def hits_apart(won: int, lost: int, n: int) -> np.ndarray:
    return np.repeat([1, -1, 0], [won, lost, n - won - lost])


@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.01), (0.01, 0.0), (0.006, 0.006), (0.2, 0.1)])
def test_difference_covers_the_truth_where_few_images_differ(won, lost):
    """200 images, of which one to five differ, or 60: no fewer than 95 of 100 intervals hold the truth."""
    draws = np.random.default_rng(7)
    drawn = draws.multinomial(200, [won, lost, 1 - won - lost], size=1000)
    found = [difference_estimate(hits_apart(b, c, 200)) for b, c, _ in drawn]
    covered = sum(e.low <= won - lost <= e.high for e in found)
    assert stats.binomtest(covered, 1000, 0.95, alternative="less").pvalue > 0.01


def test_the_bootstrap_alone_is_too_narrow():
    draws = np.random.default_rng(8)
    found = [mean_estimate(hits_apart(b, 0, 200)) for b in draws.binomial(200, 0.01, size=100)]
    assert np.mean([e.low <= 0.01 <= e.high for e in found]) < 0.93


def test_five_images_won_and_none_lost_do_not_exclude_zero():
    """McNemar's exact p is 2 / 2^5 = .06; with seven it is .016, and zero is outside."""
    found = difference_estimate(hits_apart(5, 0, 320))
    assert found.low <= 0 < found.value == 5 / 320 < found.high
    assert difference_estimate(hits_apart(8, 0, 320)).low > 0
    assert mean_estimate(hits_apart(5, 0, 320)).low > 0


@pytest.mark.parametrize("shape", [(320,), (3, 320)])
def test_no_image_that_differs_is_no_certainty(shape):
    """The true difference could be the three over n of the rule of three."""
    found = difference_estimate(np.zeros(shape))
    assert (found.value, found.n, found.seeds) == (0, 320, 3 if len(shape) == 2 else 1)
    assert found.high == -found.low == pytest.approx(3 / 322)


def test_differences_of_shares_have_the_interval_of_means():
    shares = np.random.default_rng(9).normal(0, 0.1, 50).clip(-1, 1)
    assert difference_estimate(shares) == mean_estimate(shares)


def test_the_same_few_images_won_under_every_seed_are_not_certain():
    """Five of 200, as by one seed alone, where McNemar's exact p is .06."""
    seeds = np.stack([hits_apart(5, 0, 200)] * 3)
    found = difference_estimate(seeds)
    assert found.low <= 0 < found.value == 5 / 200
    assert mean_estimate(seeds).low > 0
    *seen, unseen = paired_spread(seeds).sources
    assert tuple(seen) == spread_of_seeds(seeds).sources
    assert unseen == (pytest.approx(2**0.5 / 200), 200)


def test_differences_in_percent_are_refused():
    with pytest.raises(ValueError, match=r"differences of hits must lie in \[-1, 1\], got \[0, 100\]"):
        difference_estimate([0, 100])


def test_percent():
    assert Estimate(0.5, 0.25, 0.75, 8, 2).percent() == Estimate(50, 25, 75, 8, 2)


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
    assert (found.n, found.seeds) == (5, 1)


def test_slope_of_several_seeds_by_hand():
    """Relative slopes 1/3 and 1/6; Student's quantile of one degree of freedom is 12.7."""
    found = slope_estimate([[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]])
    assert (found.value, found.n, found.seeds) == (pytest.approx(1 / 4), 6, 2)
    assert found.high - found.value == pytest.approx(12.706 / 12, rel=1e-4)


def test_student_by_hand():
    found = t_estimate([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2, 3)
    assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert np.isnan(t_estimate([1.0]).low)


def test_slope_covers_the_truth():
    """A slope of .1 under noise of 1 over 40 places: about 95 of 100 intervals hold it."""
    rng = np.random.default_rng(0)
    places = np.arange(40)
    found = [slope_estimate(50 + 0.1 * places + rng.normal(size=40)) for _ in range(200)]
    truth = 0.1 / (50 + 0.1 * 19.5)
    covered = sum(e.low <= truth <= e.high for e in found)
    assert 180 <= covered <= 199


def test_slope_of_values_below_zero_has_its_ends_in_order():
    found = slope_estimate([-1, -1.5, -2.2, -2.4])
    assert found.low < found.value < found.high < 0


def test_one_value_has_no_interval():
    found = mean_estimate([0.4])
    assert (found.value, found.n) == (0.4, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_slope_needs_three_values():
    with pytest.raises(ValueError, match="three values or more, got 2"):
        slope_estimate([1.0, 2.0])


# Several seeds on the same images


def crossed(draws, seeds, images, *, by_seed, by_image, by_both):
    """Values (S, n) of mean 0 with these standard deviations between seeds, images, and of what is left."""
    effects = by_seed * draws.normal(size=(seeds, 1)), by_image * draws.normal(size=(1, images))
    return sum(effects) + by_both * draws.normal(size=(seeds, images))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("spread", "exact"),
    [
        ({"by_seed": 0.3, "by_image": 0.1, "by_both": 0}, True),
        ({"by_seed": 0, "by_image": 1, "by_both": 0.3}, False),
        ({"by_seed": 0.1, "by_image": 1, "by_both": 1}, False),
        ({"by_seed": 0, "by_image": 0, "by_both": 1}, False),
    ],
    ids=["seeds alone", "images alone", "all", "neither alone"],
)
def test_interval_over_seeds_covers_the_truth(seeds, spread, exact):
    draws = np.random.default_rng(4)
    found = [mean_estimate(crossed(draws, seeds, 60, **spread)) for _ in range(400)]
    covered = sum(e.low <= 0 <= e.high for e in found)
    assert stats.binomtest(covered, 400, 0.95, alternative="less").pvalue > 0.01
    if exact:
        assert stats.binomtest(covered, 400, 0.95).pvalue > 0.01  # nor is it wider than it need be
    assert {(e.n, e.seeds) for e in found} == {(60, seeds)}


def test_pooling_alone_would_not_cover_the_truth():
    """The seeds' own variance is what the interval over images leaves out."""
    draws = np.random.default_rng(5)
    values = [crossed(draws, 3, 60, by_seed=0.3, by_image=0.1, by_both=0) for _ in range(60)]
    pooled = [mean_estimate(v.mean(0)) for v in values]
    assert np.mean([e.low <= 0 <= e.high for e in pooled]) < 0.5


def test_errors_over_seeds_have_the_known_variances():
    """Of images (.25 + .36 / 4) / 50, of seeds (.04 + .36 / 50) / 4; without the share of both, .36 / 200, in one."""
    draws = np.random.default_rng(6)
    drawn = [crossed(draws, 4, 50, by_seed=0.2, by_image=0.5, by_both=0.6) for _ in range(1500)]
    squares = np.mean([[error**2 for error, _ in spread_of_seeds(v).sources] for v in drawn], axis=0)
    assert squares == pytest.approx([(0.25 + 0.36 / 4) / 50, (0.04 + 0.36 / 50) / 4], rel=0.06)
    assert np.var([v.mean() for v in drawn]) == pytest.approx(squares.sum() - 0.36 / 200, rel=0.1)


def test_spread_over_seeds_by_hand():
    """Two groups of two images under two seeds; the means over seeds are (.5, 2.5), (3, 1.5), the sums 4.5 and 3."""
    first, second = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[4.0, 2.0], [2.0, 1.0]])
    spread = spread_of_seeds(first, second)
    assert [error**2 for error, _ in spread.sources] == pytest.approx([2 / 2, 1.125 / 2, 1.125 / 2])
    assert [freedom for _, freedom in spread.sources] == [1, 1, 1]
    found = spread.estimate(7.0, n=4, seeds=2)
    assert found.high - 7 == pytest.approx(12.706 * np.sqrt(1 + 1.125), abs=1e-3)


def test_p_value_is_that_of_the_interval():
    spread = Spread(((0.3, 20), (0.2, 2)))
    assert spread.p_value(spread.half()) == pytest.approx(0.05)
    assert Spread(((0.3, 20),)).p_value(0.9) == pytest.approx(2 * stats.t.sf(3, 20))
    assert (spread.p_value(0), Spread(((0.0, 3),)).p_value(1)) == (1, 0)


def test_shares_over_seeds_are_never_certain_where_all_are_right():
    found = share_estimate(np.ones((3, 40)))
    wilson = share_estimate(np.ones(40))
    assert (found.low, found.high, found.n, found.seeds) == (wilson.low, 1, 40, 3)
    unlike = share_estimate(np.repeat([[1.0], [0.0]], 40, axis=1))
    assert (unlike.value, unlike.low, unlike.high) == (0.5, 0, 1)
    assert share_estimate([[True, False]]) == share_estimate([True, False])


def test_one_image_tells_nothing_over_seeds():
    with pytest.raises(ValueError, match=r"needs two seeds and two images or more, got .*\[\(3, 1\)\]"):
        mean_estimate(np.ones((3, 1)))


@pytest.mark.parametrize(
    ("signed", "size"),
    [((-0.5, -0.9, -0.1), (0.5, 0.1, 0.9)), ((0.5, 0.1, 0.9), (0.5, 0.1, 0.9)), ((-0.2, -0.9, 0.5), (0.2, 0, 0.9))],
)
def test_the_size_of_a_difference_keeps_its_interval(signed, size):
    found = Estimate(*signed, n=7, seeds=2).absolute()
    assert (found.value, found.low, found.high) == size
    assert (found.n, found.seeds) == (7, 2)
