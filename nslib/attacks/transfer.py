"""Adversarial images made beforehand on another network, as DAmageNet's were, to be shown to the model under test."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nslib.attacks.budget import check_budget, project, seal
from nslib.attacks.target import under_attack

STEPS = 10


def transfer_set(
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = STEPS,
    decay: float = 1.0,
    smoothing: int = 7,
) -> Tensor:
    """Attack images (M, C, H, W) on the surrogate by momentum iterative FGSM, steps of eps / steps; (M, C, H, W).

    Two things keep to directions that depend less on this one network: the momentum, decay * momentum + gradient /
    mean |gradient|, to those that last over the search; the smoothing of gradients, to those that hold for the image
    shifted by some pixels too, which counts from a CNN to a ViT and costs between two ViTs.

    Args:
        eps: linf budget in pixel units.
        smoothing: side of a Gaussian kernel in pixels, odd; 1 is none, and better between two ViTs.
    Raises:
        ValueError: eps negative or above 1, steps < 1, decay negative, smoothing even, or as `under_attack`.
        FloatingPointError: NaN logits.
    Source: Dong et al. 2018, arXiv:1710.06081; smoothing, Dong et al. 2019, arXiv:1904.02884; the idea of a stored
        set, Chen et al. 2020, arXiv:2001.06325.
    """
    check_budget(eps)
    if steps < 1 or decay < 0:
        raise ValueError(f"steps must be >= 1 and decay >= 0, got {steps} and {decay}")
    if smoothing < 1 or smoothing % 2 == 0:
        raise ValueError(f"smoothing must be an odd number of pixels, 1 for none, got {smoothing}")
    with under_attack(surrogate, images, labels) as (target, images, labels, _):
        points, momentum = images, torch.zeros_like(images)
        for _ in range(steps):
            gradient = _smooth(target.ascent(points, labels), smoothing)
            size = gradient.abs().mean((1, 2, 3), keepdim=True)
            momentum = decay * momentum + gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
            points = project(points + eps / steps * momentum.sign(), images, eps, "linf")
        return seal(points, images, eps, "linf")


def _smooth(gradient: Tensor, side: int) -> Tensor:
    """Convolve each channel of (B, C, H, W) with a Gaussian of variance half^2 / 3, half being side // 2."""
    half = side // 2
    if half == 0:
        return gradient
    offsets = torch.arange(-half, half + 1, dtype=gradient.dtype, device=gradient.device)
    line = torch.softmax(-1.5 * (offsets / half).square(), 0)
    channels = gradient.shape[1]
    kernel = line.outer(line).expand(channels, 1, -1, -1)
    return F.conv2d(gradient, kernel, padding=half, groups=channels)
