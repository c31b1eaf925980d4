"""The model under attack: what is asked of it, of images and labels, and the state in which gradients are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nslib.vit.staged import StagedViT, frozen


class Target(nn.Module):
    """A model as its attackers see it: NaN logits are an error instead of a gradient that points nowhere."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K).

        Raises:
            FloatingPointError: a logit is NaN.
        """
        logits = self.model(images)
        if logits.isnan().any():
            rows = logits.isnan().any(1).sum().item()
            raise FloatingPointError(
                f"{name_of(self.model)} gives NaN logits for {rows} of {len(images)} images: look at its weights"
            )
        return logits

    def ascent(self, images: Tensor, labels: Tensor) -> Tensor:
        """Gradient (B, C, H, W) of each image's own cross-entropy."""
        images = images.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(self(images), labels, reduction="sum"), images)[0]


class Attacked(NamedTuple):
    """What an attack works with: tensors of its own, which outer code cannot have marked as inference tensors."""

    target: Target
    images: Tensor
    labels: Tensor
    num_classes: int


@contextmanager
def under_attack(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Attacked]:
    """Check the three; inside the block gradients flow to images, also under an outer inference_mode, and only there.

    Args:
        images: (B, C, H, W) in [0, 1], on the model's device; the model normalises inside.
        labels: (B,) int64.
    Raises:
        ValueError: training mode; no images, of another shape, or outside [0, 1]; labels that are no classes.
        FloatingPointError: NaN logits.
    """
    if model.training:
        raise ValueError(f"{name_of(model)} is in training mode: call model.eval() first")
    _check_images(model, images)
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        target, images, labels = Target(model), images.detach().clone(), labels.clone()
        if images.dtype == torch.float64:  # as arrays of numpy are
            images = images.to(next((p.dtype for p in model.parameters()), images.dtype))
        with torch.no_grad():
            num_classes = target(images[:1]).shape[1]
        _check_labels(labels, len(images), num_classes)
        yield Attacked(target, images, labels, num_classes)


def name_of(model: nn.Module) -> str:
    """The model's own name if it has one, else its class."""
    return getattr(model, "name", type(model).__name__)


def _check_images(model: nn.Module, images: Tensor) -> None:
    if not len(images):
        raise ValueError("no images: an attack needs at least one")
    if isinstance(model, StagedViT):
        model.check_images(images)
    elif not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got [{images.amin():.3g}, {images.amax():.3g}]: "
            "put the normalisation inside the model and pass raw pixels / 255"
        )


def _check_labels(labels: Tensor, images: int, num_classes: int) -> None:
    if labels.shape != (images,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({images},) int64, got {tuple(labels.shape)} {labels.dtype}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, the classes of the model, got {low}..{high}: "
            "map the folder's classes to the model's"
        )
