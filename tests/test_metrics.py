"""The figures of Table 2 from hits: hand-computed, and the paper's own Average recomputed from its printed rows."""

import numpy as np
import pandas as pd
import pytest

from nslib.config import TABLE2
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES
from nslib.evaluate.metrics import (
    ALEXNET_ERROR,
    average,
    corruption_error,
    corruption_ratio,
    corruption_table,
    images_half,
    mce,
    paired_difference,
    per_image,
)
from nslib.runtime import data_path

PRINTED = pd.read_csv(data_path("reference", "table2.csv"))
COMPLETE = PRINTED.dropna()


def hits_with(error: dict[str, float], n: int = 20) -> dict[str, np.ndarray]:
    """Hits over n images: of corruption c a share error[c] is wrong at every severity."""
    return {f"{c}/{s}": np.arange(n) >= round(error[c] * n) for c in CORRUPTIONS for s in SEVERITIES}


@pytest.mark.parametrize("row", COMPLETE.to_dict("records"), ids=lambda r: r["model"])
def test_average_of_the_printed_rows(row):
    """Table 2's Average is the mean of its eleven columns with 100 - mCE, to the second decimal."""
    assert average({c: row[c] for c in TABLE2}) == pytest.approx(row["average"], abs=0.0075)


def test_printed_table_is_whole():
    assert list(PRINTED.columns) == ["model", *TABLE2, "average"]
    assert len(COMPLETE) == 6
    assert len(PRINTED) == 14


def test_average_refuses_gaps():
    with pytest.raises(ValueError, match="a number for every column"):
        average({"clean": 80.0, "c": float("nan")})
    with pytest.raises(ValueError, match="a number for every column"):
        average({})


def test_mce_of_alexnet_is_one_hundred():
    """A model with AlexNet's own errors: 1000 images make every published error exact."""
    found = mce(hits_with(ALEXNET_ERROR, n=1000))
    assert found.value == pytest.approx(100)
    assert found.n == 1000


def test_mce_weighs_by_alexnet_and_the_error_does_not():
    error = dict.fromkeys(CORRUPTIONS, 0.0) | {"brightness": 0.5}
    hits = hits_with(error)
    assert mce(hits).value == pytest.approx(100 * 0.5 / 0.565 / 15)
    assert corruption_error(hits).value == pytest.approx(100 * 0.5 / 15)


def test_ratio_to_a_base_model():
    base = hits_with(dict.fromkeys(CORRUPTIONS, 0.5))
    ours = hits_with(dict.fromkeys(CORRUPTIONS, 0.5) | {"fog": 0.25})
    assert corruption_ratio(base, base) == 1
    assert corruption_ratio(ours, base) == pytest.approx((14 + 0.5) / 15)


def test_a_missing_corruption_is_named():
    hits = hits_with(dict.fromkeys(CORRUPTIONS, 0.5))
    del hits["fog/3"]
    for figure in (mce, corruption_error):
        with pytest.raises(ValueError, match="missing or unknown: fog/3"):
            figure(hits)
    with pytest.raises(ValueError, match="missing or unknown: frog/3"):
        mce(hits | {"fog/3": hits["fog/2"], "frog/3": hits["fog/2"]})


def test_table_keeps_the_published_order():
    hits = {name: np.array([True, False, False, True]) for name in ("fog/2", "fog/1", "shot_noise/2", "shot_noise/1")}
    hits["fog/2"] = np.array([True, True, True, False])
    table = corruption_table(hits)
    assert list(table.index) == ["shot_noise", "fog"]
    assert list(table.columns) == ["1", "2"]
    assert table.loc["fog"].tolist() == [50, 75]


def test_paired_difference_by_hand():
    """Ours wins three images and loses one: +2 of 8, and McNemar's exact p is 2 * (1 + 4) / 16."""
    ours = {"": np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)}
    theirs = {"": np.array([0, 0, 0, 1, 1, 1, 0, 0], bool)}
    found, p_value = paired_difference(ours, theirs)
    assert found.value == 25
    assert found.low < 25 < found.high
    assert found.n == 8
    assert p_value == pytest.approx(0.625)


def test_paired_difference_of_a_model_with_itself():
    hits = {"": np.array([1, 0, 1], bool)}
    found, p_value = paired_difference(hits, hits)
    assert (found.value, p_value) == (0, 1)
    assert found.low < 0 < found.high  # three images alike say little about others


def test_pairing_is_narrower_than_two_intervals():
    """Two models that differ on 4 % of the images: the paired interval excludes 0, unpaired ones would overlap."""
    rng = np.random.default_rng(0)
    theirs = rng.random(1000) < 0.6
    ours = theirs | (np.arange(1000) % 10 == 0)
    found, p_value = paired_difference({"": ours}, {"": theirs})
    assert found.low > 0
    assert found.high - found.low < 3
    assert p_value < 1e-6


def test_half_an_interval_over_images_is_never_more_than_half_of_all():
    """Where seeds differ in no image from another model, there is no spread to take it from."""
    ours, theirs = {"": np.ones((3, 24), bool)}, {"": np.ones(24, bool)}
    found, _ = paired_difference(ours, theirs)
    assert images_half(ours, theirs) == pytest.approx((found.high - found.low) / 2)


def test_paired_difference_needs_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        paired_difference({"": np.ones(3, bool)}, {"": np.ones(4, bool)})
    with pytest.raises(ValueError, match="same images"):
        paired_difference({"fog/1": np.ones(3, bool)}, {"fog/2": np.ones(3, bool)})


def test_several_seeds_are_tested_over_seeds():
    """Each of two seeds wins 30 of 100 images, but not by chance alone: the p-value is that of the interval."""
    theirs = {"": np.zeros(100, bool)}
    steady = {"": np.stack([np.arange(100) < 30, np.arange(100) < 30])}
    found, p_value = paired_difference(steady, theirs)
    assert (found.value, found.n, found.seeds) == (30, 100, 2)
    assert p_value < 1e-6
    uneven = {"": np.stack([np.arange(100) < 60, np.arange(100) < 0])}
    found, p_value = paired_difference(uneven, theirs)
    assert found.value == 30
    assert found.low < 0
    assert p_value > 0.05


def test_per_image_is_the_mean_over_variants():
    assert per_image({"a": np.array([1, 0], bool), "b": np.array([1, 1], bool)}).tolist() == [1, 0.5]


def test_shares_are_tested_by_flipping_signs():
    """All of six differences of a half point one way: two of 64 sign patterns are as extreme."""
    ours = {v: np.array([1, 1, 1, 1, 1, 1, 1, 0], bool) for v in ("fog/1", "fog/2")}
    theirs = {"fog/1": ours["fog/1"], "fog/2": np.zeros(8, bool)}
    theirs["fog/2"][6] = True
    found, p_value = paired_difference(ours, theirs)
    assert found.value == pytest.approx(100 * 6 * 0.5 / 8)
    assert p_value == pytest.approx(2 / 64, abs=0.006)


def test_interval_and_test_agree_on_shares():
    """Many small losses against a few large wins of the same sum: no difference of the mean, whatever the majority."""
    ours, theirs = np.zeros((4, 400), bool), np.zeros((4, 400), bool)
    theirs[0, :200] = True  # a quarter lost on 200 images
    ours[:, 200:250] = True  # all won on 50
    hits = [{f"fog/{i}": row for i, row in enumerate(rows)} for rows in (ours, theirs)]
    found, p_value = paired_difference(*hits)
    assert found.value == 0
    assert p_value > 0.9


def test_ratio_weighs_corruptions_alike():
    """Also one under which the base model errs little."""
    base = hits_with(dict.fromkeys(CORRUPTIONS, 0.5) | {"fog": 0.1})
    ours = hits_with(dict.fromkeys(CORRUPTIONS, 0.5) | {"fog": 0.2})
    assert corruption_ratio(ours, base) == pytest.approx((14 + 2) / 15)
