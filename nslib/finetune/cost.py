"""What a finetuning costs, counted instead of timed, so that it can be compared between machines (claim C18)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nslib.models import StagedViT

STANDARD_TRAINING = 3  # units an image: forward, backward to the input, backward to the weights


class Meter:
    """Units so far, one being a forward pass of one image through the encoder.

    A backward pass to the tokens is one unit more, and one to the weights another. The patch embedding and the head
    are not counted.
    """

    def __init__(self, blocks: nn.Module):
        self.units = 0
        self._blocks = blocks

    def _pass(self, first: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0]
        self.units += len(tokens)
        if torch.is_grad_enabled() and tokens.requires_grad:
            to_weights = any(p.requires_grad for p in self._blocks.parameters())
            tokens.register_hook(lambda gradient: self._back(len(gradient) * (1 + to_weights)))

    def _back(self, units: int) -> None:
        self.units += units


@contextmanager
def metered(model: StagedViT) -> Iterator[Meter]:
    """Count what passes through the model's blocks inside the block of code."""
    meter = Meter(model.vit.blocks)
    hook = model.vit.blocks[0].register_forward_pre_hook(meter._pass)
    try:
        yield meter
    finally:
        hook.remove()
