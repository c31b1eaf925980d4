"""FGSM and PGD: steps along the gradient of the cross-entropy, projected back into the budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nslib.attacks.budget import check_budget, lengths, project, random_point, seal
from nslib.attacks.target import under_attack


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """One step of length eps along the sign of the gradient: PGD with a single step.

    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """
    return pgd(model, images, labels, eps=eps, step=eps, steps=1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    norm: str = "linf",
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy of each image, (B, C, H, W) -> (B, C, H, W).

    Args:
        eps: budget in pixel units, images lying in [0, 1]: largest change of a pixel (linf) or of the image (l2).
        step: length of one step, same units and norm.
        random_start: begin at a point drawn uniformly from the ball, by `generator`, a CPU generator.
    Raises:
        ValueError: eps or step negative or, in linf, above 1; unknown norm; steps < 1; a random start without a
            generator; or as `under_attack`.
        FloatingPointError: NaN logits.
    Source: Madry et al. 2018, arXiv:1706.06083.
    """
    check_budget(eps, norm)
    check_budget(step, norm, "step")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if random_start and generator is None:
        raise ValueError("random_start needs a generator: pass generator=torch.Generator().manual_seed(seed)")
    with under_attack(model, images, labels) as (target, images, labels, _):
        points = random_point(images, eps, norm, generator) if random_start else images
        for _ in range(steps):
            gradient = target.ascent(points, labels)
            direction = gradient.sign() if norm == "linf" else _unit(gradient)
            points = project(points + step * direction, images, eps, norm)
        return seal(points, images, eps, norm)


def _unit(gradient: Tensor) -> Tensor:
    """Each image's, (B, C, H, W), of length one, or zero; a sure model's is too small to be squared as it is."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(1e-12)
