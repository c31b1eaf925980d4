"""Patch-Fool: repaint the few patches that a ViT attends to most, so that it errs and attends to them even more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nslib.attacks.budget import check_budget, seal
from nslib.attacks.target import name_of, under_attack
from nslib.vit.attention_maps import attention_maps, over_patches
from nslib.vit.staged import StagedViT

_WEIGHT = 0.002  # of the attention paid, as published
_TINY = 1e-30  # keeps the logarithm and the projection finite where attention or gradient vanish


def patch_fool(
    model: StagedViT,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    patches: int = 1,
    bound: float | None = None,
    layer: int = 4,
    steps: int = 250,
    lr: float = 0.22,
) -> Tensor:
    """Attack each image through its most attended patches alone, (B, C, H, W) -> (B, C, H, W).

    Ascends CE + .002 * sum_l A_l, where A_l is the mean over queries of log attention paid to the chosen patches in
    block l, from 1 up to half the depth, heads averaged. Where the gradient of A_l conflicts with that of CE, its
    component along the latter is removed. An image leaves as soon as it is fooled; one that the model gets wrong from
    the start stays as it is. The published search runs all steps instead and keeps the last image, which may be one
    that no longer fools.

    Args:
        generator: on the CPU, draws the first paint: any colours, or within `bound` of the image. One for all images in
            turn, or one an image: then an image's paint does not depend on those beside it.
        patches: how many patches of the model's grid, at most N.
        bound: linf budget inside the patches, in pixel units; None lets them take any value in [0, 1].
        layer: block whose attention chooses the patches.
        lr: of Adam, falling by 5 % every 10 steps, in units of the normalised image (std of a pixel).
    Raises:
        TypeError: not a StagedViT, or a block without timm's standard attention.
        ValueError: patches, layer, bound or steps out of range, not one generator an image, or as `under_attack`.
        FloatingPointError: NaN logits.
    Source: Fu et al. 2022, arXiv:2203.08392, and the settings of its published code.
    """
    if bound is not None:
        check_budget(bound, name="bound")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not isinstance(model, StagedViT):
        raise TypeError(f"Patch-Fool reads patches and attention, expected a StagedViT, got {name_of(model)}")
    with under_attack(model, images, labels) as (target, images, labels, _):
        chosen = choose_patches(model, images, layer=layer, patches=patches)
        mask = patch_mask(model, chosen)

        def allowed(paint: Tensor) -> Tensor:
            return paint.clamp(0, 1) if bound is None else seal(paint, images, bound, "linf")

        colours = _colours(images, generator)
        paint = allowed(colours if bound is None else images + bound * (2 * colours - 1))
        optimizer = torch.optim.Adam([paint], lr=lr * model.std.mean().item(), maximize=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.95)
        fooled = images.clone()
        with torch.no_grad():
            active = (target(images).argmax(1) == labels).nonzero().flatten()
        if not len(active):
            return fooled
        with attention_maps(model, range(1, len(model.vit.blocks) // 2)) as maps:
            for step in range(steps + 1):
                fooled[active] = torch.where(mask[active], paint[active], images[active])
                points = fooled[active].requires_grad_()
                logits = target(points)
                right = logits.argmax(1) == labels[active]
                if step == steps or not right.any():
                    break
                loss = F.cross_entropy(logits, labels[active], reduction="sum")
                sides = (_attention_paid(attention, chosen[active], model) for attention in maps.values())
                paint.grad = torch.zeros_like(paint)
                paint.grad[active] = _ascent(loss, sides, points, mask[active])
                optimizer.step()
                schedule.step()
                paint.copy_(allowed(paint))
                active = active[right]
    return fooled


def _colours(images: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Colours in [0, 1) for every pixel of images (B, C, H, W)."""
    draws = [generator] * len(images) if isinstance(generator, torch.Generator) else generator
    if len(draws) != len(images):
        raise ValueError(f"generator must be one, or one for each of {len(images)} images, got {len(draws)}")
    return torch.stack([torch.rand(images.shape[1:], generator=g, dtype=images.dtype) for g in draws]).to(images.device)


def choose_patches(model: StagedViT, images: Tensor, *, layer: int, patches: int) -> Tensor:
    """The patches (B, patches) to which all tokens together pay most attention in a block, most attended first.

    Raises:
        ValueError: patches not in 1..N, or no such block.
    """
    available = model.token_shape[0]
    if not 1 <= patches <= available:
        raise ValueError(f"patches must lie in 1..{available}, the grid of {model.name}, got {patches}")
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        model(images)
    received = maps[layer].mean(1).sum(1)  # (B, heads, T, T) -> (B, T), summed over queries
    return received[:, model.vit.num_prefix_tokens :].topk(patches).indices


def patch_mask(model: StagedViT, chosen: Tensor) -> Tensor:
    """True on the pixels of the chosen patches (B, patches), as (B, 1, H, W)."""
    return over_patches(model, F.one_hot(chosen, model.token_shape[0]).sum(1).bool()).unsqueeze(1)


def _attention_paid(attention: Tensor, chosen: Tensor, model: StagedViT) -> Tensor:
    """Sum over images of the mean log attention that tokens pay to the chosen patches; attention (B, heads, T, T)."""
    paid = attention.mean(1)[:, :, model.vit.num_prefix_tokens :]  # (B, T, N)
    columns = chosen.unsqueeze(1).expand(-1, paid.shape[1], -1)
    return paid.gather(2, columns).sum(2).clamp_min(_TINY).log().mean(1).sum()


def _ascent(loss: Tensor, sides: Iterable[Tensor], points: Tensor, mask: Tensor) -> Tensor:
    """Gradient of the loss inside the mask, plus those of the side losses less what in them opposes it."""

    def gradient(of: Tensor) -> Tensor:
        return (torch.autograd.grad(of, points, retain_graph=True)[0] * mask).flatten(1)

    main = gradient(loss)
    total = main.clone()
    for side in map(gradient, sides):
        conflict = (side * main).sum(1, keepdim=True).clamp_max(0) / main.square().sum(1, keepdim=True).clamp_min(_TINY)
        total += _WEIGHT * (side - conflict * main)
    return total.reshape(points.shape)
