"""Random fields for the corruptions: a word, a uniform or a normal number for each pixel of each image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from nslib.data.hashing import mix


def bits(keys: Tensor, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Random words (B, count), uniform over all values of int32 or int16; image b's depend on keys[b] alone."""
    words = -(-count * dtype.itemsize // 8)
    hashes = mix(keys.unsqueeze(1) ^ torch.arange(words, device=keys.device))
    return hashes.view(dtype)[:, :count]  # one hash holds two or four words


def uniform_field(keys: Tensor, *shape: int) -> Tensor:
    """(B, *shape) in (-1, 1), on a grid of 2^16 values."""
    words = bits(keys, int(np.prod(shape)), torch.int16)
    return ((words.to(torch.float32) + 0.5) * 2.0**-15).reshape(-1, *shape)


def normal_field(keys: Tensor, *shape: int) -> Tensor:
    """(B, *shape) standard normal, from 2^16 equally likely values: none is beyond 4.4."""
    words = bits(keys, int(np.prod(shape)), torch.int16).to(torch.int32) + 2**15
    return _normal_quantiles(keys.device).index_select(0, words.flatten()).reshape(-1, *shape)


@lru_cache(maxsize=4)
def _normal_quantiles(device: torch.device) -> Tensor:
    return torch.from_numpy(ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)).to(device)
