"""Gaussian, shot and impulse noise: on the 8-bit grid each is a 256 x 256 matrix of probabilities.

Noise that treats every value (pixel and channel) alone and ends in truncation to 8 bits sends level l to level k with
a probability P[l, k] that can be written down. Drawing from row l by the alias method takes one random word and one
look-up, whatever the distribution, and no transcendental function, so that all devices draw the same bytes.

Source of the method: A. J. Walker, ACM TOMS 3 (1977).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtr
from scipy.stats import poisson
from torch import Tensor

from nslib.data.corruption_fields import bits

_LEVELS = 256
_BLOCK = 3 * 10**5  # values a pass: larger ones make the allocator give memory back and fetch it again


def gaussian_noise(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Adds N(0, c^2) to each value."""
    return _draw(gaussian_noise_matrix, levels, severity, keys)


def shot_noise(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Counts Poisson(c x) photons at each value x in [0, 1] and shows them as count / c."""
    return _draw(shot_noise_matrix, levels, severity, keys)


def impulse_noise(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Sets a share c of the values to black or white, either as often; each channel for itself."""
    return _draw(impulse_noise_matrix, levels, severity, keys)


def gaussian_noise_matrix(severity: int) -> np.ndarray:
    """P[l, k] = P(k <= l + 255 c n < k + 1) for normal n, with the tails at 0 and 255."""
    sigma = 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    level = np.arange(_LEVELS)
    below = ndtr((level + 1 - level[:, None]) / sigma)
    below[:, -1] = 1
    return np.diff(below, axis=1, prepend=0)


def shot_noise_matrix(severity: int) -> np.ndarray:
    """P[l, floor(255 min(n, c) / c)] for n ~ Poisson(c l / 255)."""
    c = (60, 25, 12, 5, 3)[severity - 1]
    counts = np.arange(c)
    matrix = np.zeros((_LEVELS, _LEVELS))
    shown = np.floor(counts / float(c) * 255).astype(int)
    matrix[:, shown] = poisson.pmf(counts, np.arange(_LEVELS)[:, None] / 255 * c)
    matrix[:, -1] = 1 - matrix.sum(axis=1)  # c photons or more are white
    return matrix.clip(0)


def impulse_noise_matrix(severity: int) -> np.ndarray:
    """P[l, l] = 1 - c, and c / 2 each for 0 and 255."""
    c = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    matrix = (1 - c) * np.eye(_LEVELS)
    matrix[:, [0, -1]] += c / 2
    return matrix


def _draw(matrix, levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    table = alias_table(matrix, severity, levels.device)
    out = torch.empty_like(levels)
    some = max(1, _BLOCK // levels[0].numel())
    for block, block_keys, drawn in zip(*(t.split(some) for t in (levels, keys, out)), strict=True):
        words = bits(block_keys, block[0].numel()).reshape(block.shape)
        entry = (block.to(torch.int32) << 8).bitwise_or_(words & 255).flatten()
        entries = table.index_select(0, entry).reshape(block.shape)
        # The upper 24 bits of the word against those of the entry decide between the two levels in the lower 8.
        drawn.copy_(torch.minimum(words, entries, out=entries).bitwise_and_(255))
    return out


@lru_cache(maxsize=32)
def alias_table(matrix, severity: int, device: torch.device) -> Tensor:
    """Alias table of matrix(severity), (65536,) int32: entry [l, bin] holds a 24-bit threshold and the other level.

    A word w, uniform over int32, has bin w & 255. It stands for level `bin` where w is below the entry, else for the
    level in the entry's lower 8 bits: min(w, entry) & 255 is both. Probabilities are kept to 2^-24 of a bin.
    """
    rows = np.arange(_LEVELS)
    left = matrix(severity) * _LEVELS  # probability still to be placed, in bins
    keep, other = np.ones_like(left), np.tile(rows, (_LEVELS, 1))
    is_open = np.ones_like(left, dtype=bool)
    for _ in range(_LEVELS - 1):
        poor = np.where(is_open, left, np.inf).argmin(axis=1)
        rich = np.where(is_open, left, -np.inf).argmax(axis=1)
        keep[rows, poor], other[rows, poor] = left[rows, poor], rich
        left[rows, rich] -= 1 - left[rows, poor]  # the richest level fills the rest of the poorest one's bin
        is_open[rows, poor] = False
    threshold = np.clip(np.rint(keep * 2**24), 0, 2**24 - 1).astype(np.int64) - 2**23
    return torch.from_numpy((threshold * 256 + other).astype(np.int32).ravel()).to(device)
