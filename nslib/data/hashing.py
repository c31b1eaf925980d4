"""Counter-based random numbers: every draw is a hash of where it is used, so no generator state exists.

A value depends on its key alone, never on batch, order, worker or device: integer multiplication modulo 2^64,
exclusive or and shifts are exact everywhere, and a hash becomes a float by one exact division.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = {shift: (1 << (64 - shift)) - 1 for shift in (27, 30, 31, 40)}


def _signed(value: int) -> int:
    """The int64 with the bits of a 64-bit unsigned constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN, _M1, _M2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(h: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own is arithmetic on int64."""
    return (h >> bits) & _MASK[bits]


def mix(h: Tensor) -> Tensor:
    """Scramble int64 keys of any shape; a bijection (the finaliser of SplitMix64, Steele et al. 2014)."""
    h = h + _GOLDEN
    h = (h ^ _shift(h, 30)) * _M1
    h = (h ^ _shift(h, 27)) * _M2
    return h ^ _shift(h, 31)


def key(*parts: int | Tensor) -> Tensor:
    """Chain integers and int64 tensors (broadcast together) into one int64 key, where the first tensor is."""
    device = next((part.device for part in parts if isinstance(part, Tensor)), None)
    h = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        h = mix(h ^ torch.as_tensor(part, dtype=torch.int64, device=device))
    return h


def uniform(h: Tensor) -> Tensor:
    """Hash -> float32 in [0, 1) with 24 random bits, exactly."""
    return _shift(h, 40).to(torch.float32) / float(1 << 24)


class Draws:
    """Named uniform draws for a batch of keys (B,): `draws("radius", .3, .5)` is (B,) in [.3, .5)."""

    def __init__(self, keys: Tensor):
        self.keys = keys

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        salt = int.from_bytes(name.encode()[:7].ljust(7, b"\0"), "little")
        return uniform(mix(self.keys ^ salt)) * (high - low) + low

    def integer(self, name: str, count: int) -> Tensor:
        """(B,) int64 in [0, count)."""
        return (self(name) * count).to(torch.int64)
