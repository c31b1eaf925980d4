"""Saliency maps of an image, and whether nullspace noise changes them: Figures 8(b) and 10."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from nslib.analysis.lrp import pixel_relevance
from nslib.intervals import Estimate, estimates_of, mean_estimate
from nslib.runtime import optional
from nslib.vit.attention_maps import attention_maps, over_patches
from nslib.vit.staged import StagedViT, batched_logits, frozen

# Which maps are equal for equal tokens by algebra alone. Summed over a patch all are; pixel by pixel only the gradient,
# which comes back through one linear map, and the two that are made of tokens.
METHODS = ("CP-LRP", "gradient", "input x gradient", "integrated gradients", "Grad-CAM", "attention rollout")
ALGEBRA = {
    "pixel": ("gradient", "Grad-CAM", "attention rollout"),
    "patch": METHODS,
}
_BATCH = 32  # images explained at once
EXACT, ROUNDED = "real-valued", "8-bit"
SOURCE, TARGET = "source-transformed", "target-transformed"


def saliency_map(model: StagedViT, images: Tensor, labels: Tensor, method: str, *, ig_steps: int = 16) -> Tensor:
    """Saliency (B, H, W) of images (B, C, H, W) in [0, 1] for the logits of classes (B,), summed over channels.

    The gradient keeps its sign; integrated gradients start at black; Grad-CAM reads the last block's first LayerNorm;
    attention rollout multiplies the attention maps, averaged over heads and mixed half and half with the identity, and
    has no class.

    Raises:
        ValueError: no such method, or the model is in training mode.
        ModuleNotFoundError: captum or grad-cam is missing; says what to install.
        TypeError: as `conservative` and `attention_maps`, or Grad-CAM of a block without norm1.
    """
    makers: dict[str, Callable[[], Tensor]] = {
        "CP-LRP": lambda: pixel_relevance(model, images, labels).sum(1),
        "gradient": lambda: _by_captum("Saliency", model, images, labels, abs=False),
        "input x gradient": lambda: _by_captum("InputXGradient", model, images, labels),
        "integrated gradients": lambda: _by_captum(
            "IntegratedGradients", model, images, labels, n_steps=ig_steps, internal_batch_size=64
        ),
        "Grad-CAM": lambda: _grad_cam(model, images, labels),
        "attention rollout": lambda: _rollout(model, images),
    }
    if method not in makers:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    model.check_frozen_use()
    return makers[method]().detach()


def patch_map(model: StagedViT, saliency: Tensor) -> Tensor:
    """Maps (B, H, W) summed over each patch, (B, N)."""
    side = model.vit.patch_embed.patch_size
    return F.avg_pool2d(saliency.unsqueeze(1), side, divisor_override=1).flatten(1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (B,) of maps (B, ...); NaN where one of the two is flat."""
    a, b = (m.double().flatten(1) - m.double().flatten(1).mean(1, keepdim=True) for m in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def correlation_table(
    model: StagedViT,
    source: Tensor,
    transformed: Mapping[str, Tensor],
    target: Tensor,
    *,
    methods: tuple[str, ...] = METHODS,
) -> pd.DataFrame:
    """How alike the maps of source and transformed are, and those of target and transformed.

    Each image is explained for the class that the model gives it.

    Args:
        source, target: (B, C, H, W) in [0, 1].
        transformed: the same images by kind of picture: `real-valued`, which have exactly the source's tokens, `8-bit`,
            of which the model sees the rounding, or both.
    Returns:
        one row for each method, level (pixel, patch), picture and pair: mean correlation over images with its interval,
        n images whose maps are not flat, and `algebra`: whether the maps are equal because tokens are; else measured.
    Raises:
        ValueError: no such kind of picture, a method whose maps are flat on every image, or as `saliency_map`.
        ModuleNotFoundError, TypeError: as there.
    """
    if unknown := transformed.keys() - {EXACT, ROUNDED}:
        raise ValueError(f"pictures must be {EXACT} or {ROUNDED}, got {sorted(unknown)}: name them so")
    images = {"source": source, "target": target, **transformed}
    labels = {name: batched_logits(model, x, batch=_BATCH).argmax(1) for name, x in images.items()}
    rows = []
    for method in methods:
        maps = {name: _maps(model, x, labels[name], method) for name, x in images.items()}
        for level in ALGEBRA:
            levelled = {name: patch_map(model, m) if level == "patch" else m for name, m in maps.items()}
            for picture in transformed:
                for pair, other in ((SOURCE, "source"), (TARGET, "target")):
                    found = correlation(levelled[other], levelled[picture])
                    found = found[found.isfinite()].cpu()
                    if not len(found):
                        raise ValueError(f"the maps of {method} are flat on all {len(source)} images, so that they "
                                         "correlate with nothing: leave it out of methods")  # fmt: skip
                    estimate = mean_estimate(found)
                    algebra = pair == SOURCE and picture == EXACT and method in ALGEBRA[level]
                    place = {"method": method, "level": level, "picture": picture, "pair": pair}
                    rows.append(place | vars(estimate) | {"algebra": algebra})
    return pd.DataFrame(rows)


def estimates(table: pd.DataFrame, *, level: str = "patch", picture: str = ROUNDED) -> dict[str, Estimate]:
    """The estimates of a `correlation_table` with the maps of the source, by method."""
    rows = table[(table.level == level) & (table.picture == picture) & (table.pair == SOURCE)]
    return dict(zip(rows.method, estimates_of(rows), strict=True))


def _maps(model: StagedViT, images: Tensor, labels: Tensor, method: str) -> Tensor:
    parts = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    return torch.cat([saliency_map(model, x, y, method) for x, y in parts])


def _by_captum(name: str, model: StagedViT, images: Tensor, labels: Tensor, **options) -> Tensor:
    explain = getattr(optional("captum.attr", "xai"), name)(model)
    images = images.detach().clone().requires_grad_()  # captum warns where it has to do this itself
    with frozen(model), torch.enable_grad():
        return explain.attribute(images, target=labels, **options).sum(1).to(images)


def _grad_cam(model: StagedViT, images: Tensor, labels: Tensor) -> Tensor:
    cam = optional("pytorch_grad_cam", "xai")
    rows, columns = model.vit.patch_embed.grid_size

    def as_image(tokens: Tensor) -> Tensor:  # (B, T, D) -> (B, D, rows, columns)
        return tokens[:, model.vit.num_prefix_tokens :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    told = optional("pytorch_grad_cam.utils.model_targets", "xai")
    targets = [told.ClassifierOutputTarget(y) for y in labels.tolist()]
    images = images.detach().clone().requires_grad_()  # parameters are frozen, so that no gradient stays on them
    if not hasattr(model.vit.blocks[-1], "norm1"):
        raise TypeError(f"Grad-CAM reads the first LayerNorm of the last block, which {model.name} has not")
    layers = [model.vit.blocks[-1].norm1]
    gradients = [(p, p.grad) for p in model.parameters()]  # it sets them to None
    try:
        with frozen(model), torch.enable_grad(), cam.GradCAM(model, layers, reshape_transform=as_image) as explain:
            return torch.from_numpy(explain(images, targets)).to(images)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@torch.no_grad()
def _rollout(model: StagedViT, images: Tensor) -> Tensor:
    prefix, pool = model.vit.num_prefix_tokens, model.vit.global_pool
    if pool not in ("token", "avg"):
        raise TypeError(f"rollout follows a head that reads the class token or averages, {model.name} has {pool!r}")
    with attention_maps(model, range(len(model.vit.blocks))) as maps:
        model(images)
    rolled = None
    for i in sorted(maps):
        mixed = maps[i].mean(1) / 2 + torch.eye(maps[i].shape[-1]).to(images) / 2  # (B, T, T)
        rolled = mixed if rolled is None else mixed @ rolled
    read = rolled[:, 0] if pool == "token" else rolled[:, prefix:].mean(1)
    return over_patches(model, read[:, prefix:])
