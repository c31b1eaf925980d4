"""Random numbers without state: a bijection, the published generator, and uniform draws."""

import numpy as np
import pytest
import torch
from scipy import stats

from nslib.data.hashing import Draws, key, mix, uniform

COUNT = 100_000


def splitmix64(state: int) -> int:
    """Steele, Lea and Flood (2014), in Python's own integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("state", [0, 1, 2**40 + 17, 2**63 - 1, -1, -(2**63)])
def test_mix_is_splitmix64(state):
    assert mix(torch.tensor(state)).item() % 2**64 == splitmix64(state % 2**64)


def test_splitmix64_first_output_is_the_published_one():
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_mix_meets_no_value_twice():
    dense, sparse = torch.arange(COUNT), torch.arange(COUNT) << 44
    for keys in (dense, sparse):
        assert len(torch.unique(mix(keys))) == COUNT


def test_key_depends_on_every_part_and_their_order():
    grid = key(torch.arange(50).reshape(50, 1), torch.arange(50))  # broadcast together
    assert grid.shape == (50, 50)
    assert len(torch.unique(grid)) == 2500
    assert torch.equal(grid[3, 7], key(3, 7))


@pytest.mark.parametrize("keys", [torch.arange(COUNT), key(7, torch.arange(COUNT), 3)], ids=["counter", "chained"])
def test_uniform_is_uniform(keys):
    u = uniform(mix(keys)).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert np.array_equal(u * 2**24, np.floor(u * 2**24))  # 24 bits, exactly
    assert abs(u.mean() - 1 / 2) < 5 / np.sqrt(12 * COUNT)  # five standard errors
    assert abs(u.var() - 1 / 12) < 5 / np.sqrt(180 * COUNT)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(COUNT)
    assert stats.kstest(u, "uniform").pvalue > 0.01


def test_draws_of_different_names_are_independent():
    draw = Draws(key(0, torch.arange(COUNT)))
    a, b = draw("cx", -1, 1), draw("cy", -1, 1)
    assert -1 <= a.min() < -0.999 < 0.999 < a.max() < 1
    assert torch.equal(a, draw("cx", -1, 1))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / COUNT**0.5


def test_integers_cover_their_range_evenly():
    counts = Draws(key(0, torch.arange(COUNT))).integer("label", 10).bincount()
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 0.01
