"""From hits to the figures of Table 2: corruption errors, the average, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from nslib.data.corruptions import CORRUPTIONS, SEVERITIES
from nslib.intervals import Estimate, Spread, difference_estimate, mean_estimate, paired_spread

# Mean error of AlexNet over the severities of ImageNet-C, the unit of mCE (arXiv:1903.12261 and its published code).
ALEXNET_ERROR = dict(
    zip(
        CORRUPTIONS,
        (0.886, 0.894, 0.923, 0.820, 0.826, 0.786, 0.798, 0.867, 0.827, 0.819, 0.565, 0.853, 0.646, 0.718, 0.607),
        strict=True,
    )
)
ERRORS = ("c",)  # lower is better
BY_CUE = ("cue_conflict",)  # two hits an image, whether the answer is its shape and whether it is its texture: no top-1
_FLIPS = 9999

Hits = Mapping[str, np.ndarray]  # (n,) for each variant, or (S, n) of S seeds; results below have the same shape


def per_image(hits: Hits) -> np.ndarray:
    """Share of a column's variants in which each image is classified rightly."""
    return np.mean(list(hits.values()), axis=0)


def _errors(hits: Hits) -> dict[str, np.ndarray]:
    """Error of each image, mean over the severities, for each of the 15 corruptions.

    Raises:
        ValueError: a corruption or severity is missing or unknown.
    """
    expected = {f"{c}/{s}" for c in CORRUPTIONS for s in SEVERITIES}
    if set(hits) != expected:
        odd = ", ".join(sorted(set(hits) ^ expected)[:5])
        raise ValueError(f"needs the 15 corruptions of ImageNet-C at 5 severities, missing or unknown: {odd}")
    return {c: 1 - np.mean([hits[f"{c}/{s}"] for s in SEVERITIES], axis=0) for c in CORRUPTIONS}


def mce(hits: Hits) -> Estimate:
    """Mean over the corruptions of sum_s E / sum_s E_AlexNet, in percent; for the published ImageNet-C only.

    Raises:
        ValueError: a corruption or severity is missing or unknown.
    Source: Hendrycks and Dietterich 2019, arXiv:1903.12261.
    """
    errors = _errors(hits)
    return mean_estimate(100 * np.mean([errors[c] / ALEXNET_ERROR[c] for c in CORRUPTIONS], axis=0))


def corruption_error(hits: Hits) -> Estimate:
    """Mean error over corruptions and severities, in percent. Errors as `mce`."""
    return mean_estimate(100 * np.mean(list(_errors(hits).values()), axis=0))


def corruption_ratio(hits: Hits, base: Hits) -> float:
    """Mean over the corruptions of sum_s E / sum_s E of the base model on the same images; 1 is no change.

    As mCE, with another unit: never to be compared with it. NaN where the base model errs on no image of a corruption,
    as on few images it may. Errors as `mce`.
    """
    ours, theirs = ([errors[c].mean() for c in CORRUPTIONS] for errors in (_errors(hits), _errors(base)))
    return float(np.mean(np.divide(ours, theirs))) if all(theirs) else float("nan")


def average(row: Mapping[str, float]) -> float:
    """The paper's Average: the mean of the given columns in percent, 100 - error where a column is an error.

    Two averages compare only if their columns are the same ones and c is in both an mCE or in both a corruption error.

    Raises:
        ValueError: no columns, or a value is missing.
    """
    values = [100 - value if name in ERRORS else value for name, value in row.items()]
    if not values or not np.isfinite(values).all():
        raise ValueError(f"an average needs a number for every column, got {dict(row)}")
    return float(np.mean(values))


def paired_difference(ours: Hits, theirs: Hits) -> tuple[Estimate, float]:
    """Top-1 of one model minus another's on the same images, in percentage points, with its interval and p-value.

    The interval is that of `difference_estimate`. The test is McNemar's exact one: among images on which the two
    differ, either side is as likely to be right. Over several variants of an image, such as corruptions, the
    differences are shares, and it is the test of their mean when signs are flipped at random (9,999 times, fixed
    draws). Several seeds are paired seed by seed, or each with the one seed of the other side; interval and test are
    then by `paired_spread`.

    Raises:
        ValueError: not the same variants and images, or numbers of seeds that cannot be paired.
    """
    difference = image_differences(ours, theirs)
    found = difference_estimate(difference).percent()
    if difference.ndim == 2:
        return found, paired_spread(difference).p_value(found.value / 100)
    differ = difference[difference != 0]
    if not len(differ):
        p_value = 1.0
    elif np.isin(differ, (-1, 1)).all():
        p_value = stats.binomtest(int((differ > 0).sum()), len(differ)).pvalue
    else:
        signs = np.random.default_rng(0).integers(0, 2, (_FLIPS, len(differ)), dtype=np.int8) * 2 - 1
        sums = np.concatenate([block @ differ for block in np.array_split(signs, 100)])  # as floats they are large
        p_value = (1 + np.count_nonzero(np.abs(sums) >= abs(differ.sum()) - 1e-9)) / (1 + _FLIPS)
    return found, float(p_value)


def images_half(ours: Hits, theirs: Hits) -> float:
    """Half the width, in percentage points, of the interval of `paired_difference` were these the only seeds."""
    difference = image_differences(ours, theirs)
    if difference.ndim == 2 and difference.any():
        images, _, added = paired_spread(difference).sources
        return 100 * Spread((images, added)).half()
    found = difference_estimate(difference).percent()
    return (found.high - found.low) / 2


def image_differences(ours: Hits, theirs: Hits) -> np.ndarray:
    """Difference of the shares of variants that are right, for each image (n,), and for each pair of seeds (S, n).

    Raises:
        ValueError: as `paired_difference`.
    """
    images = [{name: np.shape(v)[-1] for name, v in hits.items()} for hits in (ours, theirs)]
    if images[0] != images[1]:
        raise ValueError(f"a paired difference needs the same images, got {images[0]} and {images[1]}")
    first, second = np.atleast_2d(per_image(ours)), np.atleast_2d(per_image(theirs))
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"seeds are paired one by one, got {len(first)} and {len(second)}: measure as many of both, or one"
        )
    difference = first - second
    return difference[0] if len(difference) == 1 else difference


def corruption_table(hits: Hits) -> pd.DataFrame:
    """Top-1 in percent, corruptions as rows and severities as columns, from variants such as fog/3."""
    cells = {tuple(name.split("/")): 100 * float(np.mean(found)) for name, found in hits.items()}
    table = pd.Series(cells).unstack()
    return table.reindex([c for c in CORRUPTIONS if c in table.index]).rename_axis(
        index="corruption", columns="severity"
    )
