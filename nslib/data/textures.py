"""Ten textures, one that goes with each shape class: functions of plane coordinates (u, v) with values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from nslib.data.geometry import length
from nslib.data.hashing import key, uniform


def _wave(u: Tensor) -> Tensor:
    """Triangle wave of period 1 in [0, 1]."""
    return ((u - torch.floor(u)) * 2 - 1).abs()


def _step(t: Tensor, threshold: float, slope: float = 4.0) -> Tensor:
    return ((t - threshold) * slope + 0.5).clamp(0, 1)


def _cell_noise(i: Tensor, j: Tensor) -> Tensor:
    """One uniform number for each integer cell."""
    return uniform(key(i.to(torch.int64), j.to(torch.int64)))


def flat(u, v):
    return torch.full_like(u, 0.5)


def stripes(u, v):
    return _step(_wave(u), 0.5)


def checks(u, v):
    return ((_wave(u) - 0.5) * (_wave(v) - 0.5) * 16 + 0.5).clamp(0, 1)


def dots(u, v):
    return _step(length(u - torch.floor(u) - 0.5, v - torch.floor(v) - 0.5), 0.32, 6)


def circles(u, v):
    return _step(_wave(length(u, v)), 0.5)


def zigzag(u, v):
    return _step(_wave(u + _wave(v * 0.7) * 0.8), 0.5)


def grid(u, v):
    return _step(torch.maximum(_wave(u), _wave(v)), 0.75)


def bricks(u, v):
    row = torch.floor(v)
    shifted = u * 0.6 + (row - torch.floor(row * 0.5) * 2) * 0.5
    return _step(torch.maximum(_wave(shifted) * 0.9, _wave(v)), 0.78)


def clouds(u, v):
    """Value noise: random numbers on the integer lattice, interpolated smoothly between."""
    i, j = torch.floor(u), torch.floor(v)
    s, t = ((f * f * (3 - f * 2)) for f in (u - i, v - j))
    low = _cell_noise(i, j) * (1 - s) + _cell_noise(i + 1, j) * s
    high = _cell_noise(i, j + 1) * (1 - s) + _cell_noise(i + 1, j + 1) * s
    return _step(low * (1 - t) + high * t, 0.5, 3)


def speckle(u, v):
    return _cell_noise(torch.floor(u * 2), torch.floor(v * 2))


TEXTURES = (flat, stripes, checks, dots, circles, zigzag, grid, bricks, clouds, speckle)
