"""Adversarial images made beforehand on another network, as DAmageNet's were, to be shown to the model under test."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nslib.attacks.budget import check_budget, project, seal
from nslib.attacks.target import under_attack

_WIDTHS = (24, 48, 64, 96)  # with ten classes 236,354 parameters: under 1 MB in float32


def surrogate_cnn(num_classes: int, size: int) -> nn.Sequential:
    """An untrained small CNN for square images of about this size, (B, 3, size, size) in [0, 1] -> (B, num_classes).

    Plain 3 x 3 convolutions: whatever transfers to a ViT owes nothing to attention or to a grid of patches. The first
    layer, a batch norm without parameters, is the normalisation. From 96 px on the first convolution strides, so that
    the trunk sees 48 to 95 px, on which its last features take in the whole object.

    Raises:
        ValueError: size below 16, which leaves the last features without neighbours.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 px, got {size}")
    trunk = [_convolution(3, _WIDTHS[0], stride=max(1, size // 48))]
    for narrow, wide in pairwise(_WIDTHS):
        trunk += [_convolution(narrow, wide, stride=2), _convolution(wide, wide, stride=1)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], num_classes))
    return nn.Sequential(nn.BatchNorm2d(3, affine=False), *trunk, *head)


def _convolution(narrow: int, wide: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, kernel_size=3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
    )


def transfer_set(
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    decay: float = 1.0,
    smoothing: int = 7,
    batch: int = 128,
) -> Tensor:
    """Attack images (M, C, H, W) on the surrogate by momentum iterative FGSM, steps of eps / steps; (M, C, H, W).

    Two things keep to directions that depend less on this one network: the momentum, decay * momentum + gradient /
    mean |gradient|, to those that last over the search; the smoothing of gradients, to those that hold for the image
    shifted by some pixels too. From `surrogate_cnn` to the shapes ViT it is the smoothing that counts: at 16/255 PGD
    and momentum alone do no more than random signs (94 %, 93 % and 94 % right), with smoothing 84 % are left; and 53 %
    instead of 70 % where the surrogate was finetuned on FGSM images for 200 steps (n = 200). Between two ViTs it costs:
    DeiT-Ti to ViT-Ti at 8/255 and 224 px, 21 % are left without smoothing and 35 % with (n = 48).

    Args:
        eps: linf budget in pixel units.
        smoothing: side of a Gaussian kernel in pixels, odd; 1 is none, and better between two ViTs.
        batch: images at once; each is attacked on its own.
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
    parts = []
    with under_attack(surrogate, images, labels) as (target, images, labels, _):
        for clean, truth in zip(images.split(batch), labels.split(batch), strict=True):
            points, momentum = clean, torch.zeros_like(clean)
            for _ in range(steps):
                gradient = _smooth(target.ascent(points, truth), smoothing)
                size = gradient.abs().mean((1, 2, 3), keepdim=True)
                momentum = decay * momentum + gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
                points = project(points + eps / steps * momentum.sign(), clean, eps, "linf")
            parts.append(seal(points, clean, eps, "linf"))
        return torch.cat(parts)


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
