"""How far an attack may go: the budget, and the ball around each image that it allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = ("linf", "l2")


def check_budget(value: float, norm: str = "linf", name: str = "eps") -> None:
    """Refuse what is no distance between images in [0, 1].

    Raises:
        ValueError: unknown norm; negative, infinite or NaN; above 1 in linf, where nothing is farther than 1.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    largest = 1.0 if norm == "linf" else math.inf
    if not (0 <= value <= largest and value < math.inf):
        span = "[0, 1]" if norm == "linf" else "[0, inf)"
        raise ValueError(
            f"{name} must lie in {span} in {norm}, got {value}: images lie in [0, 1], so divide 8-bit levels by 255"
        )


def project(points: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest points (B, C, H, W) within eps of each image, up to rounding, then clamped to [0, 1].

    Clamping moves points towards an image that lies in [0, 1] itself, so that they stay within eps.
    """
    change = points - images
    if norm == "linf":
        change = change.clamp(-eps, eps)
    else:
        change = change * (eps / lengths(change).clamp_min(1e-12)).clamp_max(1)
    return (images + change).clamp(0, 1)


def seal(points: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """What an attack hands out: projected into a ball smaller by what rounding can add, so that none leaves its own."""
    return project(points, images, tight(eps, images.dtype), norm)


def tight(eps: float, dtype: torch.dtype) -> float:
    """A budget less what rounding in images of this type can add to it."""
    unit = torch.finfo(dtype).eps
    return max(0.0, eps * (1 - 8 * unit) - unit)


def lengths(vectors: Tensor) -> Tensor:
    """l2 norm of each of (B, ...), as (B, 1, 1, ...)."""
    return vectors.flatten(1).norm(dim=1).reshape(-1, *[1] * (vectors.ndim - 1))


def random_point(images: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball of each image, then clamped to [0, 1]; drawn on the CPU."""
    if norm == "linf":
        offset = torch.rand(images.shape, generator=generator, dtype=images.dtype) * 2 - 1
    else:
        offset = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        share = torch.rand(len(images), 1, 1, 1, generator=generator, dtype=images.dtype)
        offset = offset / lengths(offset) * share ** (1 / images[0].numel())  # volume grows as length^n
    return project(images + eps * offset.to(images.device), images, eps, norm)
