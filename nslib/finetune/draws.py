"""Random numbers by place: each is a function of the seed, of its purpose and its time, not of what was drawn before.

A run that is resumed, or cut at another step, therefore draws what an unbroken one draws, and no random state is saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nslib.data.hashing import key
from nslib.runtime import generator

PURPOSES = ("order", "noise", "choice", "attack", "augment")


def number(seed: int, purpose: str, *place: int) -> int:
    """A number in [0, 2^63) for a purpose and a place in the run, such as a round or an update."""
    return int(key(seed, PURPOSES.index(purpose), *place)) & (1 << 63) - 1


def draws(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A CPU generator for a purpose and a place in the run."""
    return generator(number(seed, purpose, *place))


@contextmanager
def seeded(value: int, device: torch.device) -> Iterator[None]:
    """Inside the block the global generators of Python, numpy and torch, on which timm draws, start from this value.

    After it those of the CPU and of this CUDA device go on as if nothing had been drawn.
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(value)
        np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(value)  # torch's: of all devices
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
