"""A noise is judged beside its controls: its own elements permuted, and a random direction, all of the same norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nslib.nullspace.membership import Agreement, CleanPass, agreement, permute
from nslib.runtime import generator
from nslib.vit.staged import StagedViT


def control_directions(noise: Tensor, *, seed: int) -> dict[str, Tensor]:
    """The noise (1, N, D) and two others of its norm: `learned`, `permuted`, `random` (Gaussian)."""
    draws = generator(seed)
    permuted = permute(noise, generator=draws)
    random = torch.randn(noise.shape, generator=draws).to(noise)
    return {"learned": noise, "permuted": permuted, "random": random * (noise.norm() / random.norm())}


def with_controls(model: StagedViT, clean: CleanPass, noises: Sequence[Tensor], *, seed: int) -> dict[str, Agreement]:
    """Agreement of each image (M,) under learned noises and their controls, the mean over the noises."""
    kinds: dict[str, list[Agreement]] = {}
    for i, noise in enumerate(noises):
        for kind, direction in control_directions(noise, seed=seed + i).items():
            kinds.setdefault(kind, []).append(agreement(model, clean, direction))
    return {kind: mean_agreement(found) for kind, found in kinds.items()}


def mean_agreement(found: Sequence[Agreement]) -> Agreement:
    """Image by image, the mean over several noises; `match` becomes the share of noises that match."""
    gap, match = zip(*found, strict=True)
    return Agreement(torch.stack(gap).mean(0), torch.stack(match).float().mean(0))
