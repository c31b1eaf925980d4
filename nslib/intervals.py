"""Means and shares with their 95 % intervals; differences are paired, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval [low, high], from n images (or other units) and so many seeds."""

    value: float
    low: float
    high: float
    n: int
    seeds: int = 1

    @classmethod
    def exact(cls, value: float, n: int = 1) -> Estimate:
        """A number without sampling error, such as a dimension."""
        return cls(value, value, value, n)


def mean_estimate(values: ArrayLike, *, seeds: int = 1) -> Estimate:
    """Mean of values (n,), one an image, with a bootstrap percentile interval (2,000 resamples, fixed draws).

    For a difference of two methods pass the differences on the same images: that is the paired interval.

    Raises:
        ValueError: no values, or some are not finite.
    """
    values = _finite(values)
    if values.std() == 0:  # nothing to resample
        return Estimate(float(values[0]), float(values[0]), float(values[0]), len(values), seeds)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=2000, method="percentile", batch=200, rng=0
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values), seeds)


def share_estimate(hits: ArrayLike, *, seeds: int = 1) -> Estimate:
    """Share of true values among hits (n,), one an image, with Wilson's interval.

    A hit may be a share itself, such as the mean over several noises: then n images count, not n times as many.

    Raises:
        ValueError: no values, or some lie outside [0, 1].
    """
    hits = _finite(hits)
    if hits.min() < 0 or hits.max() > 1:
        raise ValueError(f"hits must lie in [0, 1], got [{hits.min():g}, {hits.max():g}]")
    interval = stats.binomtest(round(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(hits.mean()), float(interval.low), float(interval.high), len(hits), seeds)


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float).ravel()
    if not len(values):
        raise ValueError("no values to average: at least one image is needed")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values are not finite: look at the model"
        )
    return values


def slope_estimate(values: ArrayLike) -> Estimate:
    """Slope of values (n,) against their place 0, 1, ..., relative to their mean, with the interval of least squares.

    Raises:
        ValueError: fewer than three values, or some are not finite.
    """
    values = _finite(values)
    if len(values) < 3:
        raise ValueError(f"a slope with an interval needs three values or more, got {len(values)}")
    fit = stats.linregress(np.arange(len(values)), values)
    half = fit.stderr * stats.t.ppf((1 + LEVEL) / 2, len(values) - 2)
    slope, low, high = (float(s / values.mean()) for s in (fit.slope, fit.slope - half, fit.slope + half))
    return Estimate(slope, low, high, len(values))
