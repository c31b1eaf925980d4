"""Means and shares with their 95 % intervals; differences are paired, image by image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

LEVEL = 0.95


def span(counts: ArrayLike) -> str:
    """The least and the largest of some counts in words, `200 to 4000`, or the one that all of them are."""
    least, most = np.min(counts), np.max(counts)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval [low, high], from n images (or other units) and so many seeds."""

    value: float
    low: float
    high: float
    n: int
    seeds: int = 1

    def absolute(self) -> Estimate:
        """The size of the number, whatever its sign; an interval that holds zero begins there."""
        ends = sorted((abs(self.low), abs(self.high)))
        low = 0.0 if self.low < 0 < self.high else ends[0]
        return replace(self, value=abs(self.value), low=low, high=ends[1])

    def percent(self) -> Estimate:
        """A share in percent."""
        return replace(self, value=100 * self.value, low=100 * self.low, high=100 * self.high)

    @classmethod
    def exact(cls, value: float, n: int = 1, seeds: int = 1) -> Estimate:
        """A number without sampling error, such as a dimension."""
        return cls(value, value, value, n, seeds)


def mean_estimate(values: ArrayLike, *, seeds: int = 1) -> Estimate:
    """Mean of values (n,), one an image, with a bootstrap percentile interval (2,000 resamples, fixed draws).

    For a difference of two methods pass the differences on the same images: that is the paired interval; of hits see
    `difference_estimate`. Of values (S, n), S seeds on the same images, the interval is that of `spread_of_seeds`. A
    single value has none (NaN).

    Of skewed values, such as gaps, of which few images have nearly all, its upper end is too low while n is small: of
    lognormal ones of skewness 8 it covers the mean in 87 % of cases at n = 64, in 94 from n = 500 on.

    Args:
        seeds: over which values (n,) were averaged before; for values (S, n) it is S.
    Raises:
        ValueError: no values, some are not finite, or as `spread_of_seeds`.
    """
    values = _finite(values)
    if values.ndim == 2:
        return spread_of_seeds(values).estimate(float(values.mean()), n=values.shape[1], seeds=len(values))
    if len(values) == 1:
        return Estimate(float(values[0]), float("nan"), float("nan"), 1, seeds)
    if values.std() == 0:  # nothing to resample
        return Estimate(float(values[0]), float(values[0]), float(values[0]), len(values), seeds)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=2000, method="percentile", batch=200, rng=0
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values), seeds)


def difference_estimate(values: ArrayLike) -> Estimate:
    """Mean of paired differences of hits (n,), each in [-1, 1], one an image.

    With one view of an image each is -1, 0 or 1, and nearly all are 0. Of a few others the percentile bootstrap is too
    narrow (5 of 320 images won and none lost: zero lies outside, though McNemar's exact p is .06); of none it has no
    width. So one won and one lost image are resampled with the others, as Bonett and Price add them for a normal
    interval; the value is that of the images alone. Values (S, n) of S seeds have the interval of `paired_spread`, in
    which the two images count as well, and shares, of several views, that of `mean_estimate`, unless no image differs.

    Raises:
        ValueError: no values, some lie outside [-1, 1], or as `mean_estimate`.
    Source: Bonett and Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions based on
        paired data.
    """
    values = _finite(values)
    if np.abs(values).max() > 1:
        raise ValueError(f"differences of hits must lie in [-1, 1], got [{values.min():g}, {values.max():g}]")
    if values.any() and values.ndim == 2:
        return paired_spread(values).estimate(float(values.mean()), n=values.shape[1], seeds=len(values))
    if not np.isin(values, (-1, 0, 1)).all():
        return mean_estimate(values)
    seeds, images = len(np.atleast_2d(values)), np.atleast_2d(values)[0]
    won, lost, n = np.count_nonzero(images > 0) + 1, np.count_nonzero(images < 0) + 1, len(images) + 2
    # Resampling n images is drawing how many of them are won, lost and neither.
    drawn = np.random.default_rng(0).multinomial(n, np.array([won, lost, n - won - lost]) / n, size=2000)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(images.mean()), float(low), float(high), len(images), seeds)


def estimates_of(table: pd.DataFrame) -> list[Estimate]:
    """The estimates in the rows of a table, from its columns value, low, high, n and seeds."""
    return [Estimate(*row) for row in table[[f.name for f in fields(Estimate)]].itertuples(index=False)]


def share_estimate(hits: ArrayLike, *, seeds: int = 1) -> Estimate:
    """Share of true values among hits (n,), one an image, with Wilson's interval.

    A hit may be a share itself, such as the mean over several noises: then n images count, not n times as many. Of hits
    (S, n), S seeds on the same images, the interval is that of `mean_estimate`, and no narrower than Wilson's over the
    images, which has a width also where all are right.

    Raises:
        ValueError: no values, some lie outside [0, 1], or as `spread_of_seeds`.
    """
    hits = _finite(hits)
    if hits.min() < 0 or hits.max() > 1:
        raise ValueError(f"hits must lie in [0, 1], got [{hits.min():g}, {hits.max():g}]")
    if hits.ndim == 2:
        pooled, over_seeds = share_estimate(hits.mean(0)), mean_estimate(hits)
        low, high = min(pooled.low, max(over_seeds.low, 0.0)), max(pooled.high, min(over_seeds.high, 1.0))
        return Estimate(pooled.value, low, high, pooled.n, len(hits))
    interval = stats.binomtest(round(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(hits.mean()), float(interval.low), float(interval.high), len(hits), seeds)


@dataclass(frozen=True)
class Spread:
    """What a mean's error is made of: standard errors of independent sources, with their degrees of freedom.

    Half-widths of the sources' own t intervals add up as squares, so that the few seeds get the wide quantile that they
    deserve and the many images do not.
    """

    sources: tuple[tuple[float, int], ...]

    def half(self, level: float = LEVEL) -> float:
        """Half-width of the interval."""
        return sum((error * stats.t.ppf((1 + level) / 2, freedom)) ** 2 for error, freedom in self.sources) ** 0.5

    def estimate(self, value: float, *, n: int, seeds: int) -> Estimate:
        """A value with this interval around it."""
        half = float(self.half())
        return Estimate(value, value - half, value + half, n, seeds)

    def p_value(self, value: float) -> float:
        """One less the level at which the interval around a value reaches zero; 0 for less than 1e-12."""
        if value == 0:
            return 1.0
        if self.half(1 - 1e-12) < abs(value):
            return 0.0
        return 1 - float(optimize.brentq(lambda level: self.half(level) - abs(value), 0, 1 - 1e-12, xtol=1e-12))


def spread_of_seeds(*groups: np.ndarray) -> Spread:
    """Spread of the sum of the means of groups of values (S, n_g): S seeds, all on the same n_g images.

    Seeds and images are crossed, and a seed's luck is the same in all groups. With x_si a value the squared errors are

        Var_i(mean_s x_si) / n_g  of each group's images,  and  Var_s(sum_g mean_i x_si) / S  of the seeds.

    What seed and image do only together enters both, so that the interval covers the truth in 95 % of cases or more.

    Raises:
        ValueError: fewer than two seeds, or a group of fewer than two images.
    """
    shapes = [values.shape for values in groups]
    if min(min(shape) for shape in shapes) < 2:
        raise ValueError(f"an interval over seeds needs two seeds and two images or more, got (seeds, images) {shapes}")
    images = [_source(values.mean(0)) for values in groups]
    return Spread((*images, _source(np.sum([values.mean(1) for values in groups], axis=0))))


def crossed_spread(values: np.ndarray) -> Spread:
    """Spread of the mean of values that are crossed over several things, such as seeds, blocks of images and starts.

    Each axis of two or more is a source, by the means over all other axes; as in `spread_of_seeds` what they do only
    together enters each of theirs. A single value has no interval (NaN).
    """
    others = [tuple(b for b in range(values.ndim) if b != a) for a in range(values.ndim) if values.shape[a] > 1]
    return Spread(tuple(_source(values.mean(axes)) for axes in others) or ((float("nan"), 1),))


def paired_spread(values: np.ndarray) -> Spread:
    """Spread of the mean of paired differences of hits (S, n): that of the seeds, and one won and one lost image more.

    Raises:
        ValueError: as `spread_of_seeds`.
    """
    n = values.shape[1]
    return Spread((*spread_of_seeds(values).sources, (2**0.5 / n, n)))


def _source(means: np.ndarray) -> tuple[float, int]:
    return float((means.var(ddof=1) / len(means)) ** 0.5), len(means) - 1


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or len(values) == 1:
        values = values.ravel()
    if not values.size:
        raise ValueError("no values to average: at least one image is needed")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values are not finite: look at the model"
        )
    return values


def slope_estimate(values: ArrayLike) -> Estimate:
    """Slope of values (n,) against their place 0, 1, ..., relative to their mean, with the interval of least squares.

    Of values (S, n), S seeds, it is the mean of the seeds' slopes with a t interval over the seeds: how a line fits one
    curve says little about the next one.

    Raises:
        ValueError: fewer than three places, or some values are not finite.
    """
    values = _finite(values)
    if values.shape[-1] < 3:
        raise ValueError(f"a slope with an interval needs three values or more, got {values.shape[-1]}")
    if values.ndim == 2:
        over_seeds = t_estimate([slope_estimate(v).value for v in values], seeds=len(values))
        return replace(over_seeds, n=values.size)
    fit = stats.linregress(np.arange(len(values)), values)
    half = Spread(((fit.stderr, len(values) - 2),)).half()
    slope, low, high = (float(s / abs(values.mean())) for s in (fit.slope, fit.slope - half, fit.slope + half))
    return Estimate(slope, low, high, len(values))


def t_estimate(values: ArrayLike, *, seeds: int = 1) -> Estimate:
    """Mean of a few values (n,), such as one a seed, with Student's interval; of a single one it is NaN.

    Args:
        seeds: behind the values, all of them together.
    Raises:
        ValueError: no values, or some are not finite.
    """
    values = _finite(values)
    if len(values) == 1:
        return Estimate(float(values[0]), float("nan"), float("nan"), 1, seeds)
    return Spread((_source(values),)).estimate(float(values.mean()), n=len(values), seeds=seeds)
